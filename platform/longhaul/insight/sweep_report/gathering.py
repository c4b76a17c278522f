"""Fills in what a report wants and nobody has made yet: profiles and explanations of finished cells, kept in their runs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from longhaul.errors import LonghaulError
from longhaul.insight.explain.attribution import METHODS
from longhaul.insight.explain.cell import common_layer, explain_run
from longhaul.insight.explain.record import Explanation, Kept, load_explanation, load_kept
from longhaul.insight.explain.run_pictures import TITLES
from longhaul.insight.profile import Conditions, Profile, profile_run, save_profile
from longhaul.insight.sweep_report.cells import Cell, models
from longhaul.recipe.networks import ModelSection
from longhaul.resilience.run_directory import RunDirectory

log = logging.getLogger(__name__)

Advance = Callable[[], None]
_REASON = 300
_SEED = 0  # of the choice of images


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
    """Finished classifiers to explain together: each line of a chart, ascending by resolution, all of one fold.

    It is the lowest fold that has finished at all resolutions of its line, or else at most of them.
    Where resolution does not vary, as in most searches, it is the best cell of each model, in a list of its own.
    """
    folds: dict[str, dict[int, dict[int, Cell]]] = {}
    for cell in cells:
        if _classifies(cell) and cell.resolution is not None:
            fold = cell.fold if isinstance(cell.fold, int) else 0
            folds.setdefault(cell.line, {}).setdefault(fold, {}).setdefault(cell.resolution, cell)
    lines = {name: max(sorted(by_fold.items()), key=lambda pair: len(pair[1]))[1] for name, by_fold in folds.items()}
    found = [[line[size] for size in sorted(line)] for line in lines.values() if len(line) > 1]
    if found:
        order = models([line[0] for line in found])
        return sorted(found, key=lambda line: (order.index(line[0].model), line[0].line))
    sign = 1 if direction == "max" else -1
    scored = sorted(
        (cell for one in folds.values() for line in one.values() for cell in line.values() if cell.record.score is not None),
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
    """Explain every cell that has no explanation, or another one: of other images, methods or weights, or another layer.

    Grad-CAM looks at one layer in all cells of a line, or what is compared would be layers and not resolutions.

    Args:
        lines: as `to_explain` gives them.
        images: how many; a line where one has more gets as many as that one.
        advance: called after every cell.

    Returns:
        By key, why a cell could not be explained.
    """
    problems = {}
    for line in lines:
        former = [_explanation(cell) for cell in line]
        most = max([images, *(len(one.images) for one in former if one is not None and one.seed == _SEED)])
        layer = _layer([cell.run for cell in line if cell.run is not None]) if len(line) > 1 else None
        for cell in line:
            if cell.run is not None:
                try:
                    explain_run(cell.run, most, METHODS, _SEED, layer=layer)
                except Exception as error:  # noqa: BLE001 - a network or a device that fails costs its own maps, not the report
                    problems[cell.key] = f"it could not be explained: {_line(error)}"
                    log.warning("%s: %s", cell.label, problems[cell.key])
            advance()
    return problems


def load_explained(line: Sequence[Cell]) -> tuple[list[Explained], dict[str, list[str]]]:
    """The explanations that a line's cells have, with their maps.

    Returns:
        Those of the images that most of the line are explained on; and by key, what cannot be read or compared, and why.
    """
    read: list[Explained] = []
    problems: dict[str, list[str]] = {}
    for cell in line:
        try:
            explanation = _explanation(cell)
            if explanation is not None and cell.run is not None:
                read.append(Explained(cell, explanation, load_kept(cell.run)))
        except (LonghaulError, OSError) as error:
            problems[cell.key] = [f"its heat maps cannot be read: {_line(error)}"]
    alike = Counter(_asked(one) for one in read)
    found = [one for one in read if _asked(one) == alike.most_common(1)[0][0]]
    for one in read:
        told = _strange(one, found) if one in found else [f"its heat maps are of other images than the rest of {one.cell.line}'s"]
        if told:
            problems[one.cell.key] = [f"{text}; report with --explain" for text in told]
    return found, problems


def _layer(runs: Sequence[RunDirectory]) -> str | None:
    """What Grad-CAM looks at in all of them, but for those that cannot be opened; None where there is no such layer."""
    layer = _common_layer(runs)
    if layer is not None:
        return layer
    return _common_layer([run for run in runs if _common_layer([run]) is not None])


def _common_layer(runs: Sequence[RunDirectory]) -> str | None:
    try:
        return common_layer(runs) if runs else None
    except (LonghaulError, OSError, ValueError) as error:  # `explain_run` meets it again and says so
        log.debug("no common layer: %s", error)
        return None


def _asked(one: Explained) -> tuple[object, ...]:
    return (tuple(image.id for image in one.explanation.images), one.explanation.grid)


def _strange(one: Explained, line: Sequence[Explained]) -> list[str]:
    """Why maps of a cell cannot be shown with the line's: methods that it lacks, another layer than most."""
    told = {report.method for report in one.explanation.methods}
    had = {report.method for other in line for report in other.explanation.methods}
    found = []
    lacking = [TITLES[method] for method in METHODS if method in had - told]
    if lacking:
        found.append(f"it is not explained by {' or '.join(lacking)}, which {one.cell.line} is then not shown by")
    layers = Counter(looked[0] for other in line if (looked := other.explanation.looked_at) is not None)
    if len(layers) > 1 and one.explanation.looked_at is not None:
        layer, usual = one.explanation.looked_at[0], layers.most_common(1)[0][0]
        if layer != usual:
            found.append(f"its Grad-CAM looks at {layer} and not at {usual} as that of {one.cell.line} does, and is not compared")
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
