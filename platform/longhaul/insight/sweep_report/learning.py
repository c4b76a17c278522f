"""How the cells learnt: the goal on the validation split by epoch."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from longhaul.insight.curves import BLUE, GREY
from longhaul.insight.sweep_report.cells import Cell, models
from longhaul.insight.sweep_report.look import dress, panels, shades

_NAMED = 12  # lines that a legend still tells apart


def learning_figure(cells: Sequence[Cell], goal: str, best: str | None = None) -> Figure | None:
    """A panel a model, a line a cell, the darker the higher its resolution; a curve that was cut short ends in a cross.

    Args:
        cells: of a sweep; those that have measured nothing are left out.
        goal: such as `val/top1`.
        best: the key of a cell to bring out where resolution does not tell the lines apart.
    """
    learnt = [cell for cell in cells if cell.learning is not None]
    if not learnt:
        return None
    shown = models(learnt)
    figure, grid = panels(len(shown), height=3.1)
    for model, axes in zip(shown, grid, strict=True):
        _draw_model(axes, [cell for cell in learnt if cell.model == model], best)
        dress(axes, title=model, x="epoch", y=goal, metric=goal)
    return figure


def _draw_model(axes: Axes, cells: Sequence[Cell], best: str | None) -> None:
    sizes = sorted({cell.resolution or 0 for cell in cells})
    colours = dict(zip(sizes, shades(len(sizes)), strict=True))
    many = len(sizes) == 1 and len(cells) > 1
    for cell in sorted(cells, key=lambda cell: cell.key == best):  # the best one on top
        colour = (BLUE if cell.key == best else GREY) if many else colours[cell.resolution or 0]
        _draw(axes, cell, colour, faint=many and cell.key != best)
    if many:
        handles = [Line2D([], [], color=GREY, linewidth=1, label=f"{len(cells)} cells")]
        handles += [Line2D([], [], color=BLUE, label="the best") for cell in cells if cell.key == best]
    else:
        handles = [Line2D([], [], color=colours[size], label=f"{size} px") for size in sizes[:_NAMED]]
    if any(_cut(cell) for cell in cells):
        handles.append(Line2D([], [], color=GREY, marker="x", linestyle="", markersize=5, label="ended early"))
    axes.legend(handles=handles, frameon=False, fontsize=8, loc="best")


def _draw(axes: Axes, cell: Cell, colour: object, *, faint: bool) -> None:
    learning = cell.learning
    assert learning is not None  # the caller has seen to it
    width, alpha = (0.9, 0.55) if faint else (1.6, 1.0)
    dot = "o" if len(learning.epochs) == 1 else None
    axes.plot(learning.epochs, learning.values, color=colour, linewidth=width, alpha=alpha, marker=dot, markersize=3)
    if _cut(cell):
        axes.plot(learning.epochs[-1:], learning.values[-1:], color=colour, marker="x", markersize=6, linestyle="")


def _cut(cell: Cell) -> bool:
    return cell.record.standing in ("stopped", "failed")
