"""Following the registry: new versions take over without a pause, broken ones do not, and its absence harms nobody."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import threading
import time
from pathlib import Path

import pytest
import torch

from longhaul.engines.inference import EngineClosed
from longhaul.export.registry import Registry
from longhaul.serving.catalog import Catalog, choose, load
from longhaul.serving.detection.chunk import SignalChunk
from longhaul.serving.detection.shadow import ShadowSettings
from longhaul.serving.updates import RegistryWatch
from longhaul.signals.front_end import FrontEnd
from longhaul.signals.tile_folder import TileSettings
from tests.shared.broken_detector import damage, publish_failing_detector
from tests.shared.grid_detector import CHUNK_SAMPLES, SAMPLE_RATE_HZ, publish_grid_detector

LOG = "longhaul.serving.updates"
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
            except (EngineClosed, KeyError):  # the latter if it is closed in the middle of this call
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
