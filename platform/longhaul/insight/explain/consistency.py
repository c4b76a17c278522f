"""How stable a model's heat maps are when the same image comes at another resolution.

Maps of R x R are brought to a common grid of `GRID` x `GRID` cells by exact area averaging (a pixel on a border between cells
counts in each by the share that lies there), of their strength: signed maps by absolute value, else fine positive and negative
parts would cancel at one resolution and not at another. On the grid two maps are compared by

- Spearman's rank correlation over the cells (ties get their average rank), and
- the intersection over union of their top regions, the q % strongest cells.

A map without any variation (Grad-CAM where nothing speaks for the class) ranks nothing: its correlation and IoU with any
map count as 0. What chance gives is measured on the same maps: those of different images, compared in the same way.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy.stats import rankdata, t

from longhaul.errors import UserError

GRID = 16
"""Cells along a side of the common grid."""
TOP_PERCENT = (10, 20)
CONFIDENCE = 0.95
RANKS, SHARES = (-1.0, 1.0), (0.0, 1.0)
"""What a rank correlation and an IoU can be."""
_FEWEST = 3  # images; of two the factor is 12.7, and the interval says nothing but that

Floats = npt.NDArray[np.float64]


class Estimate(BaseModel):
    """A mean over images.

    Attributes:
        mean: itself.
        low, high: its 95 % confidence interval by Student's t, as of images drawn at random with values about normal, cut where
            the values end; a bootstrap would cover too little of so few. None below 3 images.
        chance: the mean over pairs of different images; None for a single image.
        images: (N,) the value of each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    low: float | None
    high: float | None
    chance: float | None
    images: tuple[float, ...]


class Agreement(BaseModel):
    """How far two sets of maps of the same images agree.

    Attributes:
        rank_correlation: Spearman's.
        top_iou: IoU of the top q %, by q.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank_correlation: Estimate
    top_iou: dict[int, Estimate]


def to_grid(maps: npt.NDArray[np.floating], cells: int = GRID) -> npt.NDArray[np.float32]:
    """Area averages: (N, H, W) -> (N, cells, cells).

    Raises:
        UserError: a side has fewer pixels than the grid has cells.
    """
    height, width = maps.shape[1:]
    if min(height, width) < cells:
        raise UserError(
            f"maps of {height} x {width} pixels: smaller than the common grid of {cells} x {cells}",
            f"Explain runs of at least {cells} px",
        )
    averaged = _overlaps(height, cells) @ maps.astype(np.float64) @ _overlaps(width, cells).T
    return averaged.astype(np.float32)


def agreement(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> Agreement:
    """Compare maps (N, G, G) of strength on one grid, image by image, and with chance.

    Args:
        first: of N images.
        second: of the same images at another resolution, or by another model.
    """
    one, two = first.reshape(len(first), -1), second.reshape(len(second), -1)
    correlation = estimate(rank_correlations(one, two), RANKS)
    overlap = {percent: estimate(top_ious(one, two, percent), SHARES) for percent in TOP_PERCENT}
    return Agreement(rank_correlation=correlation, top_iou=overlap)


def rank_correlations(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> Floats:
    """(N, N): Spearman's correlation of each row of `first` (N, cells) with each of `second`; 0 where a row is constant."""
    correlations: Floats = _unit_ranks(first) @ _unit_ranks(second).T
    return np.clip(correlations, -1, 1)


def top_ious(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating], percent: float) -> Floats:
    """(N, N): IoU of the top regions of each row of `first` (N, cells) with each of `second`; 0 where one has none."""
    one, two = (top_region(maps, percent).astype(np.float64) for maps in (first, second))
    both = one @ two.T
    either = one.sum(axis=1)[:, None] + two.sum(axis=1)[None] - both
    ious: Floats = both / np.maximum(either, 1)
    return ious


def top_region(maps: npt.NDArray[np.floating], percent: float) -> npt.NDArray[np.bool_]:
    """(N, cells): the strongest `percent` of the cells, those that tie with the weakest of them too.

    Cells at the map's minimum are never in: where less than `percent` of a map is above zero, the region is smaller.
    """
    count = max(round(maps.shape[1] * percent / 100), 1)
    weakest = np.sort(maps, axis=1)[:, -count][:, None]
    return np.asarray((maps >= weakest) & (maps > maps.min(axis=1, keepdims=True)))


def estimate(pairs: Floats, bounds: tuple[float, float]) -> Estimate:
    """The diagonal of (N, N) with its confidence, and the rest of it as chance; no value lies outside `bounds`."""
    same, count = np.diag(pairs), len(pairs)
    mean, values = float(same.mean()), tuple(float(value) for value in same)
    chance = float((pairs.sum() - same.sum()) / (count * (count - 1))) if count > 1 else None
    if count < _FEWEST:
        return Estimate(mean=mean, low=None, high=None, chance=chance, images=values)
    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1) * same.std(ddof=1) / np.sqrt(count))
    low, high = max(mean - half, bounds[0]), min(mean + half, bounds[1])
    return Estimate(mean=mean, low=low, high=high, chance=chance, images=values)


def _overlaps(pixels: int, cells: int) -> Floats:
    """(cells, pixels): the share of each cell that each pixel covers; every row sums to 1."""
    edges = np.linspace(0, pixels, cells + 1)
    left, right = edges[:-1, None], edges[1:, None]
    starts = np.arange(pixels)[None]
    covered = np.clip(np.minimum(right, starts + 1) - np.maximum(left, starts), 0, None)
    shares: Floats = covered / (pixels / cells)
    return shares


def _unit_ranks(maps: npt.NDArray[np.floating]) -> Floats:
    """(N, cells): ranks less their mean, of length 1; zeros where all cells are equal."""
    ranks = rankdata(maps, axis=1)
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    units: Floats = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    return units
