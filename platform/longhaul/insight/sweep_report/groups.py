"""Cells that are the same but for the fold, taken together: one point of a chart, one row of the table of folds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from longhaul.insight.sweep_report.cells import Cell

_SHARES = ("top1", "top5", "precision", "recall", "f1", "map", "map50", "map75")


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (of a sample, n - 1) of so many values; the deviation of one value is 0."""

    mean: float
    deviation: float
    count: int


@dataclass(frozen=True)
class Group:
    """All folds of one combination; without folds, one cell."""

    cells: tuple[Cell, ...]

    @property
    def first(self) -> Cell:
        """Any of them: they differ in the fold alone."""
        return self.cells[0]

    @property
    def label(self) -> str:
        """What it is called by itself."""
        return self.first.place

    @property
    def finished(self) -> bool:
        """Whether all of them have been trained to their end."""
        return all(cell.finished for cell in self.cells)

    def score(self) -> Spread | None:
        """The goal on the validation split, over the folds that have one."""
        return spread(cell.record.score for cell in self.cells)

    def result(self, metric: str) -> Spread | None:
        """A result such as `test/top1`, over the folds that have one."""
        return spread(cell.results.get(metric) for cell in self.cells)

    def mean(self, value: Callable[[Cell], float | None]) -> float | None:
        """The mean over the folds of any figure that some have."""
        found = spread(value(cell) for cell in self.cells)
        return None if found is None else found.mean


def grouped(cells: Sequence[Cell]) -> list[Group]:
    """The cells by what they are besides their fold, in the order of the first of each."""
    found: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.model, cell.resolution, cell.variant), []).append(cell)
    return [Group(tuple(members)) for members in found.values()]


def spread(values: Iterable[float | None]) -> Spread | None:
    """Of the finite ones; None where there are none."""
    there = np.asarray([value for value in values if value is not None and np.isfinite(value)], dtype=np.float64)
    if not len(there):
        return None
    return Spread(float(there.mean()), float(there.std(ddof=1)) if len(there) > 1 else 0.0, len(there))


def test_metric(goal: str) -> str:
    """The goal's name among the results: `val/top1` -> `test/top1`."""
    return f"test/{goal.rpartition('/')[2]}"


def is_share(metric: str) -> bool:
    """Whether a metric lies between 0 and 1 and is shown in percent."""
    return metric.rpartition("/")[2] in _SHARES
