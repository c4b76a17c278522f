"""The goal against the resolution: a panel a family, a line a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from longhaul.insight.curves import CYCLE
from longhaul.insight.sweep_report.cells import Cell, families, models
from longhaul.insight.sweep_report.groups import Group, Spread, grouped, test_metric
from longhaul.insight.sweep_report.look import MARKERS, dress, mark, panels, resolution_axis

Value = Callable[[Group], Spread | None]

_INSIDE = 3  # names that a panel has room for; more stand below it
_LINE = 0.17  # inches that a name takes below a panel
_BELOW = 5.2  # how far below the axes names begin, in heights of one: ticks and the axis's name come first


def accuracy_figure(cells: Sequence[Cell], goal: str, *, value: Value = Group.score, dashed: str | None = None) -> Figure | None:
    """None where fewer than two resolutions have a value.

    Values are solid lines, test results dashed ones. A cell that has not been trained to its end is a hollow mark
    where it stood; marks far below the finished ones are left out. Over folds: the mean, one standard deviation either way.
    Of a search each trial is a point of its model's colour: nothing joins trials that differ in more than the resolution.

    Args:
        cells: of a sweep.
        goal: such as `val/top1`.
        value: of a group; its score without one.
        dashed: the result that is drawn dashed; the goal's own without one.
    """
    dashed = dashed or test_metric(goal)
    measured = [group for group in grouped(cells) if value(group) is not None and group.first.resolution is not None]
    resolutions = sorted({group.first.resolution for group in measured if group.first.resolution is not None})
    if len(resolutions) < 2:
        return None
    shown = families([group.first for group in measured])
    figure, grid = panels(len(shown))
    for family, axes in zip(shown, grid, strict=True):
        mine = [group for group in measured if group.first.family == family]
        if any(group.first.trial is not None for group in mine):
            _draw_trials(axes, mine, value)
        else:
            _draw_family(axes, mine, value, dashed)
        dress(axes, title=family, y=goal, metric=goal)
        resolution_axis(axes, resolutions)
    _make_room(figure, grid)
    _share_range(grid, [edge for group in measured if group.finished for edge in _heights((value(group), group.result(dashed)))])
    return figure


def _draw_family(axes: Axes, groups: Sequence[Group], value: Value, dashed: str) -> None:
    order = models([group.first for group in groups])
    lines = sorted({group.first.line for group in groups}, key=lambda line: (order.index(line.split(" ")[0]), line))
    handles = []
    for number, line in enumerate(lines):
        colour, marker = CYCLE[number % len(CYCLE)], MARKERS[number % len(MARKERS)]
        members = sorted((group for group in groups if group.first.line == line), key=lambda group: group.first.resolution or 0)
        finished = [group for group in members if group.finished]
        _draw(axes, [(group.first.resolution or 0, value(group)) for group in finished], colour, "-")
        for group in members:
            score = value(group)
            assert score is not None  # the caller has seen to it
            face = colour if group.finished else "white"
            axes.plot(
                [group.first.resolution or 0], [score.mean], marker=marker, color=colour, markerfacecolor=face, markersize=5.5
            )
        tests = [(group.first.resolution or 0, group.result(dashed)) for group in finished]
        _draw(axes, tests, colour, (0, (3, 2)))
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=5, label=line))
    handles += [Line2D([], [], color="black", linestyle=(0, (3, 2)), linewidth=1, label=dashed)]
    _legend(axes, handles)


def _draw_trials(axes: Axes, groups: Sequence[Group], value: Value) -> None:
    for number, model in enumerate(models([group.first for group in groups])):
        look = mark(number)
        mine = [(group, score.mean) for group in groups if group.first.model == model and (score := value(group)) is not None]
        for finished in (True, False):
            points = [(group.first.resolution or 0, height) for group, height in mine if group.finished is finished]
            x, y = [resolution for resolution, _ in points], [height for _, height in points]
            face = look["color"] if finished else "none"
            axes.scatter(x, y, s=26, alpha=0.7, marker=look["marker"], edgecolors=look["color"], facecolors=face)
        axes.scatter([], [], s=26, label=model, **look)
    _legend(axes, axes.get_legend_handles_labels()[0])


def _legend(axes: Axes, handles: Sequence[Artist]) -> None:
    """In the panel while it is short; below it where it would cover the lines."""
    if len(handles) <= _INSIDE:
        axes.legend(handles=handles, frameon=False, fontsize=8, loc="best")
    else:
        axes.legend(handles=handles, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=_BELOW)


def _make_room(figure: Figure, grid: Sequence[Axes]) -> None:
    """A taller figure where names stand below its panels, which keep their height."""
    names = max(len(legend.get_texts()) for axes in grid if (legend := axes.get_legend()) is not None)
    place = grid[0].get_subplotspec()
    if names > _INSIDE and place is not None:
        figure.set_figheight(figure.get_figheight() + place.get_gridspec().nrows * _LINE * names)


def _draw(axes: Axes, points: Sequence[tuple[int, Spread | None]], colour: str, style: str | tuple[int, tuple[int, int]]) -> None:
    there = [(resolution, value) for resolution, value in points if value is not None]
    if not there:
        return
    x, means = [resolution for resolution, _ in there], [value.mean for _, value in there]
    axes.plot(x, means, color=colour, linestyle=style, linewidth=1.7 if style == "-" else 1.1)
    if any(value.count > 1 for _, value in there) and style == "-":
        deviations = [value.deviation for _, value in there]
        axes.errorbar(x, means, yerr=deviations, fmt="none", ecolor=colour, elinewidth=1, capsize=2.5, alpha=0.7)


def _heights(values: Sequence[Spread | None]) -> list[float]:
    return [
        edge for value in values if value is not None for edge in (value.mean - value.deviation, value.mean + value.deviation)
    ]


def _share_range(grid: Sequence[Axes], heights: Sequence[float]) -> None:
    """The same vertical range everywhere, as families are compared by eye; decided by the finished cells, where there are any."""
    if not heights:
        heights = [edge for axes in grid for edge in axes.get_ylim()]
    room = max(0.08 * (max(heights) - min(heights)), 1e-3)
    for axes in grid:
        axes.set_ylim(min(heights) - room, max(heights) + room)
