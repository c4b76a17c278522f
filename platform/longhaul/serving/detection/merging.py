"""From the engines' outputs to one list of emissions.

The rule. Of each model, what scores above the bound counts, and of two boxes of one class whose IoU is above the bound the
better one stays (`torchvision.ops.batched_nms`). Between models, boxes are taken by score, the best first; a box that overlaps
one that has been taken, of another model and by more than the bound, is the same emission seen twice: it is not taken, but noted
under that box as a claim. Labels that may share time and frequency (`coexist`) are exempt. Equal scores: the model that is first
in the ensemble goes first.

All in float64: offsets that separate classes would cost float32 boxes their last digits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import batched_nms, box_iou

from longhaul.engines.inference import Array
from longhaul.serving.detection.answers import Claim
from longhaul.signals.geometry import Corners

_ROUNDING = 1e-3  # a score may be this much above 1 before it is no score


@dataclass(frozen=True)
class ModelBoxes:
    """What one model found in a chunk, the best first.

    Attributes:
        tiles: (K,) which tile, from 0.
        boxes: (K, 4) pixels: x_min, y_min, x_max, y_max.
        scores: (K,), 0..1.
        labels: (K,) class names.
    """

    tiles: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Emission:
    """One emission in pixels.

    Attributes:
        model, label, score: whose word it is.
        tile: which of the chunk's tiles, from 0.
        box: on that tile.
        also: the claims that went into it, best first.
    """

    model: str
    label: str
    score: float
    tile: int
    box: Corners
    also: tuple[Claim, ...] = ()


def suppress(outputs: Mapping[str, Array], classes: Sequence[str], *, score: float, iou: float) -> ModelBoxes:
    """One model's detections: above the score, one box an object and class.

    Args:
        outputs: `boxes` (N, D, 4), `scores` (N, D), `labels` (N, D) counting from 1; N tiles.
        classes: names of labels 1, 2, ...
        score: what a detection has more than.
        iou: of two boxes with more, the better one stays.

    Raises:
        ValueError: a number is not finite or no score, or a label has no name: the model is broken.
    """
    scores, labels = outputs["scores"].astype(np.float64), outputs["labels"]
    found = (scores > score) | np.isnan(scores)
    tiles = np.nonzero(found)[0]
    boxes, scores, labels = outputs["boxes"][found].astype(np.float64), scores[found], labels[found].astype(np.int64)
    if not (np.isfinite(boxes).all() and (scores <= 1 + _ROUNDING).all()):
        raise ValueError("the model answered with a number that is not finite, or a score that is none")
    if len(labels) and not (labels.min() >= 1 and labels.max() <= len(classes)):
        raise ValueError(f"the model answered with labels {labels.min()}..{labels.max()}, and has {len(classes)} classes")
    keep = _nms(boxes, scores, tiles * (len(classes) + 1) + labels, iou)
    names = tuple(classes[label - 1] for label in labels[keep])
    return ModelBoxes(tiles[keep], boxes[keep], np.minimum(scores[keep], 1.0), names)


def merge(found: Mapping[str, ModelBoxes], *, iou: float, coexist: Collection[tuple[str, str]] = ()) -> list[Emission]:
    """What all models found, each emission once, the best first.

    Args:
        found: by model, in the ensemble's order.
        iou: boxes of two models with more are the same emission.
        coexist: pairs of labels, in either order, that never are.
    """
    models = [model for model, boxes in found.items() for _ in range(len(boxes))]
    labels = [label for boxes in found.values() for label in boxes.labels]
    if not models:
        return []
    together = [np.concatenate([getattr(boxes, name) for boxes in found.values()]) for name in ("tiles", "boxes", "scores")]
    order = np.argsort(-together[2], kind="stable")
    tiles, boxes, scores = (values[order] for values in together)
    models, labels = [models[i] for i in order], [labels[i] for i in order]
    winner = _winners(_same(tiles, boxes, models, labels, iou, coexist))
    claims: dict[int, list[Claim]] = {}
    for loser in np.flatnonzero(winner != np.arange(len(winner))):
        claim = Claim(model=models[loser], label=labels[loser], score=float(scores[loser]))
        claims.setdefault(int(winner[loser]), []).append(claim)
    return [
        Emission(models[i], labels[i], float(scores[i]), int(tiles[i]), _corners(boxes[i]), tuple(claims.get(i, ())))
        for i in map(int, np.flatnonzero(winner == np.arange(len(winner))))
    ]


def emissions_of(model: str, boxes: ModelBoxes) -> list[Emission]:
    """One model's boxes as emissions, without claims."""
    return [
        Emission(model, label, float(score), int(tile), _corners(box))
        for label, score, tile, box in zip(boxes.labels, boxes.scores, boxes.tiles, boxes.boxes, strict=True)
    ]


def _nms(boxes: NDArray[np.float64], scores: NDArray[np.float64], groups: NDArray[np.int64], iou: float) -> NDArray[np.int64]:
    """Indices of what stays, the best first; boxes suppress only those of their own group."""
    if len(boxes) < 2:
        return np.arange(len(boxes))
    corner = min(float(boxes.min()), 0.0)  # batched_nms moves groups apart by the largest coordinate, and expects none below 0
    kept = batched_nms(torch.from_numpy(boxes - corner), torch.from_numpy(scores), torch.from_numpy(groups), iou).numpy()
    kept.sort()
    return kept[np.argsort(-scores[kept], kind="stable")]  # type: ignore[no-any-return]


def _same(
    tiles: NDArray[np.int64],
    boxes: NDArray[np.float64],
    models: Sequence[str],
    labels: Sequence[str],
    iou: float,
    coexist: Collection[tuple[str, str]],
) -> NDArray[np.bool_]:
    """(K, K): which two would be the same emission."""
    model = np.unique(models, return_inverse=True)[1]
    names, label = np.unique(labels, return_inverse=True)
    number = {name: i for i, name in enumerate(names)}
    apart = np.zeros((len(names), len(names)), bool)
    for one, other in coexist:
        if one in number and other in number:
            apart[number[one], number[other]] = apart[number[other], number[one]] = True
    same = np.zeros((len(tiles), len(tiles)), bool)
    for tile in np.unique(tiles):
        here = np.flatnonzero(tiles == tile)
        overlap = box_iou(*[torch.from_numpy(boxes[here])] * 2).numpy() > iou
        same[np.ix_(here, here)] = overlap
    same &= model[:, None] != model[None, :]
    same &= ~apart[label[:, None], label[None, :]]
    return same


def _winners(same: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For rows by score, the best first: which one each went into; itself if it stays."""
    winner = np.arange(len(same))
    free = np.ones(len(same), bool)
    for row in np.flatnonzero(np.triu(same, 1).any(1)):
        if free[row]:
            lost = same[row] & free
            lost[: row + 1] = False
            winner[lost] = row
            free[lost] = False
    return winner


def _corners(box: NDArray[np.float64]) -> Corners:
    return Corners(*map(float, box))
