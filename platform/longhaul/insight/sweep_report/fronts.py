"""What accuracy costs: accuracy against latency and against operations, with the cells that nothing beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from longhaul.insight.sweep_report.cells import Cell, families
from longhaul.insight.sweep_report.groups import Group, grouped, test_metric
from longhaul.insight.sweep_report.look import DPI, dress, log_axis, mark

Direction = Literal["max", "min"]
# Where a number goes beside its point, in printer's points; the first that is free is taken.
_OFFSETS = ((-9, 9), (0, 12), (-13, 0), (9, 9), (0, -13), (-11, -10), (13, 0), (11, -10), (-18, 16), (-4, 22), (18, 16), (4, -24))
_WIDTH, _HEIGHT = 13.0, 10.0  # of a number


@dataclass(frozen=True)
class Point:
    """One combination on a chart: its cost (smaller is better) and its value of the goal."""

    group: Group
    cost: float
    value: float


@dataclass(frozen=True)
class Chart:
    """Points under one kind of cost, such as latency in ms."""

    name: str
    unit: str
    points: tuple[Point, ...]


def pareto(points: Sequence[Point], direction: Direction) -> list[Point]:
    """Those that no other point beats: none costs at most as much and is better, or costs less and is as good. Cheapest first."""
    sign = 1 if direction == "max" else -1
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -sign * point.value)):
        if not front or sign * point.value > sign * front[-1].value:
            front.append(point)
    return front


def charts(cells: Sequence[Cell], goal: str) -> list[Chart]:
    """Accuracy/latency and accuracy/operations, of finished cells that have been tested and measured; those with any point.

    Latencies are drawn of one kind of measurement alone (`measured_like`): those of another device compare with nothing.
    """
    metric = test_metric(goal)
    alike = set(measured_like(cells))
    latency, operations = [], []
    for group in grouped(cells):
        value = group.result(metric)
        if value is None or not group.finished:  # not in every fold: the rest would be told for the whole
            continue
        timed = group.mean(lambda cell: cell.profile.single.p50_ms if cell.profile is not None and cell.key in alike else None)
        counted = group.mean(lambda cell: cell.count.flops / 1e9 if cell.count is not None else None)
        if timed is not None:
            latency.append(Point(group, timed, value.mean))
        if counted is not None:
            operations.append(Point(group, counted, value.mean))
    found = [Chart("latency", "ms, batch 1, median", tuple(latency)), Chart("operations", "GFLOPs", tuple(operations))]
    return [chart for chart in found if chart.points]


def measured_like(cells: Sequence[Cell]) -> list[str]:
    """The keys of the cells whose profiles were taken under the conditions that most share: device, precision, threads ..."""
    kinds: dict[tuple[object, ...], list[str]] = {}
    for cell in cells:
        if cell.profile is not None:
            p = cell.profile
            kinds.setdefault((p.device, p.precision, p.tf32, p.threads, p.channels_last), []).append(cell.key)
    return max(kinds.values(), key=len, default=[])


def front_figure(chart: Chart, goal: str, direction: Direction) -> Figure:
    """One chart: colour and marker a family, the front as steps, its points numbered and named beside the chart."""
    front = pareto(chart.points, direction)
    there = families([point.group.first for point in chart.points])
    height = max(4.4, 0.19 * (len(there) + len(front) + 4))
    figure = Figure(figsize=(9.4, height), layout="constrained", dpi=DPI)
    axes = figure.add_subplot()
    axes.step([p.cost for p in front], [p.value for p in front], where="post", color="black", linewidth=1, alpha=0.6, zorder=1)
    for number, family in enumerate(there):
        mine = [point for point in chart.points if point.group.first.family == family]
        look = mark(number)
        on, off = [p for p in mine if p in front], [p for p in mine if p not in front]
        axes.scatter([p.cost for p in off], [p.value for p in off], s=26, alpha=0.45, linewidths=0, **look)
        axes.scatter([p.cost for p in on], [p.value for p in on], s=46, edgecolors="black", linewidths=0.8, **look)
        axes.scatter([], [], s=30, label=family, **look)
    log_axis(axes)
    dress(axes, x=f"{chart.name} ({chart.unit})", y=test_metric(goal), metric=goal)
    axes.margins(0.07)
    _number(figure, axes, chart.points, front)
    beside: dict[str, Any] = {"frameon": False, "fontsize": 8, "alignment": "left"}
    axes.add_artist(axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), title="family", **beside))
    named = [Line2D([], [], linestyle="", label=f"{place}  {point.group.label}") for place, point in enumerate(front, 1)]
    axes.legend(handles=named, loc="lower left", bbox_to_anchor=(1.01, -0.04), title="the front", handlelength=0, **beside)
    return figure


def _number(figure: Figure, axes: Axes, points: Sequence[Point], front: Sequence[Point]) -> None:
    """Write each front point's number beside it, where it covers neither a point nor another number."""
    figure.draw_without_rendering()
    scale = 72 / figure.dpi
    taken = [tuple(axes.transData.transform((point.cost, point.value)) * scale) for point in points]
    for number, point in enumerate(front, 1):
        x, y = axes.transData.transform((point.cost, point.value)) * scale
        free = (o for o in _OFFSETS if all(abs(x + o[0] - a) > _WIDTH or abs(y + o[1] - b) > _HEIGHT for a, b in taken))
        offset = next(free, _OFFSETS[0])
        taken.append((x + offset[0], y + offset[1]))
        axes.annotate(
            str(number), (point.cost, point.value), offset, textcoords="offset points", ha="center", va="center", fontsize=8.5
        )
