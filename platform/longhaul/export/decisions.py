"""Does an exported detector decide as the trained one does? Detections are paired, tile by tile, and what differs is counted.

Outputs cannot be compared element by element: two detections of nearly equal score change places, and all after them count as
different. And one threshold is not enough: a wrong pooling of large boxes left every detection above 0.5 as it was and changed
each tile at 0.05. So pairs are made, above two scores, at every batch size that was exported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchvision.ops import box_iou

from longhaul.data.loader import batches
from longhaul.data.samples import Batch
from longhaul.errors import UserError
from longhaul.export.manifest import BoundsRecord, DecisionsRecord, ParityRecord, RuntimeRecord, ThresholdRecord
from longhaul.export.parity import Comparison, Recorder, scalars
from longhaul.models.faster_rcnn import Detections, Detector
from longhaul.models.static_detector import iterations_needed
from longhaul.workloads.base import Precision, Workload

Runtime = Literal["onnxruntime", "tensorrt", "tensorrt_rtx"]

THRESHOLDS = (0.5, 0.05)
LEAST_IOU = 0.9
EDGE = 1e-4
"""A detection without a partner whose score is this near to the threshold is no difference: the partner is just below."""
_ROUGH = BoundsRecord(least_matched=0.99, box_max_px=None, box_p99_px=1.0, score_max=None, map_drop=0.002)
BOUNDS = MappingProxyType(
    {
        "fp32": BoundsRecord(least_matched=1.0, box_max_px=1e-2, box_p99_px=None, score_max=1e-4, map_drop=0.002),
        "fp16": _ROUGH,  # no maximum: at half precision an overlapping proposal may win now and then
        "bf16": _ROUGH,
    }
)
"""What passes, by the precision of the exported graph."""

_LEAST_TILES = 100
_COUNTED = 16  # tiles on which rounds of suppression are counted


@dataclass
class Tally:
    """Running counts of pairs above one score."""

    threshold: float
    reference: int = 0
    exported: int = 0
    matched: int = 0
    at_edge: int = 0
    differing_tiles: int = 0
    box_differences: list[float] = field(default_factory=list)
    score_differences: list[float] = field(default_factory=list)

    def add(self, reference: Detections, exported: Detections) -> None:
        """Count a batch of outputs: boxes (N, D, 4), scores (N, D), labels (N, D); what is above the threshold counts."""
        for place in range(len(reference[0])):
            self._add_tile(*(_above(outputs, place, self.threshold) for outputs in (reference, exported)))

    def record(self, bounds: BoundsRecord) -> ThresholdRecord:
        """What was counted, against the bounds."""
        boxes, scores = torch.tensor(self.box_differences), torch.tensor(self.score_differences)
        record = ThresholdRecord(
            threshold=self.threshold,
            reference=self.reference,
            exported=self.exported,
            matched=self.matched,
            at_edge=self.at_edge,
            differing_tiles=self.differing_tiles,
            box_max_px=float(boxes.max()) if len(boxes) else 0.0,
            box_p99_px=float(boxes.quantile(0.99, interpolation="higher")) if len(boxes) else 0.0,
            score_max=float(scores.max()) if len(scores) else 0.0,
            passed=False,
        )
        passed = (
            record.matched_share >= bounds.least_matched
            and _within(record.box_max_px, bounds.box_max_px)
            and _within(record.box_p99_px, bounds.box_p99_px)
            and _within(record.score_max, bounds.score_max)
        )
        return record.model_copy(update={"passed": passed})

    def _add_tile(self, reference: _Found, exported: _Found) -> None:
        self.reference += len(reference.scores)
        self.exported += len(exported.scores)
        ours, theirs = pairs(reference, exported)
        self.matched += len(ours)
        self.box_differences += (reference.boxes[ours] - exported.boxes[theirs]).abs().amax(1).tolist()
        self.score_differences += (reference.scores[ours] - exported.scores[theirs]).abs().tolist()
        alone = [_without(reference.scores, ours), _without(exported.scores, theirs)]
        edge = sum(int(((scores - self.threshold).abs() <= EDGE).sum()) for scores in alone)
        self.at_edge += edge
        self.differing_tiles += int(sum(map(len, alone)) > edge)


@dataclass(frozen=True)
class _Found:
    """One tile's detections above a score: boxes (K, 4), scores (K,), labels (K,)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def _above(outputs: Detections, place: int, threshold: float) -> _Found:
    boxes, scores, labels = (output[place].cpu() for output in outputs[:3])
    sure = scores > threshold
    return _Found(boxes[sure].float(), scores[sure].float(), labels[sure])


def pairs(reference: _Found, exported: _Found) -> tuple[list[int], list[int]]:
    """Indices of partners: same label, IoU of at least 0.9, one to one; the nearest choose first."""
    overlap = box_iou(reference.boxes, exported.boxes)
    overlap[reference.labels[:, None] != exported.labels[None]] = 0
    overlap = overlap.nan_to_num(0.0)
    ours: list[int] = []
    theirs: list[int] = []
    while overlap.numel() and float(overlap.max()) >= LEAST_IOU:
        row, column = divmod(int(overlap.argmax()), overlap.shape[1])
        ours.append(row)
        theirs.append(column)
        overlap[row] = 0
        overlap[:, column] = 0
    return ours, theirs


def _without(scores: Tensor, places: list[int]) -> Tensor:
    alone = torch.ones(len(scores), dtype=torch.bool)
    alone[places] = False
    return scores[alone]


def _within(value: float, bound: float | None) -> bool:
    return bound is None or value <= bound


