"""What is served: chosen, verified, loaded, checked."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from grid_detector import SAMPLE_RATE_HZ, TILES, publish_grid_detector
from held_engine import held_engine

from longhaul.errors import IntegrityError, UserError
from longhaul.export.registry import Registry
from longhaul.serving.detection.answers import Detection
from longhaul.serving.detection.chunk import SignalChunk
from longhaul.serving.detection.ensemble_settings import EnsembleSettings
from longhaul.serving.detection.shadow import Shadow
from longhaul.serving.models.catalog import Catalog, choose, load, warn_of_crowding
from longhaul.serving.models.served import ServedClassifier, ServedDetector
from longhaul.serving.refusals import UnknownModel
from longhaul.signals.front_end import FrontEnd


def names(manifests) -> list[str]:
    return [f"{m.name}@{m.version}" for m in manifests]


def test_choose_takes_prod_then_latest_and_versions_by_name(registry, publish_tiny) -> None:
    for _ in range(2):
        publish_tiny(registry)
    publish_tiny(registry, "other")
    assert names(choose(registry)) == ["other@1", "tiny@2"]
    registry.promote("tiny", "1")
    assert names(choose(registry)) == ["other@1", "tiny@1"]
    assert names(choose(registry, ["tiny@2", "tiny", "tiny@2"])) == ["tiny@2", "tiny@1"]


def test_an_empty_registry_and_an_unknown_model_are_user_errors(registry, publish_tiny) -> None:
    with pytest.raises(UserError, match=r"holds no model.*longhaul export"):
        choose(registry)
    publish_tiny(registry)
    with pytest.raises(UserError, match="Did you mean tiny"):
        choose(registry, ["tinny"])


def test_the_first_of_several_versions_answers_by_default(registry, publish_tiny) -> None:
    for seed in range(2):
        publish_tiny(registry, seed=seed)
    catalog = load(registry, choose(registry, ["tiny@2", "tiny@1"]))
    assert catalog.versions("tiny") == ["2", "1"]
    assert catalog.find("tiny").manifest.version == "2"
    assert catalog.find("tiny", "1").manifest.version == "1"
    with pytest.raises(UnknownModel, match=r"version '3': not served. Served: 2, 1"):
        catalog.find("tiny", "3")
    with pytest.raises(UnknownModel, match="Did you mean 'tiny'"):
        catalog.find("tinny")
    catalog.close()
    assert catalog.problem == "no model is loaded"


def test_a_flipped_bit_is_refused_at_load_and_named(registry, publish_tiny) -> None:
    publish_tiny(registry, "good")
    manifest = publish_tiny(registry, "tiny")
    file = Path(registry.folder("tiny", manifest.version)) / "model.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"tiny/1/model\.onnx: its SHA-256 differs"):
        load(registry, choose(registry))


def test_no_copy_of_a_model_is_left_behind(registry, publish_tiny, tmp_path, monkeypatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    publish_tiny(registry)
    load(registry, choose(registry)).close()
    assert list(scratch.iterdir()) == []


def test_a_served_model_has_answered_before_it_counts(registry, publish_tiny, engine) -> None:
    def warm_up() -> None:
        raise RuntimeError("no memory")

    engine.warm_up = warm_up
    with pytest.raises(RuntimeError, match="no memory"):
        ServedClassifier(publish_tiny(registry), engine)


def test_the_health_check_runs_every_engine_and_is_remembered(scripted: Catalog, engine) -> None:
    asyncio.run(scripted.check())
    assert engine.seen == [1]
    assert scripted.problem == ""
    engine.failure = RuntimeError("the device is gone")
    with pytest.raises(RuntimeError, match=r"model tiny version 1: .*the device is gone"):
        asyncio.run(scripted.check())
    assert scripted.problem.startswith("model tiny version 1: ")
    engine.failure = None
    engine.logits = np.full(4, np.nan, np.float32)
    with pytest.raises(RuntimeError, match="not finite"):
        asyncio.run(scripted.check())
    engine.logits = None
    asyncio.run(scripted.check())
    assert scripted.problem == ""


def test_a_relative_registry_and_an_absolute_one_are_the_same(tmp_path, monkeypatch, publish_tiny) -> None:
    monkeypatch.chdir(tmp_path)
    publish_tiny(Registry("models"))
    assert names(choose(Registry(str(tmp_path / "models")))) == ["tiny@1"]


def test_models_of_other_tasks_are_left_out_and_refused_by_name(registry, publish_tiny, caplog) -> None:
    publish_tiny(registry)
    publish_tiny(registry, name="reader", task="reading")
    assert names(choose(registry)) == ["tiny@1"]
    assert "reader is left out: task reading is not served yet" in caplog.text
    with pytest.raises(UserError, match="reader: is of task 'reading', which is not served yet"):
        choose(registry, ["tiny", "reader"])


def test_detectors_form_the_ensemble_in_their_default_versions(registry, publish_tiny) -> None:
    publish_tiny(registry)
    for name in ("grid", "other"):
        publish_grid_detector(registry, name)
    publish_grid_detector(registry, "grid")
    catalog = load(registry, choose(registry, ["grid@2", "grid@1", "other", "tiny"]))
    assert [(member.name, member.version) for member in catalog.ensemble.members] == [("grid", "2"), ("other", "1")]
    assert catalog.versions("grid") == ["2", "1"]
    catalog.close()
    alone = load(registry, choose(registry, ["tiny"]))
    assert alone.ensemble is None
    alone.close()


def test_detectors_of_different_tiles_are_refused_together_and_named(registry) -> None:
    publish_grid_detector(registry, "grid")
    publish_grid_detector(registry, "longer", tiles=TILES.model_copy(update={"chunk_s": 0.02}))
    with pytest.raises(UserError, match=r"models grid and longer cannot share one spectrogram: chunks of 0\.01 s and 0\.02 s"):
        load(registry, choose(registry))
    large = TILES.model_copy(update={"front_end": FrontEnd(nfft=128, hop=32, tile=128)})
    publish_grid_detector(registry, "large", tiles=large)
    with pytest.raises(UserError, match=r"models grid and large .*: inputs of \(1, 64, 64\) and \(1, 128, 128\)"):
        load(registry, choose(registry, ["grid", "large"]))


def test_one_failing_detector_is_told_and_only_all_of_them_make_the_server_unready(registry, publish_tiny) -> None:
    for name in ("grid", "other"):
        publish_grid_detector(registry, name)
    publish_tiny(registry)
    catalog = load(registry, choose(registry))
    asyncio.run(catalog.check())
    catalog.find("grid").engine.close()
    asyncio.run(catalog.check())
    assert catalog.find("grid").failure
    assert catalog.problem == ""
    catalog.find("other").engine.close()
    with pytest.raises(RuntimeError, match=r"model grid version 1: .*; model other version 1: "):
        asyncio.run(catalog.check())
    catalog.close()


def detector(registry, name: str = "grid", tiles=TILES, *, known: bool = True, **answers) -> ServedDetector:
    """A version of its own, loaded; with `known` off, nobody says what its tiles are made with."""
    manifest = publish_grid_detector(registry, name, tiles=tiles)
    engine = held_engine(registry, manifest, answers)
    if not known:
        signature = manifest.signature.model_copy(update={"preprocess": {"resolution": tiles.front_end.tile, "tiles": None}})
        manifest = manifest.model_copy(update={"signature": signature})
    return ServedDetector(manifest, engine)


def steps(tiles=TILES) -> SignalChunk:
    """A chunk of noise that is louder and quieter by turns, so that some cells are bright."""
    samples = tiles.chunk_samples(SAMPLE_RATE_HZ)
    loud = torch.tensor([1e-3, 1.0]).repeat_interleave(samples // 8).repeat(4)
    return SignalChunk(
        torch.randn(samples, dtype=torch.complex64, generator=torch.Generator().manual_seed(1)) * loud, SAMPLE_RATE_HZ
    )


LARGE = TILES.model_copy(update={"front_end": FrontEnd(nfft=128, hop=32, tile=128)})


SAME_SIZE = TILES.model_copy(update={"chunk_s": 0.02})


@pytest.mark.parametrize(("known", "tiles"), [(True, LARGE), (False, LARGE), (True, SAME_SIZE), (False, SAME_SIZE)])
def test_the_only_detector_brings_its_tiles_with_it(registry, known, tiles) -> None:
    async def detections(catalog: Catalog) -> tuple[Detection, ...]:
        answer = await catalog.ensemble.detect(steps(tiles), deadline_s=30)
        assert not answer.degraded
        assert answer.detections
        return answer.detections

    async def scenario() -> None:
        afresh, moved = Catalog([detector(registry, tiles=tiles)]), Catalog([detector(registry, known=known)])
        moved.adopt(detector(registry, tiles=tiles))
        assert moved.ensemble.tiles == tiles
        assert await detections(moved) == await detections(afresh)
        moved.close()
        afresh.close()

    asyncio.run(scenario())


def test_a_detector_for_tiles_that_nobody_knows_takes_those_there_are_if_they_have_its_size(registry) -> None:
    catalog = Catalog([detector(registry)])
    catalog.adopt(detector(registry, known=False))
    assert catalog.ensemble.tiles == TILES
    large = detector(registry, tiles=LARGE, known=False)
    with pytest.raises(UserError, match=r"model grid: its input is \(1, 128, 128\), and tiles have 64 x 64 pixels"):
        catalog.adopt(large)
    assert (catalog.find("grid").manifest.version, catalog.ensemble.members[0].version) == ("2", "2")
    large.close()
    catalog.close()


def test_a_candidate_for_other_tiles_is_refused_and_dropped_when_production_gets_others(registry) -> None:
    catalog = Catalog([detector(registry)])
    candidate = detector(registry)
    catalog.add_shadow(Shadow(candidate.member()), candidate)
    other = detector(registry, tiles=LARGE)
    with pytest.raises(UserError, match="cannot share one spectrogram"):
        catalog.add_shadow(Shadow(other.member()), other)
    assert catalog.shadows["grid"].candidate is candidate.member()
    catalog.adopt(other)
    assert (catalog.shadows, catalog.ensemble.observers) == ({}, [])
    catalog.adopt(detector(registry, known=False, tiles=LARGE))  # says nothing of its tiles: those of before stay
    again = detector(registry)
    with pytest.raises(UserError, match=r"inputs of \(1, 128, 128\) and \(1, 64, 64\)"):
        catalog.add_shadow(Shadow(again.member()), again)
    for one in (again, candidate):
        one.close()
    catalog.close()


def test_candidates_are_held_to_the_ensembles_score_and_iou(registry) -> None:
    catalog = Catalog([detector(registry)], EnsembleSettings(score=0.7, iou=0.6))
    candidate = detector(registry)
    shadow = Shadow(candidate.member())
    catalog.add_shadow(shadow, candidate)
    assert (shadow.ensemble.score, shadow.ensemble.iou) == (0.7, 0.6)
    catalog.configure(EnsembleSettings(score=0.2))
    assert shadow.ensemble.score == 0.2
    catalog.close()


def test_a_detector_that_hangs_has_failed_and_the_others_are_checked(registry) -> None:
    hanging, other = detector(registry), detector(registry, "other")
    hanging.engine.go.clear()  # type: ignore[attr-defined]
    catalog = Catalog([hanging, other])

    async def scenario() -> None:
        other.failure = "an older one"
        await asyncio.wait_for(catalog.check(within_s=0.2), 10)
        assert hanging.failure == "no answer to a check within 0.2 s"
        assert other.failure == ""
        hanging.engine.go.set()  # type: ignore[attr-defined]
        await catalog.check()
        assert hanging.failure == ""

    try:
        asyncio.run(scenario())
    finally:
        hanging.engine.go.set()  # type: ignore[attr-defined]
    catalog.close()


@pytest.mark.parametrize(
    ("output", "value", "why"),
    [("labels", 7, r"labels 7\.\.7, and has 2 classes"), ("scores", 3.0, "a score that is none")],
)
def test_a_detector_whose_answers_make_no_sense_is_not_well(registry, output, value, why) -> None:
    shape = (1, (TILES.front_end.tile // 8) ** 2)
    strange = detector(registry, **{output: np.full(shape, value)})
    with pytest.raises(ValueError, match=why):
        asyncio.run(strange.check())
    assert strange.failure
    strange.close()


def test_too_many_threads_for_the_cores_are_told() -> None:
    assert warn_of_crowding(models=3, threads=1, cores=3) == ""
    assert warn_of_crowding(models=3, threads=2, cores=4).startswith("3 models x 2 threads on 4 CPU cores")
