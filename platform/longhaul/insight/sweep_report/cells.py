"""What a report knows of a sweep's cells: the sweep's record of each, and what its run directory holds.

A damaged part of a run directory costs the report that part of that cell alone: it is named in `Cell.problems`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longhaul.errors import LonghaulError
from longhaul.insight.curves import Curve, curve
from longhaul.insight.profile import Profile, load_profile
from longhaul.insight.sweep_report.tested import Confusion, OnTest, PrecisionRecall, read_tested
from longhaul.models.counting import Count
from longhaul.models.families import FAMILIES, OTHER, family_of
from longhaul.recipe import Recipe, parse
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.resilience.sweep_directory import CellRecord, SweepDirectory, SweepState

MODEL, RESOLUTION, FOLD = "model.name", "data.resolution", "data.fold"
_FOLDS = "data.folds"
_READING = (LonghaulError, OSError, ValueError, pa.ArrowException)  # pydantic's and json's errors are ValueErrors
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_REASON = 300

Floats = npt.NDArray[np.float64]
Read = TypeVar("Read")


@dataclass(frozen=True)
class Learning:
    """The goal over the epochs: (N,) each, as the run stands."""

    epochs: Floats
    values: Floats


@dataclass(frozen=True)
class Cell:
    """One cell as a report shows it.

    Attributes:
        record: what the sweep has decided.
        run: its run directory; None where nothing has been trained.
        recipe: what it trains; None where that cannot be read.
        model, family, resolution: of the recipe; resolution in pixels.
        folder: where its own pages go, below the report.
        trial: its number in a search, from 1 in the order in which they were drawn, the same for all folds; None in a grid.
        summary: how far the run has come; None without a run.
        results: on the test split, such as `test/top1`.
        learning: the goal by epoch; None where nothing was measured.
        confusion, precision_recall: None where the task has none, or it was not tested.
        profile, count: speed on a device, cost on paper; None where nobody has measured or counted.
        problems: what could not be read, one line each.
    """

    record: CellRecord
    run: RunDirectory | None
    recipe: Recipe | None
    model: str
    family: str
    resolution: int | None
    folder: str
    trial: int | None = None
    summary: Summary | None = None
    results: dict[str, float] = field(default_factory=dict)
    learning: Learning | None = None
    confusion: Confusion | None = None
    precision_recall: PrecisionRecall | None = None
    profile: Profile | None = None
    count: Count | None = None
    problems: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The address of its content."""
        return self.record.key

    @property
    def finished(self) -> bool:
        """Whether it was trained to its end."""
        return self.record.standing == "finished"

    @property
    def variant(self) -> tuple[tuple[str, str], ...]:
        """Its coordinates besides model, resolution and fold, as texts: cells of one variant lie on one line of a chart."""
        apart = (MODEL, RESOLUTION, FOLD, _FOLDS)
        return tuple((name, plain(value)) for name, value in self.record.coordinates.items() if name not in apart)

    @property
    def fold(self) -> Any:
        """Which fold it validates on; None without folds."""
        return self.record.coordinates.get(FOLD)

    @property
    def line(self) -> str:
        """What it is called on a chart whose horizontal axis is resolution: the model, and its variant."""
        return " ".join([self.model, *(value for _, value in self.variant)])

    @property
    def label(self) -> str:
        """What it is called by itself: `place`, and its fold."""
        return self.place if self.fold is None else f"{self.place} fold {self.fold}"

    @property
    def place(self) -> str:
        """`line` and resolution; in a search, whose values are long, the trial's number."""
        if self.trial is not None:
            return f"trial {self.trial}"
        return self.line if self.resolution is None else f"{self.line} {self.resolution} px"

    @property
    def share_trained(self) -> float:
        """How much of its planned training it has had, 0 to 1."""
        if self.summary is not None and self.summary.total_steps:
            return min(self.summary.step / self.summary.total_steps, 1.0)
        return 1.0 if self.finished else 0.0


def read_cells(
    sweep: SweepDirectory, state: SweepState, *, searched: bool = False, advance: Callable[[], None] = lambda: None
) -> list[Cell]:
    """All cells of a sweep, in its order.

    Args:
        sweep: where it lies.
        state: as it was read.
        searched: whether its cells are trials of a search.
        advance: called after every cell.
    """
    found = []
    for record in state.cells:
        found.append(_read(sweep, state, record))
        advance()
    return _with_folders(_numbered(found) if searched else found)


def families(cells: Sequence[Cell]) -> list[str]:
    """The families that occur, in the order of `models.families`, others after them by name."""
    order = list(FAMILIES)
    there = {cell.family for cell in cells}
    return sorted(there, key=lambda name: (order.index(name) if name in order else len(order), name))


