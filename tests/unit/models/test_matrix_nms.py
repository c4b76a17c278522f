"""Rounds of a matrix product suppress exactly what torchvision's loop suppresses, and say so where they are too few."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, nms

from longhaul.models.matrix_nms import MatrixNms, rounds_needed

_ENOUGH = 64


def _boxes(seed: int, count: int, spread: float) -> Tensor:
    """Boxes (K, 4) of 0 to 40 pixels; a small spread piles them up."""
    generator = torch.Generator().manual_seed(seed)
    corner = spread * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + 40 * torch.rand(count, 2, generator=generator)], dim=1)


def _kept(places: Tensor, count: int) -> Tensor:
    keep = torch.zeros(count, dtype=torch.bool)
    keep[places] = True
    return keep


def _clear(boxes: Tensor, threshold: float) -> bool:
    """No pair so near to the threshold that rounding decides."""
    return bool((box_iou(boxes, boxes) - threshold).abs().min() > 1e-6)


CASES = {
    "seed": st.integers(0, 10_000),
    "count": st.integers(1, 120),
    "spread": st.sampled_from([5.0, 40.0, 400.0]),
    "threshold": st.sampled_from([0.3, 0.5, 0.7]),
}


@settings(max_examples=80, deadline=None)
@given(**CASES)
def test_it_keeps_what_torchvision_keeps(seed: int, count: int, spread: float, threshold: float) -> None:
    boxes = _boxes(seed, count, spread)
    if not _clear(boxes, threshold):
        return
    keep, unsettled = MatrixNms(threshold, _ENOUGH)(boxes, torch.ones(count, dtype=torch.bool))
    assert torch.equal(keep, _kept(nms(boxes, torch.arange(count, 0, -1).float(), threshold), count))
    assert float(unsettled) == 0


@settings(max_examples=60, deadline=None)
@given(**CASES)
def test_boxes_of_other_labels_do_not_count(seed: int, count: int, spread: float, threshold: float) -> None:
    boxes = _boxes(seed, count, spread)
    if not _clear(boxes, threshold):
        return
    labels = torch.arange(count) % 3
    keep, unsettled = MatrixNms(threshold, _ENOUGH)(boxes, torch.ones(count, dtype=torch.bool), labels)
    assert torch.equal(keep, _kept(batched_nms(boxes, torch.arange(count, 0, -1).float(), labels, threshold), count))
    assert float(unsettled) == 0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), threshold=st.sampled_from([0.5, 0.7]))
def test_what_is_not_valid_neither_stays_nor_suppresses(seed: int, threshold: float) -> None:
    boxes = _boxes(seed, 60, 20.0)
    if not _clear(boxes, threshold):
        return
    valid = torch.rand(60, generator=torch.Generator().manual_seed(seed + 1)) < 0.6
    keep, _ = MatrixNms(threshold, _ENOUGH)(boxes, valid)
    expected = torch.zeros(60, dtype=torch.bool)
    places = valid.nonzero()[:, 0]
    expected[places[nms(boxes[valid], torch.arange(len(places), 0, -1).float(), threshold)]] = True
    assert torch.equal(keep, expected)


def test_empty_boxes_all_stay_as_in_torchvision() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10], [0, 0, 10, 10]])
    keep, _ = MatrixNms(0.5, _ENOUGH)(boxes, torch.ones(4, dtype=torch.bool))
    assert keep.tolist() == [True, True, True, False]
    assert nms(boxes, torch.arange(4, 0, -1).float(), 0.5).tolist() == [0, 1, 2]


def _chain(links: int) -> Tensor:
    """Each box overlaps the next one alone by more than a half: whether one stays hangs on all before it."""
    x = 10.0 * torch.arange(links)
    return torch.stack([x, torch.zeros(links), x + 32, torch.full((links,), 10.0)], dim=1)


def test_too_few_rounds_are_reported_and_enough_of_them_are_counted() -> None:
    boxes, valid = _chain(20), torch.ones(20, dtype=torch.bool)
    need = rounds_needed(boxes, valid, 0.5)
    assert need == 20
    keep, unsettled = MatrixNms(0.5, need)(boxes, valid)
    assert float(unsettled) == 0
    assert torch.equal(keep, _kept(nms(boxes, torch.arange(20, 0, -1).float(), 0.5), 20))
    assert float(MatrixNms(0.5, need - 1)(boxes, valid)[1]) > 0


def test_batches_and_levels_are_independent() -> None:
    piles = torch.stack([torch.stack([_boxes(seed + level, 50, 20.0) for level in range(3)]) for seed in (0, 7)])  # (2, 3, K, 4)
    valid = torch.ones(2, 3, 50, dtype=torch.bool)
    keep, unsettled = MatrixNms(0.5, _ENOUGH)(piles, valid)
    assert unsettled.shape == (2, 3)
    for image in range(2):
        for level in range(3):
            assert torch.equal(keep[image, level], MatrixNms(0.5, _ENOUGH)(piles[image, level], valid[0, 0])[0])
