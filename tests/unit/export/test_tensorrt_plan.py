"""A builder that needs no GPU builds a real plan; what it cannot build it refuses with its own words."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from longhaul.export import tensorrt_plan
from longhaul.export.registry import Registry
from longhaul.export.tensorrt_plan import PlanError, build_plan
from longhaul.workloads import Signature, TensorSpec

SIGNATURE = Signature(
    task="classification",
    inputs=(TensorSpec(name="image", dtype="float32", shape=(3, 8, 8)),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=(3, 8, 8)),),
)


def need_rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="no builder here: pip install longhaul[rtx]")


def test_the_export_holds_a_real_plan(registry: Registry, tmp_path: Path) -> None:
    need_rtx()
    manifest = registry.resolve("digits-tiny")
    (plan,) = manifest.plans
    import tensorrt_rtx

    assert (plan.file, plan.builder, plan.device) == ("model.rtx.plan", "tensorrt_rtx", "any")
    assert plan.builder_version == tensorrt_rtx.__version__
    assert manifest.files[plan.file].bytes > 100_000  # the network's weights are in it
    assert registry.fetch(manifest, tmp_path / "fetched")[plan.file].read_bytes()[1:4] == b"trt"


def write_onnx(path: Path, operator: str, batch: int | str = "batch") -> Path:
    shape = [batch, 3, 8, 8]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "logits")]
    domain = "" if operator == "Relu" else "nobody.knows"
    graph = helper.make_graph([helper.make_node(operator, ["image"], ["logits"], domain=domain)], "one", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nobody.knows", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_an_unknown_operator_is_refused_with_the_parsers_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    need_rtx()
    with pytest.raises(PlanError, match=r"(?s)model\.onnx.*Frobnicate.*--no-plan"):
        build_plan(write_onnx(tmp_path / "model.onnx", "Frobnicate"), SIGNATURE, tmp_path, max_batch=2)
    assert not list(tmp_path.glob("*.plan"))
    assert {record.levelno for record in caplog.records} <= {logging.WARNING}


def test_what_is_no_onnx_is_refused(tmp_path: Path) -> None:
    need_rtx()
    (tmp_path / "model.onnx").write_bytes(b"hello")
    with pytest.raises(PlanError, match=r"cannot build model\.onnx"):
        build_plan(tmp_path / "model.onnx", SIGNATURE, tmp_path, max_batch=2)


def test_a_profile_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    need_rtx()
    file = write_onnx(tmp_path / "model.onnx", "Relu")
    other = SIGNATURE.model_copy(update={"inputs": (TensorSpec(name="image", dtype="float32", shape=(3, 9, 9)),)})
    with pytest.raises(PlanError):
        build_plan(file, other, tmp_path, max_batch=2)
    plan = build_plan(file, SIGNATURE, tmp_path, max_batch=2)
    assert plan is not None
    assert (tmp_path / plan.file).stat().st_size > 0


def test_without_a_builder_there_is_no_plan_and_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tensorrt_plan, "_module", lambda name: None)
    assert build_plan(tmp_path / "model.onnx", SIGNATURE, tmp_path, max_batch=2) is None
    assert "neither tensorrt nor tensorrt_rtx is installed" in caplog.text


def test_a_graph_of_fixed_shapes_needs_no_profile(tmp_path: Path) -> None:
    need_rtx()
    file = write_onnx(tmp_path / "model.b2.onnx", "Relu", batch=2)
    plan = build_plan(file, SIGNATURE, tmp_path, max_batch=8, batch=2, precision="fp16", timing_cache=tmp_path / "cache")
    assert plan is not None
    assert (plan.file, plan.batch, plan.precision) == ("model.b2.rtx.plan", 2, "fp16")
    assert not (tmp_path / "cache").exists()  # this builder measures nothing


def test_types_are_the_graphs(tmp_path: Path) -> None:
    need_rtx()
    import tensorrt_rtx

    flags = tensorrt_plan._strongly_typed(tensorrt_rtx)
    assert flags == 1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert tensorrt_plan._strongly_typed(object()) == 0


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_what_a_builder_measured_is_kept_for_the_next_build(tmp_path: Path) -> None:
    need_rtx()
    import tensorrt_rtx

    builder = tensorrt_rtx.Builder(tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR))
    cache = tensorrt_plan._TimingCache(tmp_path / "cache", "tensorrt-11.4-NVIDIA H200 / 1")
    for _ in range(2):  # the second reads what the first wrote
        config = builder.create_builder_config()
        cache.load(config)
        cache.keep(config)
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["tensorrt-11.4-NVIDIA-H200-1.timing"]
    cache.load(object())  # a builder without one is left alone
    cache.keep(object())