@dataclass
class _Side:
    """One runtime on its way through the test split."""

    models: Mapping[int, nn.Module]
    metrics: MetricCollection
    unsettled: int = 0
    tallies: list[Tally] = field(default_factory=lambda: [Tally(threshold) for threshold in THRESHOLDS])

    def __post_init__(self) -> None:
        self.sizes = tuple(sorted(self.models))
        self.model = Recorder(self.models[self.sizes[-1]])  # by which all tiles go

    def add(self, reference: Detections, exported: Detections) -> None:
        for tally in self.tallies:
            tally.add(reference, exported)

    def record(self, name: Runtime, torch_map: float, exported_map: float, bounds: BoundsRecord) -> RuntimeRecord:
        thresholds = tuple(tally.record(bounds) for tally in self.tallies)
        something = all(record.reference for record in thresholds)  # nothing to compare is no agreement
        return RuntimeRecord(
            runtime=name,
            batch_sizes=self.sizes,
            thresholds=thresholds,
            torch_map=torch_map,
            map=exported_map,
            unsettled_tiles=self.unsettled,
            passed=something and all(one.passed for one in thresholds) and torch_map - exported_map <= bounds.map_drop,
        )


@torch.no_grad()
def compare_decisions(
    model: Detector, exported: Mapping[Runtime, Mapping[int, nn.Module]], workload: Workload, precision: Precision
) -> Comparison:
    """Run the torch model and the exported files on the test split and pair their detections.

    A test split of fewer than a hundred tiles is filled up from the validation split, for pairs alone. All go through the largest
    batch size; the first, as many as that holds, also through each of the others. The comparison's metrics are those of the
    first runtime on the test split.

    Args:
        model: the trained detector in float32; left in evaluation mode.
        exported: by runtime, ONNX Runtime first: batch size -> an `EngineModule` of the file for that size.
        workload: gives test split and metrics.
        precision: of the exported graphs; decides what passes.

    Raises:
        UserError: the test split is empty.
    """
    if len(workload.splits.test) == 0:
        raise UserError("the test split is empty", "Set data.test_share above 0, or give more recordings")
    model.eval()
    reference, reference_metrics = Recorder(model), workload.metrics()
    sides = {name: _Side(models, workload.metrics()) for name, models in exported.items()}
    largest = max(side.sizes[-1] for side in sides.values())
    tiles, images = 0, []
    for batch, counts in _tiles(workload, largest):
        ours = _measured(workload, reference, batch, reference_metrics if counts else workload.metrics())
        tiles += len(ours[0])
        images.append(reference.calls[0][0][0])
        for side in sides.values():
            theirs = _measured(workload, side.model, batch, side.metrics if counts else workload.metrics())
            side.add(ours, theirs)
            side.unsettled += int((theirs[3] != 0).sum())
            if len(images) == 1:  # every size must be right, and one batch shows it
                for size in side.sizes[:-1]:
                    side.add(ours, _four(side.models[size](images[0])))
    bounds, values = BOUNDS[precision], scalars(reference_metrics)
    found = {name: scalars(side.metrics) for name, side in sides.items()}
    records = [side.record(name, _map(workload, values), _map(workload, found[name]), bounds) for name, side in sides.items()]
    few = list(islice((image[None] for part in images for image in part), _COUNTED))
    first, second = iterations_needed(model, few)
    decisions = DecisionsRecord(
        precision=precision,
        bounds=bounds,
        tiles=tiles,
        rpn_iterations=first,
        detection_iterations=second,
        iteration_tiles=len(few),
        runtimes=tuple(records),
    )
    main = next(iter(sides))
    return Comparison(_parity(decisions, sides[main], workload, values, found[main]), found[main])


def _tiles(workload: Workload, size: int) -> Iterator[tuple[Batch, bool]]:
    """Batches of the test split, which count for the metrics, and after them what is missing of a hundred tiles."""
    test, validation = workload.splits.test, workload.splits.validation
    yield from ((batch, True) for batch in batches(test, size))
    missing = math.ceil(max(_LEAST_TILES - len(test), 0) / size)
    if list(test.ids) != list(validation.ids):  # without a test split of its own, validation stands for it
        yield from ((batch, False) for batch in islice(batches(validation, size), missing))


def _parity(
    decisions: DecisionsRecord,
    side: _Side,
    workload: Workload,
    values: Mapping[str, float],
    found: Mapping[str, float],
) -> ParityRecord:
    differences = side.tallies[-1].box_differences  # the lowest threshold has them all
    bounds, goal = decisions.bounds, workload.goal.metric
    bound = bounds.box_max_px if bounds.box_max_px is not None else bounds.box_p99_px
    assert bound is not None
    return ParityRecord(
        samples=len(workload.splits.test),
        batch_sizes=side.sizes,
        max_abs_difference=max(differences, default=0.0),
        mean_abs_difference=sum(differences) / max(len(differences), 1),
        top1_agreement=None,
        metric=goal,
        torch_metric=values[goal],
        onnx_metric=found[goal],
        tolerance=bound,
        passed=decisions.passed,
        decisions=decisions,
    )


def _measured(workload: Workload, model: Recorder, batch: dict[str, Tensor], metrics: MetricCollection) -> Detections:
    """What the model gave while the workload measured it."""
    model.calls.clear()
    workload.measure(model, batch, metrics)
    ((_, outputs),) = model.calls
    return _four(outputs)


def _four(outputs: tuple[Tensor, ...]) -> Detections:
    boxes, scores, labels, flag = outputs
    return boxes, scores, labels, flag


def _map(workload: Workload, values: Mapping[str, float]) -> float:
    """Mean average precision, or the goal where a workload has none."""
    return values["map"] if "map" in values else values[workload.goal.metric]