def models(cells: Sequence[Cell]) -> list[str]:
    """The models that occur, by family, in the order of `models.families`, others after them by name."""
    order = [name for names in FAMILIES.values() for name in names]
    there = {cell.model: cell.family for cell in cells}
    ranked = families(cells)
    return sorted(there, key=lambda m: (ranked.index(there[m]), order.index(m) if m in order else len(order), m))


def plain(value: Any) -> str:
    """A coordinate's value in a few characters."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _read(sweep: SweepDirectory, state: SweepState, record: CellRecord) -> Cell:
    problems: list[str] = []
    recipe = _attempt(problems, "its recipe", lambda: parse(record.recipe, source=f"cell {record.key}"))
    model = recipe.model.name if recipe is not None else str(record.coordinates.get(MODEL, "?"))
    resolution = recipe.data.resolution if recipe is not None else record.coordinates.get(RESOLUTION)
    cell = Cell(
        record=record,
        run=None,
        recipe=recipe,
        model=model,
        family=family_of(model) if recipe is not None or MODEL in record.coordinates else OTHER,
        resolution=resolution if isinstance(resolution, int) else None,
        folder="",
        results=dict(record.results),
    )
    run = sweep.run(record.key)
    there = _attempt(problems, "its run directory", lambda: run.storage.exists("recipe.yaml"))
    if not there:
        return replace(cell, problems=tuple(problems), learning=_told(record))
    summary = _attempt(problems, "its summary", run.summary)
    learning = _attempt(problems, "its metrics", lambda: _learning(run, state.goal))
    tested = _attempt(problems, "its events", lambda: read_tested(run)) or OnTest()
    profile = _attempt(problems, "its profile", lambda: load_profile(run))
    return replace(
        cell,
        run=run,
        summary=summary,
        results=(summary.results if summary is not None else {}) or cell.results,
        learning=learning or _told(record),
        confusion=tested.confusion,
        precision_recall=tested.precision_recall,
        profile=profile,
        count=profile.count if profile is not None else None,
        problems=tuple(problems),
    )


def _attempt(problems: list[str], what: str, read: Callable[[], Read]) -> Read | None:
    """What `read` gives; None, and a line among the problems, where it cannot be read."""
    try:
        return read()
    except _READING as error:
        problems.append(f"{what} cannot be read: {' '.join(str(error).split())[:_REASON]}")
        return None


def _learning(run: RunDirectory, goal: str) -> Learning | None:
    table = run.metrics()
    # What a restart undid is not drawn: a restart within a grid is no property of the cell.
    drawn: Curve = curve(table, goal)
    if not len(drawn.steps):
        return None
    rows = [row for row in table.select(["step", "epoch", "name"]).to_pylist() if row["name"] == goal]
    epochs = {row["step"]: row["epoch"] for row in rows}
    return Learning(np.asarray([epochs[step] for step in drawn.steps], dtype=np.float64), drawn.values)


def _told(record: CellRecord) -> Learning | None:
    """The curve as the sweep has kept it, where the run's own cannot be had."""
    if not record.scores:
        return None
    pairs = np.asarray(record.scores, dtype=np.float64)
    return Learning(pairs[:, 0], pairs[:, 1])


def _numbered(cells: Sequence[Cell]) -> list[Cell]:
    numbers: dict[tuple[object, ...], int] = {}
    places = [(cell.model, cell.resolution, cell.variant) for cell in cells]
    return [replace(cell, trial=numbers.setdefault(place, len(numbers) + 1)) for cell, place in zip(cells, places, strict=True)]


def _with_folders(cells: list[Cell]) -> list[Cell]:
    """Each with a folder of its own: `<family>/<model>/<resolution>`, and `/<key>` where several share it; else `cells/<key>`."""
    wanted = [_folder(cell) for cell in cells]
    shared = {folder for folder, times in Counter(wanted).items() if times > 1}
    return [
        replace(cell, folder=f"{folder}/{_safe(cell.key)}" if folder in shared else folder)
        for cell, folder in zip(cells, wanted, strict=True)
    ]


def _folder(cell: Cell) -> str:
    if RESOLUTION not in cell.record.coordinates or cell.resolution is None:
        return f"cells/{_safe(cell.key)}"
    return f"{_safe(cell.family)}/{_safe(cell.model)}/{cell.resolution}"


def _safe(name: str) -> str:
    """A folder's name: what comes from a file may hold anything."""
    cleaned = _UNSAFE.sub("-", name).strip(".")
    return cleaned[:80] or "-"
