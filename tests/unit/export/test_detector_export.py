"""A trained detector through the whole export: ONNX files that decide as it does, and a gate that refuses those that do not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from drawn_tiles import write_tile
from onnx import TensorProto
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from toy_detector import CLASSES, SECTION, SIDE, tiles, trained_detector
from typer.testing import CliRunner

from longhaul import workloads
from longhaul.cli.export import export
from longhaul.engines.engine_module import EngineModule
from longhaul.engines.onnxruntime_engine import OnnxRuntimeEngine
from longhaul.errors import UserError
from longhaul.export.manifest import Manifest
from longhaul.export.onnx_model import export_onnx
from longhaul.export.pipeline import export_run
from longhaul.export.registry import Registry
from longhaul.export.tensorrt_plan import build_plan
from longhaul.models import static_detector
from longhaul.models.faster_rcnn import Detector
from longhaul.models.static_detector import StaticDetector
from longhaul.recipe import Recipe
from longhaul.resilience.checkpoint import CheckpointStore, checkpoint_name
from longhaul.resilience.checkpoint import Manifest as CheckpointManifest
from longhaul.resilience.run_directory import RunDirectory
from longhaul.workloads import Workload

FORBIDDEN = {"NonZero", "If", "Loop", "NonMaxSuppression", "GridSample", "RoiAlign"}


@pytest.fixture(scope="module")
def tile_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten recordings of four tiles."""
    folder = tmp_path_factory.mktemp("tiles") / "20260101_000000"
    folder.mkdir()
    images, targets = tiles(40, seed=3)
    for place, (image, target) in enumerate(zip(images, targets, strict=True)):
        boxes = [
            {"label": CLASSES[int(label) - 1], **dict(zip(("x_min", "y_min", "x_max", "y_max"), map(int, box), strict=True))}
            for box, label in zip(target["boxes"], target["labels"], strict=True)
        ]
        write_tile(folder, f"chunk_rec{place // 4}_{place % 4:03}", (image[0] * 255).numpy(), boxes)
    return folder.parent


@pytest.fixture(scope="module")
def make_run(tile_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunDirectory]:
    """A run with one checkpoint of the trained detector; the arguments are fields of the recipe's `export`."""

    def make(**export_fields: object) -> RunDirectory:
        recipe = Recipe.model_validate(
            {
                "name": "toy",
                "workload": {"kind": "detection"},
                "model": SECTION.model_dump(mode="json"),
                "data": {
                    "kind": "spectrograms",
                    "root": str(tile_root),
                    "classes": list(CLASSES),
                    "resolution": SIDE,
                    "test_share": 0.5,
                },
                "training": {"steps": 20},
                "export": export_fields,
            }
        )
        run = RunDirectory.create(str(tmp_path_factory.mktemp("runs")), "one", recipe)
        source = tmp_path_factory.mktemp("checkpoint")
        save_file(
            {name: tensor.contiguous() for name, tensor in trained_detector().state_dict().items()}, source / "model.safetensors"
        )
        manifest = CheckpointManifest(
            step=20, rank=0, world_size=1, attempt="abcd1234", created_s=time.time(), goal=0.5, files={}
        )
        CheckpointStore(run).publish(checkpoint_name(20, "abcd1234"), source, manifest)
        return run

    return make


@pytest.fixture(scope="module")
def exported(make_run: Callable[..., RunDirectory], tmp_path_factory: pytest.TempPathFactory) -> tuple[Registry, Manifest]:
    """Version 1, in float32, for batches of 1 and 4."""
    registry = Registry(str(tmp_path_factory.mktemp("registry") / "models"))
    return registry, export_run(make_run(batches=[4, 1]), registry, with_plan=False)


