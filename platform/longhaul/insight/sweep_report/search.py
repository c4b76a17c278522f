"""What a search found: the score against each field that varies, and the best so far against the trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from longhaul.insight.curves import BLUE, GREY, ORANGE
from longhaul.insight.sweep_report.cells import FOLD, MODEL, RESOLUTION, Cell, plain
from longhaul.insight.sweep_report.groups import Group, Spread, grouped
from longhaul.insight.sweep_report.look import DPI, dress, log_axis, panels
from longhaul.recipe.sweep import Choice, LogUniform, SweepRecipe

_SPREAD = 0.16  # how far the points of one choice lie apart, in distances between choices
_DECADES = 20.0  # numbers of a grid that reach over such a factor get a logarithmic axis


@dataclass(frozen=True)
class Field:
    """A field that varies; `kind` is the axis that shows it."""

    name: str
    kind: Literal["linear", "log", "choices"]


def varied_fields(sweep: SweepRecipe | None, cells: Sequence[Cell]) -> list[Field]:
    """What varies besides the resolution (and, in a grid, the model), which have charts of their own.

    Args:
        sweep: what was asked for; None where that cannot be read: the cells then tell.
        cells: all of the sweep.
    """
    if sweep is not None and sweep.search is not None:
        kinds = {name: _kind_of(domain) for name, domain in sweep.search.space.items()}
        return [Field(name, kind) for name, kind in kinds.items()]
    names = dict.fromkeys(name for cell in cells for name in cell.record.coordinates)
    found = []
    for name in names:
        values = [cell.record.coordinates.get(name) for cell in cells]
        if name not in (MODEL, RESOLUTION, FOLD) and len({plain(value) for value in values}) > 1:
            found.append(Field(name, _kind_of_values(values)))
    return found


def fields_figure(
    cells: Sequence[Cell], fields: Sequence[Field], goal: str, *, value: Callable[[Group], Spread | None] = Group.score
) -> Figure | None:
    """A panel a field: finished trials full, those that ended early hollow; over folds the mean. None without values.

    Args:
        cells: of a sweep.
        fields: that vary.
        goal: what `value` is called.
        value: of a group; its score without one.
    """
    scored = [(group, found.mean) for group in grouped(cells) if (found := value(group)) is not None]
    if not scored or not fields:
        return None
    figure, grid = panels(len(fields))
    for field, axes in zip(fields, grid, strict=True):
        _draw_field(axes, field, scored)
        dress(axes, x=field.name, y=goal, metric=goal)
    return figure


def progress_figure(cells: Sequence[Cell], goal: str, direction: Literal["max", "min"]) -> Figure | None:
    """Each trial's score in the order in which they were drawn, and the best so far; None without scores."""
    groups = grouped(cells)
    points = [(number, group, score.mean) for number, group in enumerate(groups, 1) if (score := group.score()) is not None]
    if not points:
        return None
    figure = Figure(figsize=(8.4, 3.4), layout="constrained", dpi=DPI)
    axes = figure.add_subplot()
    better = np.maximum if direction == "max" else np.minimum
    numbers, values = [number for number, _, _ in points], [value for _, _, value in points]
    axes.step(numbers, better.accumulate(values), where="post", color=ORANGE, linewidth=1.8, label="best so far")
    _scatter(axes, numbers, values, [group for _, group, _ in points])
    dress(axes, x="trial", y=goal, metric=goal)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8)
    return figure


def _draw_field(axes: Axes, field: Field, scored: Sequence[tuple[Group, float]]) -> None:
    given = [(group.first.record.coordinates.get(field.name), group, score) for group, score in scored]
    there = [(value, group, score) for value, group, score in given if value is not None]
    if field.kind == "choices":
        names = sorted({plain(value) for value, _, _ in there})
        # Golden-ratio steps spread the points of one choice evenly, and the same way each time.
        aside = [((number * 0.618034) % 1 - 0.5) * 2 * _SPREAD for number in range(len(there))]
        x: list[Any] = [names.index(plain(value)) + shift for (value, _, _), shift in zip(there, aside, strict=True)]
        long = max(map(len, names), default=0) > 12 or len(names) > 6
        axes.set_xticks(
            range(len(names)), [name[:28] for name in names], rotation=30 if long else 0, ha="right" if long else "center"
        )
        axes.set_xlim(-0.5, len(names) - 0.5)
    else:
        x = [value for value, _, _ in there]
    _scatter(axes, x, [score for _, _, score in there], [group for _, group, _ in there])
    if field.kind == "log" and there:
        log_axis(axes, room=40)


def _scatter(axes: Axes, x: Sequence[Any], y: Sequence[float], groups: Sequence[Group]) -> None:
    for finished in (True, False):
        mine = [(a, b) for a, b, group in zip(x, y, groups, strict=True) if group.finished is finished]
        if mine:
            across, up = zip(*mine, strict=True)
            face, edge, label = (BLUE, BLUE, "finished") if finished else ("none", GREY, "ended early")
            axes.scatter(across, up, s=24, alpha=0.85, label=label, facecolors=face, edgecolors=edge)


def _kind_of(domain: object) -> Literal["linear", "log", "choices"]:
    return "choices" if isinstance(domain, Choice) else "log" if isinstance(domain, LogUniform) else "linear"


def _kind_of_values(values: Sequence[Any]) -> Literal["linear", "log", "choices"]:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        return "choices"
    return "log" if min(numbers) > 0 and max(numbers) / min(numbers) >= _DECADES else "linear"
