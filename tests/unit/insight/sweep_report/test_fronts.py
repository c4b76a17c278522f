"""Pareto fronts, and what may be compared on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longhaul.insight.sweep_report.cells import Cell, read_cells
from longhaul.insight.sweep_report.fronts import Chart, Point, charts, front_figure, measured_like, pareto
from longhaul.insight.sweep_report.groups import Group
from longhaul.resilience.sweep_directory import CellRecord, SweepDirectory

CELL = Cell(CellRecord(key="k", coordinates={}, recipe=""), None, None, "net", "cnn", 32, "cnn/net/32")
POINTS = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), max_size=12)


def beats(one: Point, other: Point, sign: int) -> bool:
    """By the definition: nowhere worse, and better somewhere."""
    no_worse = one.cost <= other.cost and sign * one.value >= sign * other.value
    return no_worse and (one.cost, one.value) != (other.cost, other.value)


@pytest.mark.parametrize("direction", ["max", "min"])
@given(POINTS)
def test_the_front_is_what_nothing_beats(direction: Literal["max", "min"], numbers: list[tuple[int, int]]) -> None:
    points = [Point(Group((CELL,)), cost, value) for cost, value in numbers]
    sign = 1 if direction == "max" else -1
    unbeaten = {(p.cost, p.value) for p in points if not any(beats(other, p, sign) for other in points)}
    front = [(point.cost, point.value) for point in pareto(points, direction)]
    assert len(front) == len(set(front))
    assert set(front) == unbeaten
    assert front == sorted(front)


def test_latencies_of_another_device_are_not_drawn_with_the_rest(small_grid: SweepDirectory) -> None:
    cells = read_cells(small_grid, small_grid.state())
    assert cells[0].profile is not None
    elsewhere = replace(cells[0], profile=cells[0].profile.model_copy(update={"device": "Some GPU"}))
    mixed = [elsewhere, *cells[1:]]
    assert measured_like(mixed) == [cell.key for cell in cells[1:3]]
    latency, operations = charts(mixed, "val/top1")
    assert len(latency.points) == 2
    assert len(operations.points) == 3  # what a network costs on paper is the same everywhere


def test_numbers_on_the_front_stand_apart() -> None:
    points = tuple(Point(Group((CELL,)), 1 + 0.002 * i, 0.9 + 0.0001 * i) for i in range(6))
    figure = front_figure(Chart("latency", "ms", (*points, Point(Group((CELL,)), 10.0, 0.95))), "val/top1", "max")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 7
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_configuration_that_failed_in_one_fold_is_on_no_chart(small_grid: SweepDirectory) -> None:
    cells = read_cells(small_grid, small_grid.state())
    whole = len(charts(cells, "val/top1")[1].points)
    failed = replace(cells[0], record=cells[0].record.model_copy(update={"standing": "failed"}))
    assert len(charts([*cells, failed], "val/top1")[1].points) == whole - 1
