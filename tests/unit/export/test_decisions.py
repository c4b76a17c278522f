"""Pairs of detections: what is the same, what is at the edge, and what is a difference, by precision."""

from __future__ import annotations

import pytest
import torch

from longhaul.export.decisions import BOUNDS, EDGE, Tally
from longhaul.export.manifest import ThresholdRecord
from longhaul.models.faster_rcnn import Detections

Row = tuple[float, float, float, float, float, int]

ROWS: list[Row] = [
    (10, 10, 50, 30, 0.99, 1),
    (60, 60, 90, 90, 0.9, 2),
    (0, 0, 96, 96, 0.6, 1),
    (5, 70, 25, 90, 0.2, 2),
]


def outputs(*tiles: list[Row], most: int = 6) -> Detections:
    """What a detector gives for these tiles."""
    boxes, scores = torch.zeros(len(tiles), most, 4), torch.full((len(tiles), most), -1.0)
    labels = torch.zeros(len(tiles), most, dtype=torch.int32)
    for place, rows in enumerate(tiles):
        for row, (*box, score, label) in enumerate(rows):
            boxes[place, row], scores[place, row], labels[place, row] = torch.tensor(box), score, label
    return boxes, scores, labels, torch.zeros(len(tiles))


def found(reference: Detections, exported: Detections, precision: str = "fp32", threshold: float = 0.5) -> ThresholdRecord:
    tally = Tally(threshold)
    tally.add(reference, exported)
    return tally.record(BOUNDS[precision])


def changed(row: int, **values: float) -> list[Row]:
    names = ("x_min", "y_min", "x_max", "y_max", "score", "label")
    rows = [list(one) for one in ROWS]
    for name, value in values.items():
        rows[row][names.index(name)] = value
    return [tuple(one) for one in rows]  # type: ignore[misc]


def test_the_same_detections_pass_in_any_order() -> None:
    record = found(outputs(ROWS, ROWS), outputs(list(reversed(ROWS)), ROWS))
    assert (record.reference, record.exported, record.matched, record.at_edge, record.differing_tiles) == (6, 6, 6, 0, 0)
    assert (record.box_max_px, record.box_p99_px, record.score_max) == (0, 0, 0)
    assert record.passed
    assert record.matched_share == 1


def test_only_what_is_above_the_threshold_counts() -> None:
    without = outputs(ROWS[:3])
    assert found(outputs(ROWS), without).passed
    low = found(outputs(ROWS), without, threshold=0.05)
    assert (low.reference, low.exported, low.matched) == (4, 3, 3)
    assert not low.passed


@pytest.mark.parametrize(
    ("exported", "matched"),
    [
        (ROWS[1:], 2),
        ([*ROWS, (30, 30, 40, 40, 0.7, 2)], 3),
        (changed(0, label=2), 2),
        (changed(0, x_max=58.0), 2),
        (changed(0, x_max=float("nan")), 2),
        (changed(0, score=float("nan")), 2),
        (changed(0, score=0.3), 2),
        ([], 0),
    ],
    ids=["one missing", "one more", "other label", "moved", "box is NaN", "score is NaN", "below the threshold", "nothing"],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_difference_is_counted_and_refused(exported: list[Row], matched: int, precision: str) -> None:
    record = found(outputs(ROWS, ROWS), outputs(exported, ROWS), precision)
    assert record.matched == matched + 3
    assert record.differing_tiles == 1
    assert not record.passed
    assert record.matched_share < 0.99


@pytest.mark.parametrize(
    ("values", "passes"),
    [
        ({"x_max": 50.009}, {"fp32", "fp16", "bf16"}),
        ({"x_max": 50.02}, {"fp16", "bf16"}),
        ({"x_max": 51.1}, set()),
        ({"score": 0.98991}, {"fp32", "fp16", "bf16"}),
        ({"score": 0.97}, {"fp16", "bf16"}),
    ],
)
def test_bounds_by_precision(values: dict[str, float], passes: set[str]) -> None:
    exported = outputs(changed(0, **values))
    assert {name for name in BOUNDS if found(outputs(ROWS), exported, name).passed} == passes


def test_one_moved_box_among_two_hundred_passes_at_half_precision_alone() -> None:
    many = [ROWS[:2]] * 100
    record = found(outputs(*many), outputs(changed(0, x_max=52.0)[:2], *many[1:]), "fp16")
    assert record.box_max_px == pytest.approx(2)
    assert record.box_p99_px == 0
    assert record.passed
    assert not found(outputs(*many), outputs(changed(0, x_max=52.0)[:2], *many[1:]), "fp32").passed


def test_one_missing_in_a_hundred_passes_at_half_precision_alone_and_three_do_not() -> None:
    many = [ROWS[:2]] * 100
    one = outputs(ROWS[:1], *many[1:])
    assert found(outputs(*many), one, "fp16").passed
    assert not found(outputs(*many), one, "fp32").passed
    assert not found(outputs(*many), outputs(*[ROWS[:1]] * 3, *many[3:]), "fp16").passed


def test_a_detection_at_the_thresholds_edge_is_no_difference_but_counted() -> None:
    above, below = changed(2, score=0.5 + EDGE / 2), changed(2, score=0.5 - EDGE / 2)
    for ours, theirs in ((above, below), (below, above)):
        record = found(outputs(ours), outputs(theirs))
        assert (record.matched, record.at_edge, record.differing_tiles) == (2, 1, 0)
        assert record.passed
    beyond = found(outputs(changed(2, score=0.5 + 3 * EDGE)), outputs(below))
    assert (beyond.at_edge, beyond.differing_tiles, beyond.passed) == (0, 1, False)


def test_each_detection_has_one_partner() -> None:
    twice = [ROWS[0], (10, 10, 50.5, 30, 0.98, 1)]
    record = found(outputs(ROWS[:1]), outputs(twice))  # type: ignore[arg-type]
    assert (record.reference, record.exported, record.matched) == (1, 2, 1)
    assert not record.passed


def test_empty_boxes_have_no_partner_and_harm_nobody() -> None:
    empty: Row = (5, 5, 5, 5, 0.8, 1)
    record = found(outputs([*ROWS, empty]), outputs([*ROWS, empty]))
    assert (record.matched, record.reference) == (3, 4)
