"""The ONNX model says what the torch model says, at every batch size; where it does not, the record says so."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from longhaul import workloads
from longhaul.engines.engine_module import EngineModule
from longhaul.engines.onnxruntime_engine import OnnxRuntimeEngine
from longhaul.errors import LonghaulError
from longhaul.export.onnx_model import export_onnx
from longhaul.export.parity import compare
from longhaul.recipe import Recipe
from longhaul.workloads import Signature, TensorSpec, Workload


@pytest.fixture(scope="module")
def workload(recipe: Recipe) -> Workload:
    return workloads.build(recipe)


@pytest.fixture(scope="module")
def onnx_file(workload: Workload, trained: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(trained, workload.signature(), tmp_path_factory.mktemp("onnx"), max_batch=5, opset=18)[0]


def by_onnx_runtime(file: Path, workload: Workload) -> EngineModule:
    return EngineModule(OnnxRuntimeEngine({None: file}, workload.signature(), max_batch=5, threads=1))


def test_names_opset_and_dynamic_batch(onnx_file: Path) -> None:
    model = onnx.load(onnx_file)
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["logits"]
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    assert [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", 3, 32, 32]


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_equal_to_torch_at_batch(onnx_file: Path, trained: nn.Module, batch: int) -> None:
    images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), trained(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("max_batch", [1, 2])
def test_small_largest_batches(workload: Workload, trained: nn.Module, tmp_path: Path, max_batch: int) -> None:
    file = export_onnx(trained, workload.signature(), tmp_path, max_batch=max_batch, opset=18)[0]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch in range(1, max_batch + 1):
        assert session.run(None, {"image": torch.zeros(batch, 3, 32, 32).numpy()})[0].shape == (batch, 10)


def test_training_mode_is_left_as_it_was(workload: Workload, trained: nn.Module, tmp_path: Path) -> None:
    trained.train()
    try:
        export_onnx(trained, workload.signature(), tmp_path, max_batch=2, opset=18)
        assert trained.training
    finally:
        trained.eval()


def test_outputs_that_are_not_the_signatures_are_refused(workload: Workload, trained: nn.Module, tmp_path: Path) -> None:
    wrong = workload.signature().model_copy(update={"outputs": (TensorSpec(name="logits", dtype="float32", shape=(7,)),)})
    with pytest.raises(LonghaulError, match=r"\(5, 10\).*\(5, 7\)"):
        export_onnx(trained, wrong, tmp_path, max_batch=5, opset=18)
    assert not list(tmp_path.iterdir())


def test_two_inputs_and_two_outputs_keep_their_order(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
            return left - right, left * right

    specs = [TensorSpec(name=name, dtype="float32", shape=(4,)) for name in ("left", "right", "minus", "times")]
    signature = Signature(task="arithmetic", inputs=tuple(specs[:2]), outputs=tuple(specs[2:]))
    file = export_onnx(Pair(), signature, tmp_path, max_batch=3, opset=18)[0]
    feed = {"left": torch.full((2, 4), 5.0).numpy(), "right": torch.full((2, 4), 3.0).numpy()}
    minus, times = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(["minus", "times"], feed)
    assert (minus == 2).all()
    assert (times == 15).all()


def test_parity_on_the_test_split(onnx_file: Path, trained: nn.Module, workload: Workload) -> None:
    comparison = compare(trained, by_onnx_runtime(onnx_file, workload), workload, max_batch=5)
    record = comparison.record
    assert record.passed
    assert record.samples == len(workload.splits.test)
    assert record.batch_sizes == (1, 3, 5)
    assert 0 < record.mean_abs_difference <= record.max_abs_difference < record.tolerance / 20
    assert record.top1_agreement == 1
    assert record.metric == "top1"
    assert record.torch_metric == record.onnx_metric == comparison.metrics["top1"]
    assert 0.2 < record.onnx_metric < 1
    assert "confusion" not in comparison.metrics


def perturbed(model: nn.Module, amount: float) -> nn.Module:
    """A copy with every weight changed by this share of the largest."""
    import copy

    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in other.parameters():
            weight += amount * weight.abs().max() * torch.randn(weight.shape, generator=generator)
    return other


@pytest.mark.parametrize("amount", [0.01, 0.3])
def test_other_weights_fail(onnx_file: Path, trained: nn.Module, workload: Workload, amount: float) -> None:
    record = compare(perturbed(trained, amount), by_onnx_runtime(onnx_file, workload), workload, max_batch=5).record
    assert not record.passed
    assert record.max_abs_difference > record.tolerance


def test_a_model_that_is_right_only_at_full_batches_fails(workload: Workload, trained: nn.Module, tmp_path: Path) -> None:
    class Broken(nn.Module):  # takes a statistic over the batch: another answer for each batch size
        def __init__(self) -> None:
            super().__init__()
            self.model = trained

        def forward(self, image: Tensor) -> Tensor:
            logits: Tensor = self.model(image)
            return logits - logits.mean(0, keepdim=True)

    broken = Broken().eval()
    file = export_onnx(broken, workload.signature(), tmp_path, max_batch=5, opset=18)[0]
    record = compare(broken, by_onnx_runtime(file, workload), workload, max_batch=5).record
    assert record.top1_agreement == 1  # in the batches of the test split nothing shows
    assert not record.passed


def test_not_a_number_fails(workload: Workload, trained: nn.Module, tmp_path: Path, onnx_file: Path) -> None:
    class Poisoned(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            logits: Tensor = trained(image)
            return logits * torch.nan

    record = compare(Poisoned(), by_onnx_runtime(onnx_file, workload), workload, max_batch=5).record
    assert record.max_abs_difference == float("inf")
    assert not record.passed


def test_other_classes_fail_however_small_the_difference(workload: Workload, tmp_path: Path) -> None:
    class Shy(nn.Module):  # prefers one class by next to nothing
        def __init__(self, favourite: int) -> None:
            super().__init__()
            self.head = nn.Linear(3 * 32 * 32, 10)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
            with torch.no_grad():
                self.head.bias[favourite] = 1e-5

        def forward(self, image: Tensor) -> Tensor:
            logits: Tensor = self.head(image.flatten(1))
            return logits

    file = export_onnx(Shy(3), workload.signature(), tmp_path, max_batch=5, opset=18)[0]
    record = compare(Shy(4), by_onnx_runtime(file, workload), workload, max_batch=5).record
    assert record.max_abs_difference < record.tolerance / 20
    assert record.top1_agreement == 0
    assert not record.passed
