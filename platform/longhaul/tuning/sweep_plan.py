"""What a sweep has to train: its cells, and which of them are done already, by whomever. Nothing is trained here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from longhaul.errors import UserError
from longhaul.recipe import Recipe
from longhaul.recipe.phases import resolve
from longhaul.recipe.sweep import Choice, Domain, Integer, LogUniform, NoStopping, SweepRecipe
from longhaul.resilience.sweep_directory import CELLS, CellRecord, SweepDirectory, SweepState
from longhaul.storage import Storage
from longhaul.training.course import Course
from longhaul.training.patience import check_watched
from longhaul.tuning.board import Board, changed_code, record_of
from longhaul.tuning.cells import Cell, CellMaker, check_fields, other_code
from longhaul.tuning.cost import training_cost
from longhaul.tuning.resources import gpu_share
from longhaul.workloads import build


@dataclass
class SweepPlan:
    """A sweep that is ready to run.

    Attributes:
        directory: its folder.
        sweep: what was asked for.
        maker: makes further cells, for a search.
        example: the recipe of one of its cells.
        state: every cell with its standing.
        cells: by key, those made at this call.
        new: keys that the sweep did not have at its last call.
        gone: labels of cells that it had and has no more; their runs stay where they are.
        other_code: for cells that are open, what of the code has changed since a finished one of the same content.
    """

    directory: SweepDirectory
    sweep: SweepRecipe
    maker: CellMaker
    example: Recipe
    state: SweepState
    cells: dict[str, Cell] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    other_code: dict[str, list[str]] = field(default_factory=dict)

    @property
    def epochs(self) -> float:
        """The whole length of a cell's training, over all phases."""
        epochs = 0.0
        for of_phase in resolve(self.example):
            course = Course(of_phase, len(build(of_phase).splits.train))
            epochs += course.total_samples / course.epoch_samples
        return epochs

    def enlist(self, cell: Cell) -> CellRecord:
        """The record of a cell, a new one where the sweep has none of its key."""
        self.cells[cell.key] = cell
        for record in self.state.cells:
            if record.key == cell.key:
                return record
        cost = training_cost(cell.recipe, self.maker.book)
        record = record_of(cell, cost=cost.operations, gpus=gpu_share(cell.recipe, self.sweep.resources, cost.memory_gb))
        self.new.append(cell.key)
        self.state.cells.append(record)
        return record


def plan(
    sweep: SweepRecipe, storage: str, name: str, *, folder: Path, force: Collection[str] = (), any_code: bool = False
) -> SweepPlan:
    """Find out what there is to train.

    Args:
        sweep: what is asked for.
        storage: where its directory and the cells' lie.
        name: of the sweep.
        folder: what relative paths in the recipe are seen from.
        force: cells to train to their end whatever stopping and pruning say: keys or labels, with `*` for anything.
        any_code: take finished cells that were trained by other code for what they are.

    Raises:
        UserError: a cell's recipe, data or model are not in order, no cell is called so, or a run has the sweep's name.
    """
    directory = SweepDirectory.at(storage, name)
    if directory.storage.exists("recipe.yaml"):
        raise UserError(f"sweep {directory.storage.uri}: is a run", "Give the sweep another --name")
    before = directory.state() if directory.exists else None
    check_fields(sweep)
    maker = CellMaker(sweep, folder)
    first = _first(maker)
    workload = build(first.recipe)
    check_watched(first.recipe.training.early_stopping, workload)
    state = SweepState(name=name, goal=f"val/{workload.goal.metric}", direction=workload.goal.direction)
    planned = SweepPlan(directory, sweep, maker, first.recipe, state)
    if before is not None:
        state.hours, state.dollars, state.notes = before.hours, before.dollars, before.notes
    if sweep.grid:
        _grid(planned, before, any_code=any_code)
    elif before is not None:
        state.cells = before.cells
    _look(planned)
    _force(state, force)
    return planned


def _grid(planned: SweepPlan, before: SweepState | None, *, any_code: bool) -> None:
    former = {record.key: record for record in before.cells} if before else {}
    stored = Storage.open(planned.directory.root).child(CELLS)
    there = {entry.name for entry in stored.list()}
    for cell in planned.maker.grid():
        if cell.key in planned.cells:
            problem = f"sweep {planned.sweep.name}: {planned.cells[cell.key].coordinates} and {cell.coordinates} are one cell"
            raise UserError(problem, "Remove one of the two values")
        if cell.key not in former and (others := other_code(cell, there)):
            own = cell.key in there and _finished(planned.directory, cell.key)
            done = [] if own else [key for key in others if _finished(planned.directory, key)]
            if done and any_code:
                known = former.get(done[0]) or record_of(
                    cell, cost=training_cost(cell.recipe, planned.maker.book).operations, gpus=0.0
                )
                planned.state.cells.append(known.model_copy(update={"key": done[0]}))
                planned.cells[done[0]] = cell
                continue
            if done:
                planned.other_code[cell.key] = changed_code(planned.directory, done[0], cell.code)
        if cell.key in former:
            planned.cells[cell.key] = cell
            planned.state.cells.append(former[cell.key].model_copy(update={"coordinates": cell.coordinates}))
        else:
            planned.enlist(cell)
    kept = {record.key for record in planned.state.cells}
    planned.gone = [record.label for key, record in former.items() if key not in kept]


def _finished(directory: SweepDirectory, key: str) -> bool:
    return directory.run(key).summary().status == "finished"


def _look(planned: SweepPlan) -> None:
    """Bring the records up to what the run directories say; what was skipped or failed is decided again."""
    board = Board(planned.directory, planned.sweep, planned.state, lambda state: None)
    there = {entry.name for entry in Storage.open(planned.directory.root).child(CELLS).list()}
    for record in planned.state.cells:
        if record.key in there and record.standing != "finished":
            board.look(record)
        if record.key not in there and record.standing == "finished":  # somebody has made room
            record.standing, record.score, record.scores, record.results, record.steps = "planned", None, [], {}, 0
        if record.standing in ("running", "skipped", "failed"):
            record.standing, record.reason = "planned", None
        if record.standing == "stopped" and isinstance(planned.sweep.stopping, NoStopping):
            record.standing, record.reason = "planned", None


def _force(state: SweepState, force: Collection[str]) -> None:
    for pattern in force:
        chosen = [r for r in state.cells if fnmatchcase(r.key, pattern) or fnmatchcase(r.label, pattern)]
        if not chosen:
            labels = ", ".join(repr(record.label) for record in state.cells[:5])
            raise UserError(f"--force {pattern!r}: no cell is called so", f"Cells are called {labels} ...; '*' stands for all")
        for record in chosen:
            record.forced = True
            if record.standing in ("stopped", "skipped"):
                record.standing, record.reason = "planned", None


def _first(maker: CellMaker) -> Cell:
    """Some cell of the sweep, to check the base recipe by: of a search the first corner of its space that makes a recipe."""
    sweep = maker.sweep
    if sweep.search is None:
        return maker.folded({path: values[0] for path, values in sweep.grid.items()})[0]
    failures = []
    for place in (0, -1):
        try:
            return maker.folded({path: _bounds(domain)[place] for path, domain in sweep.search.space.items()})[0]
        except UserError as error:
            failures.append(error)
    raise failures[0]


def _bounds(domain: Domain) -> Sequence[Any]:
    """The values from the first to the last, at least those two."""
    if isinstance(domain, Choice):
        return domain.choice
    if isinstance(domain, Integer):
        return domain.integer
    return domain.log_uniform if isinstance(domain, LogUniform) else domain.uniform
