"""What a sweep has to train: its cells, and which of them are done already, by whomever. Nothing is trained here."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from longhaul.errors import UserError
from longhaul.recipe import Recipe, parse
from longhaul.recipe.paths import anchored_sweep
from longhaul.recipe.phases import resolve
from longhaul.recipe.sweep import Choice, Domain, Integer, LogUniform, NoStopping, PbtStopping, SweepRecipe
from longhaul.resilience.sweep_directory import CELLS, CellRecord, SweepDirectory, SweepState
from longhaul.storage import Storage
from longhaul.training.course import Course
from longhaul.training.patience import check_watched
from longhaul.tuning.board import PAUSED, Board, changed_code, record_of
from longhaul.tuning.cells.cells import FOLD, Cell, CellMaker, check_fields, content_of, other_code
from longhaul.tuning.sizing.cost import training_cost
from longhaul.tuning.sizing.resources import gpu_share
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
        other_code: for cells that are open, what of the code has changed since one of the same content was trained.
        read: the sweep's state as it was found, as JSON; None where there was none.
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
    read: str | None = None
    _epochs: dict[str, float] = field(default_factory=dict)
    _sizes: dict[str, int] = field(default_factory=dict)

    @property
    def epochs(self) -> float:
        """The whole length of the longest cell's training, over all phases; of a search, of those that are known so far."""
        return max([self._length(self.example), *(self.epochs_of(record) for record in self.state.cells)])

    def epochs_of(self, record: CellRecord) -> float:
        """The whole length of a cell's training."""
        if record.key not in self._epochs:
            self._epochs[record.key] = self._length(parse(record.recipe, source=record.key))
        return self._epochs[record.key]

    def _length(self, recipe: Recipe) -> float:
        """In epochs. Looks at each data set once: fields of `data` and the seed alone decide how many samples it has."""
        epochs = 0.0
        for of_phase in resolve(recipe):
            data = repr((of_phase.data.model_dump(exclude={"resolution", "augment", "loader_workers"}), of_phase.seed))
            if data not in self._sizes:
                self._sizes[data] = len(build(of_phase).splits.train)
            course = Course(of_phase, self._sizes[data])
            epochs += course.total_samples / course.epoch_samples
        return epochs

    @property
    def recipes(self) -> list[Recipe]:
        """A recipe for each way in which its cells are spread over workers; of a search, also those that it may yet draw."""
        found = [self.example, *(parse(record.recipe, source=record.key) for record in self.state.cells)]
        space = self.sweep.search.space if self.sweep.search else {}
        for path in [path for path in space if path.split(".")[0] == "scaling"]:
            for value in _bounds(space[path]):
                with contextlib.suppress(UserError):
                    found.append(self.maker.folded({**_corner(self.sweep, 0), path: value})[0].recipe)
        return list({repr(recipe.scaling): recipe for recipe in found}.values())

    def enlist(self, cell: Cell) -> CellRecord:
        """The record of a cell, a new one where the sweep has none of its key."""
        self.cells[cell.key] = cell
        for record in self.state.cells:
            if record.key == cell.key:
                return record
        record = self.record(cell)
        self.new.append(cell.key)
        self.state.cells.append(record)
        return record

    def record(self, cell: Cell) -> CellRecord:
        """A new record of a cell, with what it costs and takes."""
        cost = training_cost(cell.recipe, self.maker.book)
        return record_of(cell, cost=cost.operations, gpus=gpu_share(cell.recipe, self.sweep.resources, cost.memory_gb))


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
        any_code: take cells that other code has trained, or begun to, for what they are; those that are open go on. It is kept
            with the sweep until the code changes again.

    Raises:
        UserError: a cell's recipe, data or model are not in order, no cell is called so, or a run has the sweep's name.
    """
    directory = SweepDirectory.at(storage, name)
    if directory.storage.exists("recipe.yaml"):
        raise UserError(f"sweep {directory.storage.uri}: is a run", "Give the sweep another --name")
    before = directory.state() if directory.exists else None
    read = before.model_dump_json() if before is not None else None
    check_fields(sweep)
    sweep = anchored_sweep(sweep, folder)
    maker = CellMaker(sweep, folder)
    first = _first(maker)
    workload = build(first.recipe)
    check_watched(first.recipe.training.early_stopping, workload)
    state = SweepState(name=name, goal=f"val/{workload.goal.metric}", direction=workload.goal.direction)
    planned = SweepPlan(directory, sweep, maker, first.recipe, state, read=read)
    if before is not None:
        state.hours, state.dollars, state.notes = before.hours, before.dollars, before.notes
    if sweep.grid:
        _grid(planned, before, any_code=any_code)
    elif before is not None and isinstance(sweep.stopping, PbtStopping):
        state.cells = before.cells  # its members, which `population` looks after
    elif before is not None:
        _search(planned, before, any_code=any_code)
    _look(planned)
    _force(state, force)
    return planned


def _grid(planned: SweepPlan, before: SweepState | None, *, any_code: bool) -> None:
    takes = _Taking(planned, before, any_code=any_code)
    made: dict[str, Cell] = {}
    for cell in planned.maker.grid():
        if cell.key in made:
            problem = f"sweep {planned.sweep.name}: {made[cell.key].coordinates} and {cell.coordinates} are one cell"
            raise UserError(problem, "Remove one of the two values")
        made[cell.key] = cell
        takes.take(cell)
    planned.gone = takes.gone()


def _search(planned: SweepPlan, before: SweepState, *, any_code: bool) -> None:
    """The points that were drawn before, each made anew: one that is another cell now leaves the sweep."""
    takes = _Taking(planned, before, any_code=any_code)
    for record in before.cells:
        with contextlib.suppress(UserError):  # it makes no recipe any more
            cell = planned.maker.cell(record.coordinates)
            if (FOLD in record.coordinates) == bool(planned.sweep.folds) and content_of(record.key) == cell.stem:
                takes.take(cell)
    planned.gone = takes.gone()
    for refused in before.refused:
        try:
            planned.maker.folded(refused.coordinates)
        except UserError:  # still so
            planned.state.refused.append(refused)


class _Taking:
    """Takes the cells of a sweep into its state: those that it had, those that other code has trained, new ones."""

    def __init__(self, planned: SweepPlan, before: SweepState | None, *, any_code: bool) -> None:
        self._planned, self._any_code = planned, any_code
        self._former = {record.key: record for record in before.cells} if before else {}
        self._there = {entry.name for entry in Storage.open(planned.directory.root).child(CELLS).list()}

    def take(self, cell: Cell) -> None:
        """One cell, in the place that it has in the sweep."""
        planned, other = self._planned, self._trained_by_other_code(cell)
        if other is not None:
            known = self._former.get(other)
            if self._any_code or (known is not None and known.taken_for == cell.key):
                as_it_is = {"key": other, "coordinates": cell.coordinates, "taken_for": cell.key}
                # not among `planned.cells`: what is written beside its run stays as it is
                planned.state.cells.append((known or planned.record(cell)).model_copy(update=as_it_is))
                return
        if other is not None:
            planned.other_code[cell.key] = changed_code(planned.directory, other, cell.code)
        if cell.key in self._former:
            planned.cells[cell.key] = cell
            planned.state.cells.append(self._former[cell.key].model_copy(update={"coordinates": cell.coordinates}))
        else:
            planned.enlist(cell)

    def gone(self) -> list[str]:
        """Labels of the cells that the sweep had and has no more; those whose code alone has changed are in it still."""
        kept = {content_of(record.key) for record in self._planned.state.cells}
        return [record.label for key, record in self._former.items() if content_of(key) not in kept]

    def _trained_by_other_code(self, cell: Cell) -> str | None:
        """Key of the cell of this content that has come farthest; None where this code has come as far."""
        others = other_code(cell, self._there)
        if not others:
            return None
        best = max(others, key=self._progress)
        finished, steps = self._progress(best)
        own_finished, own_steps = self._progress(cell.key)
        return best if (finished and not own_finished) or (steps > 0 and own_steps == 0) else None

    def _progress(self, key: str) -> tuple[bool, int]:
        """Whether it has finished, and how many steps its run has."""
        if key not in self._there:
            return False, 0
        summary = self._planned.directory.run(key).summary()
        return summary.status == "finished", summary.step


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
        if record.standing == "stopped" and (record.reason == PAUSED or isinstance(planned.sweep.stopping, NoStopping)):
            record.standing, record.reason = "planned", None


def _force(state: SweepState, force: Collection[str]) -> None:
    for pattern in force:
        chosen = [record for record in state.cells if any(_matches(name, pattern) for name in _names(record))]
        if not chosen:
            labels = ", ".join(repr(" ".join(record.printed)) for record in state.cells[:5])
            raise UserError(f"--force {pattern!r}: no cell is called so", f"Cells are called {labels} ...; '*' stands for all")
        for record in chosen:
            record.forced = True
            if record.standing in ("stopped", "skipped"):
                record.standing, record.reason = "planned", None


def _names(record: CellRecord) -> tuple[str, ...]:
    return record.key, record.label, " ".join(record.printed)


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)  # a label may hold brackets, which are a pattern's own


def _first(maker: CellMaker) -> Cell:
    """Some cell of the sweep, to check the base recipe by: of a search the first corner of its space that makes a recipe."""
    sweep = maker.sweep
    if sweep.search is None:
        return maker.folded({path: values[0] for path, values in sweep.grid.items()})[0]
    failures = []
    for place in (0, -1):
        try:
            return maker.folded(_corner(sweep, place))[0]
        except UserError as error:
            failures.append(error)
    raise failures[0]


def _corner(sweep: SweepRecipe, place: int) -> dict[str, Any]:
    """The corner of a search's space with the first (0) or the last (-1) value of each field."""
    return {path: _bounds(domain)[place] for path, domain in sweep.search.space.items()} if sweep.search else {}


def _bounds(domain: Domain) -> Sequence[Any]:
    """The values from the first to the last, at least those two."""
    if isinstance(domain, Choice):
        return domain.choice
    if isinstance(domain, Integer):
        return domain.integer
    return domain.log_uniform if isinstance(domain, LogUniform) else domain.uniform
