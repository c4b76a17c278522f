"""The folder that each cell has in a report: `cell.json`, `summary.txt`, its pictures.

    report/<family>/<model>/<resolution>/
        index.html      all of it in one page
        cell.json       what it is, where its run lies, what it has reached, its best checkpoints (`CellSummary`)
        summary.txt     the network layer by layer
        *.png           learning curves, confusion matrix or precision over recall, heat maps

A cell that is as it was at the last report keeps its folder as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from longhaul.errors import LonghaulError
from longhaul.insight.curves import png, training_figure
from longhaul.insight.explain.attribution import METHODS
from longhaul.insight.explain.record import load_explanation
from longhaul.insight.explain.run_pictures import TITLES
from longhaul.insight.sweep_report.blocks import damage, picture
from longhaul.insight.sweep_report.cells import Cell
from longhaul.insight.sweep_report.confusion import large_figure
from longhaul.insight.sweep_report.layers import Anatomy, anatomy
from longhaul.insight.sweep_report.look import CELL_DPI
from longhaul.insight.sweep_report.precision_recall import cell_figure
from longhaul.insight.sweep_report.templates import CELL, render
from longhaul.models.counting import Count
from longhaul.recipe.networks import ModelSection
from longhaul.resilience.checkpoint import CheckpointStore, best_entries, newest_phase
from longhaul.resilience.run_directory import RunDirectory
from longhaul.resilience.sweep_directory import SweepState
from longhaul.storage import Storage

BEST = 3
PAGE_FILE = "index.html"
_FORMAT = 2  # of cell.json and of the page beside it: those of another are written anew
_FILE, _SUMMARY = "cell.json", "summary.txt"
_ALTS = {
    "curves.png": "loss, goal, learning rate and throughput of {} over the steps",
    "confusion.png": "confusion matrix of {}",
    "precision-recall.png": "precision over recall of {}, a line a class",
    "explain.png": "heat maps of {} on test images, a column a method",
}


class BestCheckpoint(BaseModel):
    """One of a cell's best checkpoints: where, at which step and time, what it reached, on how many workers."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    name: str
    address: str
    step: int
    goal: float | None
    created_s: float
    workers: int


class CellSummary(BaseModel):
    """`cell.json`.

    Attributes:
        run: the address of its run directory; None where nothing has been trained.
        goal: the metric that `score` and the checkpoints' `goal` are of.
        score: its best on the validation split; results: on the test split.
        count: what the network costs on paper.
        checkpoints: the best ones, best first.
        explained: the pictures of its explanation, with their sizes in bytes.
        files: what else lies in the folder.
        problems: what could not be read.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    format: int = _FORMAT
    sweep: str
    key: str
    coordinates: dict[str, Any]
    model: str
    family: str
    resolution: int | None
    standing: str
    reason: str | None
    run: str | None
    goal: str
    score: float | None
    steps: int
    epochs: float | None
    seconds: float
    results: dict[str, float]
    count: Count | None
    checkpoints: list[BestCheckpoint]
    explained: dict[str, int]
    files: list[str]
    problems: list[str]


class Anatomies:
    """Networks taken apart, each once: cells of one model and resolution have the same."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._found: dict[str, Anatomy | None] = {}
        # What is not trained yet has no matrix to tell its number of classes; cells of a sweep mostly share their data.
        self._classes = {_data(cell): len(cell.confusion.classes) for cell in cells if cell.confusion is not None}

    def of(self, cell: Cell) -> Anatomy | None:
        """The cell's network; None for what is no classifier, or where the number of its classes is not known."""
        section, classes = (cell.recipe.model if cell.recipe else None), self._classes.get(_data(cell))
        if not isinstance(section, ModelSection) or classes is None or cell.resolution is None:
            return None
        key = f"{section.model_dump_json()} {classes} {cell.resolution}"
        if key not in self._found:
            self._found[key] = None
            with contextlib.suppress(LonghaulError, RuntimeError):  # a cell whose network cannot be built says so itself
                self._found[key] = anatomy(section, classes, cell.resolution, cell.count)
        return self._found[key]


