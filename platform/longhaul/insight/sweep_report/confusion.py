"""Confusion matrices: the best cell's large, and those of all finished cells as small multiples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from longhaul.insight.curves import confusion_figure
from longhaul.insight.sweep_report.cells import Cell, models
from longhaul.insight.sweep_report.look import DPI
from longhaul.insight.sweep_report.tested import Confusion

_SIDE = 1.55  # inches of a small matrix
_ACROSS = 7


def large_figure(cell: Cell) -> Figure | None:
    """One cell's matrix with its counts; None where it has none."""
    if cell.confusion is None:
        return None
    return confusion_figure(cell.confusion.matrix, cell.confusion.classes, title=f"{cell.label}: test split")


def small_multiples(cells: Sequence[Cell]) -> Figure | None:
    """A row a line (model and variant), a column a resolution; without resolutions to tell apart, simply one after another.

    Colours are shares of the true class, on one scale for all; the number is the share of right answers.

    Args:
        cells: of one family, or all of a search; those without a matrix are left out.
    """
    there = [(cell, cell.confusion) for cell in cells if cell.finished and cell.confusion is not None]
    if not there:
        return None
    places, rows, columns = _places([cell for cell, _ in there])
    figure = Figure(figsize=(max(_SIDE * columns, 3.2), (_SIDE + 0.42) * rows), layout="constrained", dpi=DPI)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for (cell, confusion), (row, column) in zip(there, places, strict=True):
        _draw(grid[row][column], cell, confusion)
    return figure


def shares(confusion: Confusion) -> npt.NDArray[np.float64]:
    """(C, C): of each true class, the share that got each answer; a class without samples has zeros."""
    return np.asarray(confusion.matrix / np.maximum(confusion.matrix.sum(axis=1, keepdims=True), 1))


def _draw(axes: Axes, cell: Cell, confusion: Confusion) -> None:
    axes.imshow(shares(confusion), cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest")
    right = np.trace(confusion.matrix) / max(confusion.matrix.sum(), 1)
    name = cell.label if cell.trial is not None or cell.fold is not None else cell.line
    size = "" if cell.resolution is None else f"{cell.resolution} px  "
    axes.set_title(f"{name}\n{size}{100 * right:.1f} %", fontsize=7.5, pad=2)
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#C8C8C8")


def _places(cells: Sequence[Cell]) -> tuple[list[tuple[int, int]], int, int]:
    """Row and column of each, and how many rows and columns there are."""
    order = models(cells)
    lines = sorted({(order.index(cell.model), cell.line, str(cell.fold)) for cell in cells})
    sizes = sorted({cell.resolution or 0 for cell in cells})
    if len(sizes) < 2:
        across = min(len(cells), _ACROSS)
        return [divmod(number, across) for number in range(len(cells))], -(-len(cells) // across), across
    rows = {line[1:]: row for row, line in enumerate(lines)}
    places = [(rows[cell.line, str(cell.fold)], sizes.index(cell.resolution or 0)) for cell in cells]
    return places, len(lines), len(sizes)
