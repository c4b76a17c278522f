"""How good detections are: precision, recall and F1 at one threshold, COCO's average precision without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_iou

Boxes = dict[str, Tensor]
"""`boxes` (B, 4), `labels` (B,), and of detections `scores` (B,)."""


class ThresholdScores(Metric):
    """Precision, recall and F1 over all classes, counting detections of at least `score` that overlap the truth by `iou`.

    Each true box is found at most once, by the best-scored detection of its class that overlaps it most among those still to
    be found (as PASCAL VOC and COCO match).
    """

    full_state_update = False
    found: Tensor
    given: Tensor
    true: Tensor

    def __init__(self, score: float, iou: float) -> None:
        super().__init__()
        self._score, self._iou = score, iou
        for name in ("found", "given", "true"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, detections: Sequence[Boxes], targets: Sequence[Boxes]) -> None:
        """Count a batch, one entry a tile."""
        for mine, truth in zip(detections, targets, strict=True):
            sure = mine["scores"] >= self._score
            boxes, labels, scores = mine["boxes"][sure], mine["labels"][sure], mine["scores"][sure]
            self.given += len(boxes)
            self.true += len(truth["boxes"])
            self.found += int((matches(boxes, labels, scores, truth, self._iou) >= 0).sum())

    def compute(self) -> dict[str, Tensor]:
        """`precision`, `recall` and `f1`; 0 where nothing was given or nothing is there."""
        found, given, true = self.found.double(), self.given.double(), self.true.double()
        return {
            "precision": found / given.clamp(min=1),
            "recall": found / true.clamp(min=1),
            "f1": 2 * found / (given + true).clamp(min=1),
        }


def matches(boxes: Tensor, labels: Tensor, scores: Tensor, truth: Boxes, iou: float) -> Tensor:
    """For each detection (B,) the true box that it finds, or -1; the best-scored one chooses first."""
    found = torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
    if not len(boxes) or not len(truth["boxes"]):
        return found
    overlap = box_iou(boxes, truth["boxes"])
    overlap[labels[:, None] != truth["labels"][None]] = 0
    for row in scores.argsort(descending=True, stable=True):
        best, place = overlap[row].max(dim=0)
        if best >= iou:
            found[row] = place
            overlap[:, place] = 0
    return found


class AveragePrecision(MeanAveragePrecision):
    """COCO's mean average precision, by pycocotools: `map` over IoU 0.5 to 0.95, `map50` at 0.5, and the curves at 0.5.

    Wraps `torchmetrics.detection.MeanAveragePrecision`.
    """

    def __init__(self, classes: int, detections: int) -> None:
        super().__init__(max_detection_thresholds=[1, 10, max(detections, 11)], extended_summary=True, backend="pycocotools")
        self.warn_on_many_detections = False
        self._classes = classes

    def compute(self) -> dict[str, Any]:
        """`map`, `map50` (0 where there is no true box), and `pr_curves` (C, 101): precision at recall 0, 0.01 ... 1."""
        result = super().compute()
        # Not torchmetrics' own `map`: pycocotools gives -1 for it where the most detections are not exactly 100.
        precision = torch.as_tensor(result["precision"])  # (IoU, recall, class, area, detections), -1 where it is not defined
        precision = precision[:, :, :, 0, -1] if precision.numel() else torch.zeros(10, 101, 0)
        curves = torch.zeros(self._classes, 101)
        for place, label in enumerate(torch.as_tensor(result["classes"]).flatten().tolist()):
            if place < precision.shape[2] and 1 <= label <= self._classes:
                curves[int(label) - 1] = precision[0, :, place].clamp(min=0)
        return {"map": _mean(precision), "map50": _mean(precision[:1]), "pr_curves": curves}


def _mean(precision: Tensor) -> Tensor:
    """Over what is defined; 0 where nothing is."""
    defined = precision[precision > -1]
    return defined.mean() if defined.numel() else torch.zeros(())
