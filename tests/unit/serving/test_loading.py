"""From a registry entry to an engine: classifiers and detectors, the right files, the right refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from grid_detector import CELL, SIDE, publish_grid_detector

from longhaul.errors import IntegrityError, UserError
from longhaul.export.manifest import PlanRecord
from longhaul.serving.models.loading import make_engine, plan_choices


@pytest.fixture
def entry(registry, publish_tiny, tmp_path):
    manifest = publish_tiny(registry)
    return manifest, registry.fetch(manifest, tmp_path / "fetched")


@pytest.fixture
def detector(registry, tmp_path):
    manifest = publish_grid_detector(registry, batches=(1, 4, 8))
    return manifest, registry.fetch(manifest, tmp_path / "fetched-detector")


def plan(builder: str, batch: int | None) -> PlanRecord:
    suffix = "" if batch is None else f".b{batch}"
    device = "any" if builder == "tensorrt_rtx" else "GPU"
    return PlanRecord(file=f"model{suffix}.{builder}.plan", builder=builder, builder_version="1", device=device, batch=batch)


def test_a_classifier_takes_any_batch_up_to_its_largest(entry) -> None:
    engine = make_engine(*entry)
    engine.warm_up()
    assert engine.max_batch == 4
    for samples in (1, 3, 4):
        assert engine.infer(np.zeros((samples, 3, 8, 8), np.float32))["logits"].shape == (samples, 4)


@pytest.mark.parametrize("samples", [1, 3, 6, 8])
def test_a_detector_of_fixed_batches_takes_any_number_of_tiles(detector, samples) -> None:
    engine = make_engine(*detector, kind="onnxruntime", threads=1)
    assert engine.max_batch == 8
    tiles = np.zeros((samples, 1, SIDE, SIDE), np.float32)
    for place in range(samples):
        tiles[place, 0, :CELL, place * CELL : (place + 1) * CELL] = 0.5 + place / 20
    answer = engine.infer(torch.from_numpy(tiles))
    best = answer["scores"].argmax(1)
    assert best.tolist() == list(range(samples))
    np.testing.assert_allclose(answer["scores"].max(1), 0.5 + np.arange(samples) / 20, rtol=1e-5)
    assert answer["boxes"][samples - 1, samples - 1].tolist() == [(samples - 1) * CELL, 0, samples * CELL, CELL]


def test_a_missing_file_is_named(detector) -> None:
    manifest, files = detector
    del files["model.b4.onnx"]
    with pytest.raises(IntegrityError, match=r"grid version 1: model\.b4\.onnx is not among its files"):
        make_engine(manifest, files, "onnxruntime")


def test_an_unknown_engine_and_a_missing_plan_are_user_errors(entry) -> None:
    manifest, files = entry
    with pytest.raises(UserError, match="engine 'onnx': unknown"):
        make_engine(manifest, files, "onnx")
    with pytest.raises(UserError, match=r"tiny version 1: no TensorRT plan.*holds no plan"):
        make_engine(manifest, files, "tensorrt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_plans_without_a_gpu_are_left_alone_or_refused(detector) -> None:
    manifest, files = detector
    planned = manifest.model_copy(update={"plans": tuple(plan("tensorrt_rtx", batch) for batch in (1, 4, 8))})
    assert make_engine(planned, files).kind == "onnxruntime"
    with pytest.raises(UserError, match="device cuda:1: this machine has no CUDA device"):
        make_engine(planned, files, "tensorrt", device="cuda:1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_plans_that_do_not_load_are_named_and_onnx_runtime_serves(detector, tmp_path, caplog) -> None:
    manifest, files = detector
    planned = manifest.model_copy(update={"plans": tuple(plan("tensorrt_rtx", batch) for batch in (1, 4, 8))})
    for record in planned.plans:
        files[record.file] = tmp_path / record.file
        files[record.file].write_bytes(b"no plan")
    assert make_engine(planned, files).kind == "onnxruntime"
    assert "grid version 1: served by ONNX Runtime on the CPU, because" in caplog.text


def test_plans_are_chosen_by_builder_and_batch_and_those_of_the_gpu_first(detector) -> None:
    manifest, _ = detector
    rtx = [plan("tensorrt_rtx", batch) for batch in (1, 4, 8)]
    own = [plan("tensorrt", batch) for batch in (1, 4, 8)]
    both = manifest.model_copy(update={"plans": (*rtx, *own)})
    assert plan_choices(both) == [
        ("tensorrt", {batch: f"model.b{batch}.tensorrt.plan" for batch in (1, 4, 8)}),
        ("tensorrt_rtx", {batch: f"model.b{batch}.tensorrt_rtx.plan" for batch in (1, 4, 8)}),
    ]
    some = manifest.model_copy(update={"plans": (own[0], own[1], rtx[2])})  # no largest batch by tensorrt
    assert plan_choices(some) == [("tensorrt_rtx", {8: "model.b8.tensorrt_rtx.plan"})]
    one = manifest.model_copy(update={"plans": (plan("tensorrt", None),)})
    assert plan_choices(one) == [("tensorrt", {None: "model.tensorrt.plan"})]
    with pytest.raises(UserError, match="holds no plan for its largest batch, 8"):
        make_engine(manifest.model_copy(update={"plans": tuple(own[:2])}), {}, "tensorrt")
