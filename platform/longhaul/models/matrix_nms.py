"""Non-maximum suppression as a fixed number of matrix products: static shapes, no loop over boxes, no wait for the GPU.

Greedy suppression keeps a box unless a better kept box overlaps it. That rule has exactly one solution (by induction over
the boxes in order of score), and putting any guess into it settles on that solution: a box is settled one round after all
those that are better and overlap it. So a few rounds do what the loop of `torchvision.ops.nms` does, and two rounds with
the same answer prove that it is the answer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MatrixNms(nn.Module):
    """Greedy non-maximum suppression over boxes that are sorted by score; equals `torchvision.ops.nms` where `unsettled` is 0.

    Args:
        threshold: of two boxes whose IoU is above it, the better one stays.
        iterations: rounds; `rounds_needed` tells how many some boxes need.
    """

    def __init__(self, threshold: float, iterations: int) -> None:
        super().__init__()
        self.threshold = threshold
        self.iterations = iterations

    def forward(self, boxes: Tensor, valid: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Which boxes stay.

        Args:
            boxes: (..., K, 4), the best first.
            valid: (..., K) bool; the others neither stay nor suppress.
            labels: (..., K); where given, boxes suppress only those of their own label.

        Returns:
            keep, (..., K) bool, and unsettled, (...) float32: how many answers the last round still changed.
        """
        suppresses = suppression(boxes, self.threshold, labels)
        keep = before = allowed = valid.float().unsqueeze(-2)  # (..., 1, K), as the product wants it
        for _ in range(self.iterations):
            before, keep = keep, _round(keep, allowed, suppresses)
        return keep.squeeze(-2) > 0.5, (keep - before).abs().sum((-2, -1))


def suppression(boxes: Tensor, threshold: float, labels: Tensor | None = None) -> Tensor:
    """Boxes (..., K, 4), best first -> (..., K, K) float32: 1 where the row's box is better than the column's and overlaps it."""
    left, top, right, bottom = boxes.unbind(-1)
    width = _shared(left, right)
    height = _shared(top, bottom)
    shared = width * height
    area = (right - left) * (bottom - top)
    union = area[..., None] + area[..., None, :] - shared
    order = torch.arange(boxes.shape[-2], device=boxes.device)
    suppresses = (shared > threshold * union) & (order[:, None] < order[None, :])  # a product: no 0 / 0 for empty boxes
    if labels is not None:
        suppresses = suppresses & (labels[..., None] == labels[..., None, :])
    return suppresses.float()


def _shared(low: Tensor, high: Tensor) -> Tensor:
    """How long the intervals low..high, (..., K) each, overlap in pairs: (..., K, K)."""
    first_end = torch.minimum(high[..., None], high[..., None, :])
    last_begin = torch.maximum(low[..., None], low[..., None, :])
    return (first_end - last_begin).clamp(min=0)


@torch.no_grad()
def rounds_needed(boxes: Tensor, valid: Tensor, threshold: float, labels: Tensor | None = None) -> int:
    """The fewest rounds after which `MatrixNms` reports nothing unsettled; arguments as there."""
    suppresses = suppression(boxes, threshold, labels)
    keep = allowed = valid.float().unsqueeze(-2)
    rounds = 0
    while True:
        before, keep = keep, _round(keep, allowed, suppresses)
        rounds += 1
        if torch.equal(before, keep):
            return rounds


def _round(keep: Tensor, allowed: Tensor, suppresses: Tensor) -> Tensor:
    """Those allowed that no kept box suppresses; all numbers are 0, 1 or counts, exact in any float type of 32 bits."""
    return allowed * (keep @ suppresses < 0.5)
