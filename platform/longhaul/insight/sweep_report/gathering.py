"""Fills in what a report wants and nobody has made yet: profiles and explanations of finished cells, kept in their runs."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from longhaul.errors import LonghaulError
from longhaul.insight.explain.cell import explain_run
from longhaul.insight.explain.record import Explanation, Kept, load_explanation, load_kept
from longhaul.insight.profile import Conditions, Profile, profile_run, save_profile
from longhaul.insight.sweep_report.cells import Cell, models
from longhaul.recipe.networks import ModelSection

log = logging.getLogger(__name__)

Advance = Callable[[], None]
_REASON = 300


@dataclass(frozen=True)
class Explained:
    """A cell with its explanation and the maps."""

    cell: Cell
    explanation: Explanation
    kept: Kept


def to_profile(cells: Sequence[Cell]) -> list[Cell]:
    """Finished classifiers without a profile."""
    return [cell for cell in cells if _classifies(cell) and cell.profile is None]


def to_explain(cells: Sequence[Cell], direction: Literal["max", "min"]) -> list[list[Cell]]:
    """Finished classifiers to explain together: each line of a chart, ascending by resolution, of folds the first.

    Where resolution does not vary, as in most searches, it is the best cell of each model, in a list of its own.
    """
    lines: dict[str, dict[int, Cell]] = {}
    for cell in cells:
        if _classifies(cell) and cell.resolution is not None:
            lines.setdefault(cell.line, {}).setdefault(cell.resolution, cell)
    found = [[line[size] for size in sorted(line)] for line in lines.values() if len(line) > 1]
    if found:
        order = models([line[0] for line in found])
        return sorted(found, key=lambda line: (order.index(line[0].model), line[0].line))
    sign = 1 if direction == "max" else -1
    scored = sorted(
        (cell for line in lines.values() for cell in line.values() if cell.record.score is not None),
        key=lambda cell: -sign * (cell.record.score or 0.0),
    )
    return [[next(cell for cell in scored if cell.model == model)] for model in models(scored)]


def fill_profiles(cells: Sequence[Cell], conditions: Conditions, advance: Advance) -> list[Cell]:
    """All cells, with a profile measured where one was missing; a network that several cells have is measured once.

    A cell that cannot be measured says so among its problems.

    Args:
        cells: of a sweep.
        conditions: device, batch and time.
        advance: called after every cell of `to_profile`.
    """
    missing = {cell.key for cell in to_profile(cells)}
    measured: dict[str, Profile] = {}
    filled = []
    for cell in cells:
        filled.append(_profiled(cell, conditions, measured) if cell.key in missing else cell)
        if cell.key in missing:
            advance()
    return filled


def fill_explanations(lines: Sequence[Sequence[Cell]], images: int, advance: Advance) -> dict[str, str]:
    """Explain every cell that has no explanation, or one of other images than the rest of its line.

    Args:
        lines: as `to_explain` gives them.
        images: how many; a line where one has more gets as many as that one.
        advance: called after every cell.

    Returns:
        By key, why a cell could not be explained.
    """
    problems = {}
    for line in lines:
        there = {cell.key: _explanation(cell) for cell in line}
        most = max([images, *(len(one.images) for one in there.values() if one is not None)])
        for cell in line:
            former = there[cell.key]
            if cell.run is not None and (former is None or len(former.images) < most):
                try:
                    explain_run(cell.run, most)
                except Exception as error:  # noqa: BLE001 - a network or a device that fails costs its own maps, not the report
                    problems[cell.key] = f"it could not be explained: {_line(error)}"
                    log.warning("%s: %s", cell.label, problems[cell.key])
            advance()
    return problems


def load_explained(line: Sequence[Cell]) -> list[Explained]:
    """The explanations that a line's cells have, with their maps; those of other images than the first one's are left out."""
    found: list[Explained] = []
    for cell in line:
        explanation = _explanation(cell)
        if explanation is None or cell.run is None:
            continue
        try:
            kept = load_kept(cell.run)
        except (LonghaulError, OSError, ValueError, zipfile.BadZipFile) as error:
            log.warning("%s: its heat maps cannot be read: %s", cell.label, error)
            continue
        if not found or [image.id for image in explanation.images] == [image.id for image in found[0].explanation.images]:
            found.append(Explained(cell, explanation, kept))
        else:
            log.warning("%s: its heat maps are of other images and left out; report with --explain", cell.label)
    return found


def _profiled(cell: Cell, conditions: Conditions, measured: dict[str, Profile]) -> Cell:
    assert cell.run is not None  # `to_profile` has seen to it
    network = _network(cell)
    try:
        if network not in measured:
            measured[network] = profile_run(cell.run, conditions)
        save_profile(cell.run, measured[network])
    except Exception as error:  # noqa: BLE001 - a network or a device that fails costs its own figures, not the report
        problem = f"it could not be profiled: {_line(error)}"
        log.warning("%s: %s", cell.label, problem)
        return replace(cell, problems=(*cell.problems, problem))
    return replace(cell, profile=measured[network], count=measured[network].count)


def _network(cell: Cell) -> str:
    """Equal for cells whose networks are as fast as each other: weights and dropout make no difference when it answers."""
    section = cell.recipe.model if cell.recipe is not None else None
    assert isinstance(section, ModelSection)  # `_classifies` has seen to it
    bare = section.model_copy(update={"pretrained": False, "weights": None, "drop_rate": 0.0, "drop_path_rate": 0.0})
    classes = len(cell.confusion.classes) if cell.confusion is not None else 0
    return f"{bare.model_dump_json()} {cell.resolution} {classes or cell.key}"


def _classifies(cell: Cell) -> bool:
    trains = cell.recipe is not None and cell.recipe.workload.kind == "classification"
    return trains and cell.finished and cell.run is not None


def _explanation(cell: Cell) -> Explanation | None:
    return load_explanation(cell.run) if cell.run is not None else None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:_REASON] or type(error).__name__
