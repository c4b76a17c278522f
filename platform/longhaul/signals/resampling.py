"""Spectrogram cells to pixels along one axis: the mean over each pixel's extent, exact where edges do not meet.

A cell's value holds over the whole cell. So one rule serves both ways: with more cells than pixels it averages, cells cut by a
pixel's edge in proportion; with fewer it repeats them. Energy is kept, and the axis stays linear.

Products and sums are separate, in a fixed order: each is rounded by IEEE 754 alone, so the outcome is the same to the bit
however many threads share the work.
"""

from __future__ import annotations

import torch
from torch import Tensor


def average_bins(values: Tensor, pixels: int, out: Tensor, scratch: Tensor) -> None:
    """The mean power in each pixel of the last axis, from squares of real and imaginary parts.

    Args:
        values: (N, bins, 2).
        pixels: how many to make of the bins.
        out: (N, pixels), gets the mean.
        scratch: flat and as large as `values`, overwritten; memory at hand is quicker than fresh memory.
    """
    count, bins, _ = values.shape
    groups, rest = divmod(bins, pixels)
    if rest or groups & (groups - 1):
        out.copy_(_weighted(values[..., 0] + values[..., 1], pixels, axis=1))
        return
    level, free = values.reshape(count, -1), scratch
    while level.shape[1] > pixels:  # neighbours in pairs: half the time of a sum over a short last axis
        pairs = level.view(count, -1, 2)
        size = pairs.shape[0] * pairs.shape[1]
        target = out if pairs.shape[1] == pixels else free[:size].view(count, -1)
        level, free = torch.add(pairs[..., 0], pairs[..., 1], out=target), free[size:]
    if groups > 1:
        out.mul_(1.0 / groups)


def average_frames(values: Tensor, pixels: int) -> Tensor:
    """(frames, R) to (pixels, R)."""
    return _weighted(values, pixels, axis=0)


def _weighted(values: Tensor, pixels: int, axis: int) -> Tensor:
    cells = values.shape[axis]
    if cells == pixels:
        return values
    first, weights = _overlaps(cells, pixels)
    shape = [1, 1]
    shape[axis] = pixels
    total: Tensor | None = None
    for term in range(weights.shape[0]):
        index = (first + term).clamp_(max=cells - 1).to(values.device)  # past the end the weight is 0
        part = values.index_select(axis, index)
        part.mul_(weights[term].to(values.device).view(shape))
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _overlaps(cells: int, pixels: int) -> tuple[Tensor, Tensor]:
    """The first cell under each pixel (pixels,), and the shares of it and those after it (terms, pixels); columns sum to 1."""
    left = torch.arange(pixels, dtype=torch.int64) * cells  # in units in which a cell is `pixels` wide, a pixel `cells`
    right = left + cells
    first = left // pixels
    terms = int(((right - 1) // pixels - first).max()) + 1
    cell = first + torch.arange(terms, dtype=torch.int64)[:, None]
    shared = torch.minimum((cell + 1) * pixels, right) - torch.maximum(cell * pixels, left)
    return first, (shared.clamp(min=0).double() / cells).float()