def write_cell(folder: Storage, cell: Cell, state: SweepState, anatomies: Anatomies) -> tuple[Cell, list[str]]:
    """Write a cell's folder, unless it is there as it should be.

    Args:
        folder: the cell's own.
        cell: of the sweep.
        state: the sweep's.
        anatomies: of the networks.

    Returns:
        The cell with its count and with what was wrong with its pictures, and the names of the files in the folder.
    """
    former = _former(folder)
    same = former is not None and former.key == cell.key
    there = cell.count or (former.count if former is not None and same else None)
    network = None if there is not None and same and folder.exists(_SUMMARY) else anatomies.of(cell)
    if network is not None:
        folder.write_bytes(_SUMMARY, network.text().encode())
        there = cell.count or network.count
    counted = replace(cell, count=there)
    names = [_SUMMARY] if network is not None or (same and folder.exists(_SUMMARY)) else []
    told = _told(counted, state)
    if former is not None and former.model_copy(update={"files": []}) == told and _complete(folder, former.files):
        return counted, [_FILE, *former.files]
    pictures, problems = _pictures(counted, state)
    counted = replace(counted, problems=(*counted.problems, *problems))
    told = told.model_copy(update={"problems": list(counted.problems)})
    for name, data in pictures.items():
        folder.write_bytes(name, data)
        names.append(name)
    blocks = [picture(name, data, alt=_ALTS[name].format(cell.label)) for name, data in pictures.items() if name in _ALTS]
    alone = [(TITLES[method], f"explain_{method}.png") for method in METHODS if f"explain_{method}.png" in pictures]
    back = "../" * (cell.folder.count("/") + 1) + "index.html"
    context = {"told": told, "label": cell.label, "files": names, "back": back, "blocks": blocks, "more": alone}
    folder.write_bytes(PAGE_FILE, render(CELL, context))
    names.append(PAGE_FILE)
    folder.write_bytes(_FILE, (told.model_copy(update={"files": names}).model_dump_json(indent=1) + "\n").encode())
    return counted, [_FILE, *names]


def best_checkpoints(run: RunDirectory, state: SweepState) -> list[BestCheckpoint]:
    """The best by the goal that are still there, best first, at most `BEST`."""
    store = CheckpointStore(run)
    ranked = best_entries(newest_phase(store.entries()), state.direction)[:BEST]
    return [
        BestCheckpoint(
            name=entry.name,
            address=store.folder(entry.name).uri,
            step=entry.step,
            goal=entry.goal,
            created_s=entry.created_s,
            workers=entry.world_size,
        )
        for entry in ranked
    ]


def _told(cell: Cell, state: SweepState) -> CellSummary:
    record = cell.record
    return CellSummary(
        sweep=state.name,
        key=cell.key,
        coordinates=record.coordinates,
        model=cell.model,
        family=cell.family,
        resolution=cell.resolution,
        standing=record.standing,
        reason=record.reason,
        run=cell.run.uri if cell.run is not None else None,
        goal=state.goal,
        score=record.score,
        steps=record.steps,
        epochs=cell.summary.epoch if cell.summary is not None else None,
        seconds=record.seconds,
        results=cell.results,
        count=cell.count,
        checkpoints=best_checkpoints(cell.run, state) if cell.run is not None else [],
        explained=_explained(cell),
        files=[],
        problems=list(cell.problems),
    )


def _pictures(cell: Cell, state: SweepState) -> tuple[dict[str, bytes], list[str]]:
    """PNG by name, learning curves and confusion matrix drawn, an explanation's copied; and why any of those cannot be shown."""
    if cell.run is None:
        return {}, []
    found: dict[str, bytes] = {}
    problems = []
    with contextlib.suppress(LonghaulError):  # already among the cell's problems
        metrics = cell.run.metrics()
        if len(metrics):
            found["curves.png"] = png(training_figure(metrics, title=cell.label, goal=state.goal), CELL_DPI, quick=True)
    drawn = {"confusion.png": large_figure(cell), "precision-recall.png": cell_figure(cell)}
    found |= {name: png(figure, CELL_DPI, quick=True) for name, figure in drawn.items() if figure is not None}
    for name in _explained(cell):
        try:
            data = cell.run.storage.read_bytes(f"pictures/{name}")
            problem = damage(data)
        except OSError as error:
            problem = str(error)
        if problem is None:
            found[name] = data
        else:
            problems.append(f"its picture {name} cannot be read: {problem}")
    return found, problems


def _explained(cell: Cell) -> dict[str, int]:
    """The pictures of the explanation as it is; a former one's, of other methods, may lie there too."""
    explanation = load_explanation(cell.run) if cell.run is not None else None
    if explanation is None or cell.run is None:
        return {}
    names = {"explain.png", *(f"explain_{method}.png" for method in explanation.usable)}
    return {entry.name: entry.size for entry in cell.run.storage.list("pictures") if entry.name in names}


def _former(folder: Storage) -> CellSummary | None:
    """What the last report said; None where there is none, or it was of another version."""
    try:
        former = CellSummary.model_validate_json(folder.read_bytes(_FILE))
    except (FileNotFoundError, ValidationError):
        return None
    return former if former.format == _FORMAT else None


def _complete(folder: Storage, names: Sequence[str]) -> bool:
    return set(names) <= {entry.name for entry in folder.list()}


def _data(cell: Cell) -> str:
    """What the data are, but for how large they are shown and how they are split."""
    if cell.recipe is None:
        return ""
    unseen = {"resolution", "augment", "loader_workers", "folds", "fold", "share", "excluded"}
    return cell.recipe.data.model_dump_json(exclude=unseen)
