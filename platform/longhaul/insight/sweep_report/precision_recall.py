"""How well detectors detect: precision over recall of the best cells, average precision against what varies."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.figure import Figure

from longhaul.insight.curves import draw_precision_recall, precision_recall_figure
from longhaul.insight.sweep_report.accuracy import accuracy_figure
from longhaul.insight.sweep_report.cells import MODEL, Cell, models
from longhaul.insight.sweep_report.groups import Group, Spread, grouped
from longhaul.insight.sweep_report.look import panels
from longhaul.insight.sweep_report.search import Field, fields_figure
from longhaul.insight.sweep_report.tested import PrecisionRecall

MAP, MAP50 = "test/map", "test/map50"
_MOST = 6  # panels, where neither model nor resolution tells which
_ACROSS = 34  # characters of a title that a panel has room for


def cell_figure(cell: Cell) -> Figure | None:
    """One cell's curves, a line a class; None where it has none."""
    if cell.precision_recall is None:
        return None
    return precision_recall_figure(cell.precision_recall.curves, cell.precision_recall.classes, title=f"{cell.label}: test split")


def best_figure(cells: Sequence[Cell], direction: Literal["max", "min"]) -> Figure | None:
    """A panel for each of `best_groups`; over folds the mean of their curves. None without curves."""
    shown = best_groups(cells, direction)
    if not shown:
        return None
    figure, grid = panels(len(shown), height=3.9)
    for group, axes in zip(shown, grid, strict=True):
        mean, folds = _mean(group)
        draw_precision_recall(axes, mean.curves, mean.classes, title="")
        axes.set_title(_title(group, folds), fontsize=10.5)
    return figure


def best_groups(cells: Sequence[Cell], direction: Literal["max", "min"]) -> list[Group]:
    """The best one of each model; of a single model, of each resolution; of a single resolution, simply the best few.

    Args:
        cells: of a sweep; those without curves are left out, as are those of which not every fold was trained to its end.
        direction: of the goal.
    """
    ranked = _ranked(cells, direction)
    of_model = {group.first.model: group for group in reversed(ranked)}
    if len(of_model) > 1:
        return [of_model[model] for model in models([group.first for group in ranked])]
    of_size = {group.first.resolution or 0: group for group in reversed(ranked)}
    return [of_size[size] for size in sorted(of_size)] if len(of_size) > 1 else ranked[:_MOST]


def best_text(cells: Sequence[Cell], direction: Literal["max", "min"]) -> str:
    """What `best_figure` shows of these cells, in a sentence."""
    shown = best_groups(cells, direction)
    if not shown:
        unfinished = any(cell.precision_recall is not None for cell in cells)
        return "No cell with curves was trained to its end in all folds." if unfinished else "No curves were saved."
    if len({group.first.model for group in shown}) > 1:
        which = "the best cell of each model"
    elif len({group.first.resolution for group in shown}) > 1:
        which = "the best cell of each resolution"
    else:
        left_out = len(_ranked(cells, direction)) > len(shown)
        which = f"the best {len(shown)} cells" if left_out else "all cells, the best first" if len(shown) > 1 else "the only cell"
    return f"On the test split, at IoU 0.5: {which}."


def by_resolution_figure(cells: Sequence[Cell]) -> Figure | None:
    """Average precision against resolution, a line a model; None where the resolution does not vary, or in a search."""
    tested = _tested(cells)
    if any(cell.trial is not None for cell in tested):
        return None
    return accuracy_figure(tested, MAP, value=_average_precision, dashed=MAP50)


def by_fields_figure(cells: Sequence[Cell], fields: Sequence[Field]) -> Figure | None:
    """Average precision against each field that varies; the model is one where the resolution does not vary."""
    tested = _tested(cells)
    several = len(models(tested)) > 1 and len({cell.resolution for cell in tested}) == 1
    if several and MODEL not in [field.name for field in fields]:
        fields = [Field(MODEL, "choices"), *fields]
    return fields_figure(tested, fields, MAP, value=_average_precision)


def _average_precision(group: Group) -> Spread | None:
    return group.result(MAP)


def _title(group: Group, folds: int) -> str:
    """In lines that a panel has room for; a number stays with its unit."""
    lines = textwrap.wrap(group.label.replace(" px", "\N{NO-BREAK SPACE}px"), _ACROSS, break_on_hyphens=False)
    lines += [f"mean of {folds} folds"] if folds > 1 else []
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def _tested(cells: Sequence[Cell]) -> list[Cell]:
    """With every fold of what is drawn, tested or not: one that failed makes its mark a hollow one."""
    return [cell for group in grouped(cells) if _average_precision(group) is not None for cell in group.cells]


def _ranked(cells: Sequence[Cell], direction: Literal["max", "min"]) -> list[Group]:
    """Those with curves, the best first; a mean over some of the folds says less than one over all of them."""
    with_curves = [group for group in grouped(cells) if any(cell.precision_recall is not None for cell in group.cells)]
    scored = [(group, score.mean) for group in with_curves if group.finished and (score := group.score()) is not None]
    sign = 1 if direction == "max" else -1
    return [group for group, _ in sorted(scored, key=lambda pair: -sign * pair[1])]


def _mean(group: Group) -> tuple[PrecisionRecall, int]:
    """Over the folds that have the first one's classes, and how many those are."""
    told = [cell.precision_recall for cell in group.cells if cell.precision_recall is not None]
    alike = [one for one in told if one.classes == told[0].classes and one.curves.shape == told[0].curves.shape]
    return PrecisionRecall(told[0].classes, np.mean([one.curves for one in alike], axis=0)), len(alike)
