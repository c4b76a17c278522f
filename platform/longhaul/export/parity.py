"""Does the exported model say what the trained one says? Both run on the test split, and the answer is recorded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from longhaul.data.loader import batches
from longhaul.errors import UserError
from longhaul.export.manifest import ParityRecord
from longhaul.export.onnx_model import as_tuple
from longhaul.workloads.base import Workload

RELATIVE_TOLERANCE = 1e-3
"""Allowed share of the largest output; rounding in another order of summation stays a hundred times below."""
LEAST_AGREEMENT = 0.995
"""Allowed are ties in the largest class; more of them than this is a different model."""


@dataclass(frozen=True)
class Comparison:
    """The parity record, and the scalar metrics of the ONNX model on the test split."""

    record: ParityRecord
    metrics: dict[str, float]


@dataclass
class _Differences:
    """Running totals over pairs of outputs."""

    largest: float = 0.0
    total: float = 0.0
    elements: int = 0
    largest_output: float = 0.0
    samples: int = 0
    same_class: int = 0

    def add(self, reference: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> None:
        """Count one batch."""
        for ours, theirs in zip(reference, other, strict=True):
            difference = (ours.double() - theirs.double()).abs()
            # NaN compares as smaller than anything: it must not slip through
            worst = float(difference.max()) if bool(difference.isfinite().all()) else math.inf
            self.largest = max(self.largest, worst)
            self.total += float(difference.sum()) if math.isfinite(worst) else math.inf
            self.elements += difference.numel()
            self.largest_output = max(self.largest_output, float(ours.abs().max()))
        self.samples += len(reference[0])
        self.same_class += int((reference[0].flatten(1).argmax(1) == other[0].flatten(1).argmax(1)).sum())


class Recorder(nn.Module):
    """Keeps what a model was given and what it answered."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.calls: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = []

    def forward(self, *inputs: Tensor) -> Any:
        """What the model answers."""
        outputs = self.model(*inputs)
        self.calls.append((inputs, as_tuple(outputs)))
        return outputs


@dataclass
class _Pass:
    """One way through the test split with both models."""

    workload: Workload
    reference: Recorder
    exported: Recorder
    reference_metrics: MetricCollection
    exported_metrics: MetricCollection
    differences: _Differences = field(default_factory=_Differences)
    first: list[tuple[Tensor, ...]] = field(default_factory=list)

    def run(self, max_batch: int) -> None:
        """All batches of the test split, in order."""
        for batch in batches(self.workload.splits.test, max_batch):
            for recorder in (self.reference, self.exported):
                recorder.calls.clear()
            self.workload.measure(self.reference, batch, self.reference_metrics)
            self.workload.measure(self.exported, batch, self.exported_metrics)
            for (inputs, ours), (_, theirs) in zip(self.reference.calls, self.exported.calls, strict=True):
                self.differences.add(ours, theirs)
                if not self.first:
                    self.first.append(inputs)


@torch.no_grad()
def compare(model: nn.Module, exported: nn.Module, workload: Workload, *, max_batch: int) -> Comparison:
    """Run the torch model and the exported one on the test split, in float32 on the CPU.

    Besides the whole split in batches of `max_batch`, its first samples go through the ONNX model in batches of one and of
    a size between, so that the dynamic batch dimension is used in earnest.

    Args:
        model: the torch network, on the CPU; left in eval mode.
        exported: an `EngineModule` of what `export_onnx` made of it.
        workload: gives test split, metrics and signature.
        max_batch: the largest batch of the exported model.

    Raises:
        UserError: the test split is empty.
    """
    if len(workload.splits.test) == 0:
        raise UserError("the test split is empty", "Set data.test_share above 0, or give the data a test/ folder")
    model.eval()
    run = _Pass(workload, Recorder(model), Recorder(exported), workload.metrics(), workload.metrics())
    run.run(max_batch)
    sizes = sorted({1, (max_batch + 1) // 2, max_batch})
    seen = _Differences()  # the same samples again: they count for the differences, not as samples
    for size in sizes:
        inputs = tuple(_fill(tensor, max_batch) for tensor in run.first[0])
        ours = as_tuple(model(*inputs))
        for start in range(0, max_batch - size + 1, size):
            part = as_tuple(exported(*(tensor[start : start + size] for tensor in inputs)))
            seen.add(tuple(tensor[start : start + size] for tensor in ours), part)
    return _result(run, seen, sizes)


def _fill(tensor: Tensor, count: int) -> Tensor:
    """The first `count` samples of a batch, repeated where it holds fewer."""
    return torch.cat([tensor] * math.ceil(count / len(tensor)))[:count]


def _result(run: _Pass, seen: _Differences, sizes: list[int]) -> Comparison:
    goal = run.workload.goal.metric
    ours, theirs = scalars(run.reference_metrics), scalars(run.exported_metrics)
    whole = run.differences
    has_classes = bool(run.workload.signature().classes)
    agreement = whole.same_class / whole.samples if has_classes else None
    largest = max(whole.largest, seen.largest)
    tolerance = RELATIVE_TOLERANCE * max(1.0, whole.largest_output if math.isfinite(whole.largest_output) else 1.0)
    record = ParityRecord(
        samples=whole.samples,
        batch_sizes=tuple(sizes),
        max_abs_difference=largest,
        mean_abs_difference=whole.total / whole.elements,
        top1_agreement=agreement,
        metric=goal,
        torch_metric=ours[goal],
        onnx_metric=theirs[goal],
        tolerance=tolerance,
        passed=largest <= tolerance and (agreement is None or agreement >= LEAST_AGREEMENT),
    )
    return Comparison(record, theirs)


def scalars(metrics: MetricCollection) -> dict[str, float]:
    """The values of the metrics that are one number."""
    return {name: float(value) for name, value in metrics.compute().items() if value.numel() == 1}