@pytest.fixture(scope="module")
def onnx_files(exported: tuple[Registry, Manifest], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    registry, manifest = exported
    return registry.fetch(manifest, tmp_path_factory.mktemp("fetched"))


def test_the_manifest_names_a_file_for_each_batch(exported: tuple[Registry, Manifest]) -> None:
    registry, manifest = exported
    assert (manifest.batches, manifest.max_batch) == ((1, 4), 4)
    assert manifest.model_files == {1: "model.b1.onnx", 4: "model.b4.onnx"}
    assert [manifest.model_file(samples) for samples in (1, 2, 3, 4)] == ["model.b1.onnx"] + ["model.b4.onnx"] * 3
    with pytest.raises(ValueError, match="at most 4"):
        manifest.model_file(5)
    assert set(manifest.files) == {"model.b1.onnx", "model.b4.onnx"}
    assert registry.verify(manifest) == []
    assert registry.resolve("toy") == manifest


def test_its_decisions_are_the_trained_detectors(exported: tuple[Registry, Manifest]) -> None:
    parity = exported[1].parity
    assert parity.decisions is not None
    assert parity.passed
    (onnx_runtime,) = parity.decisions.runtimes
    sure, unsure = onnx_runtime.thresholds
    assert (sure.threshold, unsure.threshold) == (0.5, 0.05)
    assert sure.matched == sure.reference == sure.exported > 30
    assert unsure.matched == unsure.reference == unsure.exported > 200
    assert 0 < unsure.box_max_px < 1e-2
    assert unsure.score_max < 1e-4
    assert onnx_runtime.map == pytest.approx(onnx_runtime.torch_map, abs=1e-4)
    assert onnx_runtime.torch_map > 0.1
    assert onnx_runtime.unsettled_tiles == 0
    assert onnx_runtime.batch_sizes == (1, 4)
    assert 4 < parity.decisions.rpn_iterations <= 24
    assert parity.samples == 20
    assert parity.decisions.tiles == 24  # with the validation split's four: a hundred are wanted


@pytest.mark.parametrize("batch", [1, 4])
def test_the_graph_holds_nothing_that_tensorrt_cannot_take(onnx_files: dict[str, Path], batch: int) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(onnx_files[f"model.b{batch}.onnx"]), data_prop=True)
    graph = model.graph
    assert not {node.op_type for node in graph.node} & FORBIDDEN
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    assert {entry.domain for entry in model.opset_import} <= {"", "pkg.onnxscript.torch_lib", "pkg.onnxscript.torch_lib.common"}
    values = [*graph.input, *graph.output, *graph.value_info]
    assert {output for node in graph.node for output in node.output} <= {value.name for value in values}
    assert all(dim.HasField("dim_value") for value in values for dim in value.type.tensor_type.shape.dim)
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    constants |= {
        node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    limits = [int(constants[node.input[1]].item()) for node in graph.node if node.op_type == "TopK"]
    assert limits
    assert max(limits) <= 3840
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in [*graph.input, *graph.output]}
    most = SECTION.max_detections
    assert shapes == {
        "image": [batch, 1, SIDE, SIDE],
        "boxes": [batch, most, 4],
        "scores": [batch, most],
        "labels": [batch, most],
        "flag": [batch],
    }
    assert graph.output[2].type.tensor_type.elem_type == TensorProto.INT32


@torch.no_grad()
def test_onnx_runtime_agrees_on_tiles_that_the_export_did_not_see(
    exported: tuple[Registry, Manifest], onnx_files: dict[str, Path]
) -> None:
    signature, detector = exported[1].signature, trained_detector()
    images = tiles(30, seed=77)[0]  # the last batch is not full
    both: dict[int | None, Path] = {batch: onnx_files[f"model.b{batch}.onnx"] for batch in (1, 4)}
    expected, found = detector(images), EngineModule(OnnxRuntimeEngine(both, signature, max_batch=4, threads=1))(images)
    assert torch.equal(found[2], expected[2])
    torch.testing.assert_close(found[0], expected[0], atol=1e-2, rtol=0)
    torch.testing.assert_close(found[1], expected[1], atol=1e-4, rtol=0)
    assert int((expected[1] > 0.5).sum()) > 40
    one = EngineModule(OnnxRuntimeEngine({1: both[1]}, signature, max_batch=1, threads=1))(images)
    torch.testing.assert_close(one[0], expected[0], atol=1e-2, rtol=0)


def test_half_precision_passes_its_bounds(make_run: Callable[..., RunDirectory], tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "models"))
    manifest = export_run(make_run(batches=[4], precision="fp16"), registry, with_plan=False)
    weights = {one.data_type for one in onnx.load(registry.fetch(manifest, tmp_path)["model.b4.onnx"]).graph.initializer}
    assert TensorProto.FLOAT16 in weights
    decisions = manifest.parity.decisions
    assert decisions is not None
    assert decisions.precision == "fp16"
    (found,) = decisions.runtimes
    assert found.thresholds[1].box_max_px > 1e-3, "this is float32"
    assert manifest.parity.passed, manifest.parity.findings
    assert registry.promote("toy", "1").version == "1"


