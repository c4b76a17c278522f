"""Following the registry: new versions take over without a pause, broken ones do not, and its absence harms nobody."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import logging
import threading
import time
from pathlib import Path

import pytest
import torch
from broken_detector import damage, publish_failing_detector
from grid_detector import CHUNK_SAMPLES, SAMPLE_RATE_HZ, publish_grid_detector
from held_engine import held_engine

from longhaul.engines.inference import EngineClosed
from longhaul.errors import UserError
from longhaul.export.registry import Registry
from longhaul.serving.detection.chunk import SignalChunk
from longhaul.serving.detection.shadow import ShadowSettings
from longhaul.serving.models import updates
from longhaul.serving.models.catalog import Catalog, choose, load, load_model
from longhaul.serving.models.served import ServedDetector
from longhaul.serving.models.updates import RegistryWatch
from longhaul.signals.front_end import FrontEnd
from longhaul.signals.tile_folder import TileSettings

LOG = "longhaul.serving.models.updates"
WHY = {"damaged": "SHA-256 differs", "failing": "out of data bounds", "not a number": "not finite"}


def chunk(seed: int = 0) -> SignalChunk:
    noise = torch.randn(CHUNK_SAMPLES, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))
    return SignalChunk(noise, SAMPLE_RATE_HZ)


@pytest.fixture
def served(registry):
    """Two detectors, `grid` and `other`, in version 1, both promoted."""
    for name in ("grid", "other"):
        registry.promote(name, publish_grid_detector(registry, name).version)
    catalog = load(registry, choose(registry))
    yield catalog
    catalog.close()


def point(registry: Registry, name: str, version: str) -> None:
    """`promote` without looking at what is promoted, as by hand."""
    (Path(registry.uri) / name / "names.json").write_text(json.dumps({"prod": version}))


def version(catalog: Catalog, name: str = "grid") -> str:
    assert catalog.ensemble is not None
    in_ensemble = {member.name: member.version for member in catalog.ensemble.members}
    assert in_ensemble[name] == catalog.find(name).manifest.version
    return in_ensemble[name]


def test_a_promoted_version_takes_over_and_is_loaded_off_the_event_loop(registry, served) -> None:
    threads = []

    class Noting(Registry):
        def fetch(self, manifest, target_dir):
            threads.append(threading.current_thread())
            return super().fetch(manifest, target_dir)

    async def scenario() -> None:
        watch = RegistryWatch(Noting(registry.uri), served)
        newer = publish_grid_detector(registry, "grid", gain=0.5)
        assert await watch.look_now() == {"grid": "1", "other": "1"}  # published, and not promoted
        registry.promote("grid", newer.version)
        assert await watch.look_now() == {"grid": "2", "other": "1"}
        assert version(served) == "2"
        assert served.versions("grid") == ["2"]
        answer = await served.ensemble.detect(chunk(), deadline_s=30)
        assert {m.model: m.version for m in answer.models} == {"grid": "2", "other": "1"}

    asyncio.run(scenario())
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


def test_the_old_version_answers_who_holds_it_and_ends_when_the_last_one_lets_go(registry, served) -> None:
    async def scenario() -> None:
        old = served.ensemble.members[0]
        engine = served.find("grid").engine
        registry.promote("grid", publish_grid_detector(registry, "grid").version)
        await RegistryWatch(registry, served).look_now()
        image = torch.zeros(1, 1, 64, 64)
        for _ in range(3):
            gc.collect()
            assert set(await old.runner.infer(image)) == {"boxes", "scores", "labels", "flag"}
        del old
        gc.collect()
        for _ in range(500):
            try:
                engine.infer(image)
            except EngineClosed:
                return
            await asyncio.sleep(0.01)
        pytest.fail("nobody gave the old engine back")

    asyncio.run(scenario())


@pytest.mark.parametrize("broken", WHY)
def test_a_broken_version_is_refused_once_and_the_old_one_stays(registry, served, caplog, broken) -> None:
    async def scenario() -> None:
        watch = RegistryWatch(registry, served)
        if broken == "damaged":
            bad = publish_grid_detector(registry, "grid")
            registry.promote("grid", bad.version)  # which verifies it
            damage(registry, bad)
        else:
            registry.promote("grid", publish_failing_detector(registry, answers_nan=broken == "not a number").version)
        for _ in range(3):
            await watch.look_now()
        assert version(served) == "1"
        assert WHY[broken] in served.refused["grid"]
        assert served.refused["grid"].startswith("version 2: ")
        assert len([line for line in caplog.messages if "is refused" in line]) == 1
        assert not (await served.ensemble.detect(chunk(), deadline_s=30)).degraded
        registry.promote("grid", "1")
        await watch.look_now()
        assert served.refused == {}
        point(registry, "grid", "2")
        await watch.look_now()
        assert "grid" in served.refused  # the name moved, so it was tried again
        registry.promote("grid", publish_grid_detector(registry, "grid").version)
        await watch.look_now()
        assert version(served) == "3"
        assert served.refused == {}

    asyncio.run(scenario())


def test_a_version_that_needs_other_tiles_is_refused(registry, served) -> None:
    other = TileSettings(front_end=FrontEnd(nfft=64, hop=32, tile=64), chunk_s=0.02)
    registry.promote("grid", publish_grid_detector(registry, "grid", tiles=other).version)
    asyncio.run(RegistryWatch(registry, served).look_now())
    assert version(served) == "1"
    assert "cannot share one spectrogram: chunks of" in served.refused["grid"]


def test_a_registry_that_is_away_is_told_once_and_serving_goes_on(registry, served, caplog) -> None:
    class Away(Registry):
        away = "aliases"

        def aliases(self, name):
            if self.away == "aliases":
                raise OSError("connection refused")
            return super().aliases(name)

        def fetch(self, manifest, target_dir):
            if self.away == "files":
                raise OSError("connection refused")
            return super().fetch(manifest, target_dir)

    caplog.set_level(logging.INFO, LOG)
    away = Away(registry.uri)

    async def scenario() -> None:
        watch = RegistryWatch(away, served)
        registry.promote("grid", publish_grid_detector(registry, "grid").version)
        for what in ("aliases", "aliases", "files"):
            away.away = what
            await watch.look_now()
            assert version(served) == "1"
        assert served.refused == {}  # the model is not to blame
        away.away = ""
        await watch.look_now()
        assert version(served) == "2"

    asyncio.run(scenario())
    told = [message for message in caplog.messages if "cannot be asked" in message]
    assert 1 <= len(told) <= 2  # once for each time that it went away
    assert any("answers again" in message for message in caplog.messages)


def test_a_version_that_hangs_is_refused_and_holds_up_nobody(registry, served, monkeypatch) -> None:
    held = []

    def load_held(registry_, manifest, settings):
        if manifest.name != "grid":
            return load_model(registry_, manifest, settings)
        engine = held_engine(registry_, manifest)
        detector = ServedDetector(manifest, engine)
        engine.go.clear()
        held.append(engine)
        return detector

    monkeypatch.setattr(updates, "load_model", load_held)

    async def scenario() -> None:
        watch = RegistryWatch(registry, served, check_s=0.2)
        for name in ("grid", "other"):
            registry.promote(name, publish_grid_detector(registry, name).version)
        assert await asyncio.wait_for(watch.look_now(), 10) == {"grid": "1", "other": "2"}
        assert served.refused["grid"] == "version 2: no answer to a check within 0.2 s"
        await watch.look_now()
        assert len(held) == 1  # it was refused, and not taken for a registry that is away

    try:
        asyncio.run(scenario())
    finally:
        for engine in held:
            engine.go.set()


def test_a_disk_that_is_full_is_told_and_downloads_rest(registry, served, monkeypatch, caplog) -> None:
    class Full(Registry):
        fetched = 0
        full = True

        def fetch(self, manifest, target_dir):
            self.fetched += 1
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().fetch(manifest, target_dir)

    full = Full(registry.uri)
    registry.promote("grid", publish_grid_detector(registry, "grid").version)
    registry.promote("other", publish_grid_detector(registry, "other").version, "shadow")

    async def scenario() -> None:
        watch = RegistryWatch(full, served)
        for _ in range(3):
            await watch.look_now()
        assert full.fetched == 2  # one for each model
        assert "version 2: cannot be loaded here for now" in served.refused["grid"]
        assert not [message for message in caplog.messages if "cannot be asked" in message]
        full.full = False
        monkeypatch.setattr(updates, "RETRY_S", 0.0)
        watch = RegistryWatch(full, served)
        await watch.look_now()
        assert (version(served), served.refused, list(served.shadows)) == ("2", {}, ["other"])

    asyncio.run(scenario())


def test_after_a_rest_a_version_is_tried_again(registry, served, monkeypatch) -> None:
    class Full(Registry):
        fetched = 0

        def fetch(self, manifest, target_dir):
            self.fetched += 1
            if self.fetched == 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().fetch(manifest, target_dir)

    monkeypatch.setattr(updates, "RETRY_S", 0.05)
    registry.promote("grid", publish_grid_detector(registry, "grid").version)

    async def scenario() -> None:
        watch = RegistryWatch(Full(registry.uri), served)
        await watch.look_now()
        assert version(served) == "1"
        await asyncio.sleep(0.06)
        await watch.look_now()
        assert (version(served), served.refused) == ("2", {})

    asyncio.run(scenario())


def test_a_version_that_was_asked_for_can_have_a_candidate(registry) -> None:
    for _ in range(3):
        publish_grid_detector(registry, "grid")
    registry.promote("grid", "3")
    catalog = load(registry, choose(registry, ["grid@1"]))

    async def scenario() -> None:
        watch = RegistryWatch(registry, catalog, ["grid@1"], candidates={"grid": "2"})
        await watch.look_now()
        assert version(catalog) == "1"
        assert catalog.shadows["grid"].candidate.version == "2"
        first = catalog.shadows["grid"]
        await watch.look_now()
        assert catalog.shadows["grid"] is first
        catalog.drop_shadow("grid")
        await RegistryWatch(registry, catalog, ["grid@1"], candidates={"grid": "1"}).look_now()
        assert catalog.shadows == {}  # it is what answers

    asyncio.run(scenario())
    catalog.close()


def test_a_candidate_of_a_name_that_is_not_served_is_refused(registry, served) -> None:
    with pytest.raises(UserError, match=r"candidates: model 'gird' is not served. Served: grid, other"):
        RegistryWatch(registry, served, candidates={"gird": "2"})


def test_such_a_candidate_is_refused_before_any_replica_starts(registry) -> None:
    from longhaul.serving.app import build

    publish_grid_detector(registry, "grid")
    with pytest.raises(UserError, match=r"candidates: model 'gird' is not served. Served: grid$"):
        build({"registry": registry.uri, "candidates": {"gird": "2"}, "api": {"open_loopback": True}})


def test_a_version_that_was_asked_for_stays(registry) -> None:
    for name in ("grid", "other"):
        publish_grid_detector(registry, name)
    catalog = load(registry, choose(registry, ["grid@1", "other"]))
    for name in ("grid", "other"):
        registry.promote(name, publish_grid_detector(registry, name).version)
    asyncio.run(RegistryWatch(registry, catalog, ["grid@1", "other"]).look_now())
    assert (version(catalog), version(catalog, "other")) == ("1", "2")
    catalog.close()


def test_a_candidate_sees_the_traffic_until_its_alias_goes(registry, served) -> None:
    async def scenario() -> None:
        watch = RegistryWatch(registry, served, shadow=ShadowSettings(share=1.0))
        registry.promote("grid", publish_grid_detector(registry, "grid").version, "shadow")
        await watch.look_now()
        assert served.shadows["grid"].candidate.version == "2"
        assert version(served) == "1"
        answer = await served.ensemble.detect(chunk(), deadline_s=30)
        assert {m.version for m in answer.models} == {"1"}
        for _ in range(500):
            if served.shadows["grid"].report().chunks:
                break
            await asyncio.sleep(0.01)
        report = served.shadows["grid"].report()
        assert (report.chunks, report.failures, report.candidate) == (1, 0, "2")
        watch.compare_by(ShadowSettings(share=0.25))
        assert served.shadows["grid"].settings.share == 0.25
        registry.promote("grid", "2")
        await watch.look_now()
        assert served.shadows == {}
        assert served.ensemble.observers == []
        assert version(served) == "2"

    asyncio.run(scenario())


def test_a_broken_candidate_changes_nothing(registry, served, caplog) -> None:
    registry.promote("grid", publish_failing_detector(registry).version, "shadow")

    async def scenario() -> None:
        watch = RegistryWatch(registry, served)
        for _ in range(3):
            await watch.look_now()

    asyncio.run(scenario())
    assert served.shadows == {}
    assert version(served) == "1"
    assert len([line for line in caplog.messages if "cannot be compared" in line]) == 1


def test_it_looks_by_itself_and_not_at_all_when_told_so(registry, served) -> None:
    registry.promote("grid", publish_grid_detector(registry, "grid").version)

    async def scenario() -> None:
        await RegistryWatch(registry, served, every_s=0).run()  # returns at once
        assert version(served) == "1"
        task = asyncio.create_task(RegistryWatch(registry, served, every_s=0.01).run())
        end = time.monotonic() + 20
        while served.find("grid").manifest.version == "1" and time.monotonic() < end:
            await asyncio.sleep(0.01)
        task.cancel()
        assert version(served) == "2"

    asyncio.run(scenario())


def test_a_damaged_file_of_aliases_keeps_what_is_served(registry, served) -> None:
    (Path(registry.uri) / "grid" / "names.json").write_text("{")
    asyncio.run(RegistryWatch(registry, served).look_now())
    assert version(served) == "1"
