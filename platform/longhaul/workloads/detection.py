"""Detection: boxes with a class and a score on spectrogram tiles."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from longhaul.data.samples import Batch
from longhaul.data.spectrograms import SpectrogramSplits, spectrogram_splits
from longhaul.data.subset import share_of
from longhaul.models.faster_rcnn import Detector, Target, build_detector
from longhaul.models.static_detector import Precision, StaticDetector
from longhaul.recipe import Recipe
from longhaul.recipe.inputs import SpectrogramData
from longhaul.recipe.networks import DetectorSection
from longhaul.recipe.problems import DetectionSection
from longhaul.signals.tile_folder import read_front_end
from longhaul.workloads.base import Goal, Signature, TensorSpec
from longhaul.workloads.detection_metrics import AveragePrecision, Boxes, ThresholdScores
from longhaul.workloads.detection_pictures import beside_truth

log = logging.getLogger(__name__)

_SHOWN = 6


class Detection:
    """Faster R-CNN's four losses; precision, recall and F1 at one threshold, and COCO's average precision.

    Args:
        recipe: with `workload.kind: detection`.

    Raises:
        UserError: the tiles are not there, or not in order.
    """

    metric_names = ("precision", "recall", "f1", "map", "map50")

    def __init__(self, recipe: Recipe) -> None:
        problem, network, data = recipe.workload, recipe.model, recipe.data
        assert isinstance(problem, DetectionSection)  # the recipe's schema sees to these three
        assert isinstance(network, DetectorSection)
        assert isinstance(data, SpectrogramData)
        self._problem, self._network, self._data = problem, network, data
        splits = spectrogram_splits(data, recipe.seed)
        self.splits: SpectrogramSplits = replace(splits, train=share_of(splits.train, data.share, recipe.seed))
        self.goal = Goal(problem.goal, "max")
        self._tiles = _made_with(Path(data.root).expanduser())

    def build_model(self, *, initial: bool = True) -> nn.Module:
        """The recipe's detector."""
        section = self._network
        if not initial:
            section = section.model_copy(update={"pretrained": False, "weights": None})
        return build_detector(section, len(self._data.classes), self._data.resolution)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the losses of both stages: objectness and class, and where the boxes are."""
        losses = model(batch["image"], _targets(batch))
        return torch.stack(list(losses.values())).sum()

    def metrics(self) -> MetricCollection:
        """precision, recall, f1, map, map50 and the precision-recall curves (C, 101)."""
        scores = ThresholdScores(self._problem.score, self._problem.iou)
        average = AveragePrecision(len(self._data.classes), self._network.max_detections)
        return MetricCollection({"scores": scores, "average": average}, compute_groups=False)

    def measure(self, model: nn.Module, batch: Batch, metrics: MetricCollection) -> None:
        """One forward pass."""
        metrics.update(detections(*model(batch["image"])[:3]), [_typed(target) for target in _targets(batch)])

    @torch.no_grad()
    def pictures(self, model: nn.Module) -> dict[str, bytes]:
        """`predictions.png`: detections beside the truth, on those test tiles that hold most."""
        samples, device = self.splits.test, next(model.parameters()).device
        crowded = sorted(range(len(samples)), key=lambda index: -len(samples.tiles[index].boxes.bboxes))[:_SHOWN]
        tiles = []
        for index in sorted(crowded):
            sample = samples.read(index, None)
            batch = {name: value[None] for name, value in sample.items()}
            found = detections(*(output.cpu() for output in model(batch["image"].to(device))[:3]))[0]
            tiles.append((samples.tiles[index].png.stem, sample["image"], _targets(batch)[0], found))
        title = f"{len(tiles)} of {len(samples)} test tiles"
        return {"predictions.png": beside_truth(tiles, self._data.classes, title=title, score=self._problem.score)}

    def exportable(self, model: nn.Module, precision: Precision) -> nn.Module:
        """The detector as a graph of fixed shapes, its three equal channels folded into one."""
        assert isinstance(model, Detector)
        return StaticDetector(model, precision=precision)

    def signature(self) -> Signature:
        """`image` (1, T, T) in 0..1 -> `boxes` (D, 4), `scores` (D,), `labels` (D,) that count from 1, `flag` ()."""
        return detector_signature(self._data, self._network, self._tiles)


def detector_signature(data: SpectrogramData, network: DetectorSection, tiles: dict[str, Any] | None = None) -> Signature:
    """What a detector takes and gives; `tiles` says how its tiles are made from a signal."""
    side, most = data.resolution, network.max_detections
    return Signature(
        task="detection",
        inputs=(TensorSpec(name="image", dtype="float32", shape=(1, side, side)),),
        outputs=(
            TensorSpec(name="boxes", dtype="float32", shape=(most, 4)),
            TensorSpec(name="scores", dtype="float32", shape=(most,)),
            TensorSpec(name="labels", dtype="int32", shape=(most,)),
            TensorSpec(name="flag", dtype="float32", shape=()),
        ),
        classes=data.classes,
        preprocess={"resolution": side, "tiles": tiles},
    )


def _made_with(root: Path) -> dict[str, Any] | None:
    """How the tiles were made, for whoever serves the model; None for those of other programs.

    Raises:
        UserError: folders below `root` were made with different settings.
    """
    made = read_front_end(root)
    if made is None:
        log.info("%s has tiles that Longhaul did not make: a model trained on them knows tiles, and no signals", root)
        return None
    return {**made.model_dump(mode="json", exclude={"recordings"}), "sample_rates_hz": list(made.sample_rates_hz)}


def detections(boxes: Tensor, scores: Tensor, labels: Tensor) -> list[Boxes]:
    """A detector's padded outputs, a tile each, without the padding."""
    return [
        _typed({"boxes": box[label > 0], "scores": score[label > 0], "labels": label[label > 0]})
        for box, score, label in zip(boxes, scores, labels, strict=True)
    ]


def _typed(boxes: Boxes) -> Boxes:
    return {name: value.long() if name == "labels" else value.float() for name, value in boxes.items()}


def _targets(batch: Batch) -> list[Target]:
    return [
        {"boxes": boxes[labels > 0], "labels": labels[labels > 0]}
        for boxes, labels in zip(batch["boxes"], batch["labels"], strict=True)
    ]