def test_boxes_in_half_precision_are_refused_and_cannot_be_promoted(
    make_run: Callable[..., RunDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = static_detector._decode

    def decode_coarsely(coder: BoxCoder, deltas: Tensor, reference: Tensor) -> Tensor:
        # As in the last corner of a tile of 1024 pixels, where half precision knows every half pixel.
        corner = 1024 - SIDE
        return (decode(coder, deltas.half(), reference.half() + corner) - corner).float()

    monkeypatch.setattr(static_detector, "_decode", decode_coarsely)
    registry = Registry(str(tmp_path / "models"))
    run = make_run(batches=[2], precision="fp16")
    result = CliRunner().invoke(_app(), ["export", run.uri, "--registry", registry.uri, "--no-plan"])
    assert result.exit_code == 1, result.output
    assert "FAILED" in result.output
    assert "score > 0.05" in result.output
    manifest = registry.resolve("toy", "1")
    assert manifest.parity.decisions is not None
    assert not manifest.parity.passed
    assert not manifest.parity.decisions.runtimes[0].thresholds[0].passed
    with pytest.raises(UserError, match=r"does not agree with the torch model \(onnxruntime, score > 0\.5: .*"):
        registry.promote("toy", "1")
    with pytest.raises(UserError, match="no version of it agrees"):
        registry.resolve("toy")


def _app() -> object:
    import typer

    app = typer.Typer()
    app.command()(export)

    @app.callback()
    def root() -> None: ...

    return app


def test_a_detector_that_finds_nothing_is_no_proof(
    make_run: Callable[..., RunDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Blind(nn.Module):
        def __init__(self, detector: Detector) -> None:
            super().__init__()
            self.most = detector.max_detections

        def forward(self, image: Tensor) -> tuple[Tensor, ...]:
            nothing = image.flatten(1)[:, : self.most] * 0
            boxes = nothing[..., None].expand(-1, -1, 4) + 0
            return boxes, nothing - 1, nothing.to(torch.int32), nothing[:, 0]

    recipe_run = make_run(batches=[2])
    monkeypatch.setattr(workloads.detection.Detection, "exportable", lambda self, model, precision: Blind(model))
    monkeypatch.setattr(Detector, "forward", lambda self, image, targets=None: Blind(self)(image))
    parity = export_run(recipe_run, Registry(str(tmp_path / "models")), with_plan=False).parity
    assert not parity.passed
    with pytest.raises(UserError, match="no detection at all"):
        Registry(str(tmp_path / "models")).promote("toy", "1")


def test_classification_is_exported_in_float32_alone(tmp_path: Path) -> None:
    data = {"kind": "digits", "root": str(tmp_path / "digits"), "resolution": 32}
    workload: Workload = workloads.build(
        Recipe.model_validate({"name": "digits", "model": {"name": "test_resnet"}, "data": data, "training": {"steps": 1}})
    )
    model = workload.build_model()
    assert workload.exportable(model, "fp32") is model
    with pytest.raises(UserError, match=r"export\.precision fp16"):
        workload.exportable(model, "fp16")


@pytest.mark.slow
def test_rtx_builds_a_plan_for_each_batch(
    exported: tuple[Registry, Manifest], onnx_files: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    signature = exported[1].signature
    eight = export_onnx(StaticDetector(trained_detector()), signature, tmp_path, max_batch=8, opset=18, batches=[8])
    for batch, file in {1: onnx_files["model.b1.onnx"], 4: onnx_files["model.b4.onnx"], 8: eight[0]}.items():
        plan = build_plan(file, signature, tmp_path, max_batch=8, batch=batch)
        assert plan is not None
        assert (plan.batch, plan.precision, plan.file) == (
            batch,
            "fp32",
            f"model.b{batch}.{'trt' if plan.device != 'any' else 'rtx'}.plan",
        )
        assert (tmp_path / plan.file).stat().st_size > 1e6
