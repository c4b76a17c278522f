"""The sweep's directory: what was asked, and where every cell stands.

    <storage>/<sweep name>/
        sweep.yaml       the sweep as it was asked for (`recipe.sweep.SweepRecipe`)
        sweep.json       every cell (`SweepState`), rewritten whole whenever one changes
        table.parquet    one row a cell
        report/          what `longhaul report` draws
    <storage>/cells/<key>/    one run directory a cell, shared by all sweeps below <storage>

What a cell has reached lies in its own run directory; here stands what the sweep has decided about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from longhaul.errors import IntegrityError, UserError
from longhaul.recipe.load import dump_sweep, parse_sweep
from longhaul.recipe.sweep import SweepRecipe
from longhaul.resilience.run_directory import RunDirectory, check_run_name
from longhaul.storage import Storage

CELLS = "cells"
MEMBER, POPULATION = "member-", "population"
STATE = "sweep.json"
TABLE = "table.parquet"

Standing = Literal["planned", "running", "finished", "stopped", "skipped", "failed"]


class CellRecord(BaseModel):
    """One cell of a sweep.

    Attributes:
        key: its content's address, also its run directory's name.
        coordinates: the recipe fields that make it what it is, such as `{"model.name": "resnet18", "data.resolution": 64}`.
        recipe: its resolved recipe as YAML.
        standing: `planned`; `running` (or its driver died); `finished`; `stopped` before its time by `stopping`, a budget or a
            person; `skipped` by `pruning`; `failed`.
        reason: why it was stopped, skipped or failed, in one line.
        begun: a call of this sweep has begun to train it; else, whatever it has reached is another sweep's work.
        taken_for: the key that it would have by the code at hand when somebody took it, trained by other code, for what it is;
            that holds until the code changes again.
        forced: somebody wants it trained to its end whatever stopping and pruning say.
        gpus: the share of a GPU that it takes.
        cost: predicted operations of its whole training, a multiplication and an addition counted as two.
        seconds: that it has been trained for, over all attempts.
        score: the goal's best value on the validation split so far; `scores`: all of them, as (epoch, value).
        results: on the test split, such as `test/top1`.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    key: str
    coordinates: dict[str, Any]
    recipe: str
    standing: Standing = "planned"
    reason: str | None = None
    begun: bool = False
    taken_for: str | None = None
    forced: bool = False
    gpus: float = 0.0
    cost: float | None = None
    seconds: float = 0.0
    steps: int = 0
    score: float | None = None
    scores: list[tuple[float, float]] = []
    results: dict[str, float] = {}

    @property
    def open(self) -> bool:
        """Whether it still has something to train."""
        return self.standing in ("planned", "running")

    @property
    def label(self) -> str:
        """Its coordinates' values in one short text, such as `resnet18 64`."""
        return " ".join(str(value) for value in self.coordinates.values())

    @property
    def printed(self) -> list[str]:
        """Its coordinates' values as tables show them: numbers to four digits."""
        return [f"{value:.4g}" if isinstance(value, float) else str(value) for value in self.coordinates.values()]


class Refused(BaseModel):
    """A point that a search has drawn and that makes no recipe: it counts as a trial.

    Attributes:
        coordinates: as drawn, without a fold.
        reason: why it makes none.
        place: how many trials were drawn before it.
    """

    model_config = ConfigDict(extra="forbid")

    coordinates: dict[str, Any]
    reason: str
    place: int


class SweepState(BaseModel):
    """`sweep.json`.

    Attributes:
        goal: the metric that decides, such as `val/top1`, with its direction.
        cells: all of them, in the order of the grid, or in that in which a search drew them.
        refused: points of a search that make no recipe, in the order in which they were drawn.
        hours: that the sweep has run, over all calls; `dollars`: what its cells' time has cost.
        notes: what was decided on the way, one line each, such as a budget that ended it.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    name: str
    goal: str
    direction: Literal["max", "min"]
    cells: list[CellRecord] = []
    refused: list[Refused] = []
    hours: float = 0.0
    dollars: float = 0.0
    notes: list[str] = []

    def cell(self, key: str) -> CellRecord:
        """The cell of that key.

        Raises:
            KeyError: there is none.
        """
        for cell in self.cells:
            if cell.key == key:
                return cell
        raise KeyError(key)

    @property
    def best(self) -> CellRecord | None:
        """The cell with the best score on the validation split; None while none has one."""
        sign = 1 if self.direction == "max" else -1
        measured = [cell for cell in self.cells if cell.score is not None]
        return max(measured, key=lambda cell: sign * (cell.score or 0.0), default=None)


@dataclass(frozen=True)
class SweepDirectory:
    """One sweep's folder: `storage` is it, `root` where it and `cells/` lie."""

    root: str
    storage: Storage

    @classmethod
    def at(cls, root: str, name: str) -> SweepDirectory:
        """The folder `<root>/<name>`; nothing is read or written.

        Raises:
            UserError: the name cannot be a folder's, or is that of the cells'.
        """
        if name == CELLS:
            raise UserError(f"sweep name {name!r}: all cells lie in the folder of that name", "Give another --name")
        return cls(root.rstrip("/"), Storage.open(root).child(check_run_name(name)))

    @classmethod
    def open(cls, root: str, name: str) -> SweepDirectory:
        """An existing sweep.

        Raises:
            UserError: there is none of that name; the message names the nearest.
        """
        sweep = cls.at(root, name)
        if not sweep.exists:
            there = [other.name for other in cls.all(root)]
            near = difflib.get_close_matches(name, there, n=1, cutoff=0.4)
            among = f"There are {', '.join(there[:8])}" if there else f"{root} holds no sweeps; give the --storage that does"
            fix = f"Did you mean {near[0]!r}?" if near else among
            raise UserError(f"sweep {sweep.storage.uri}: no sweep is there", fix)
        return sweep

    @classmethod
    def all(cls, root: str) -> list[SweepDirectory]:
        """The sweeps below `root`, by name."""
        folders = [entry.name for entry in Storage.open(root).list() if entry.is_dir]
        return [sweep for name in folders if (sweep := cls(root.rstrip("/"), Storage.open(root).child(name))).exists]

    @property
    def exists(self) -> bool:
        """Whether a sweep has been begun here."""
        return self.storage.exists(STATE)

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.storage.root.rsplit("/", 1)[-1]

    def recipe(self) -> SweepRecipe:
        """What was asked for."""
        return parse_sweep(self.storage.read_bytes("sweep.yaml").decode(), source=f"{self.storage.uri}/sweep.yaml")

    def state(self) -> SweepState:
        """Where every cell stands.

        Raises:
            IntegrityError: `sweep.json` is damaged.
        """
        try:
            return SweepState.model_validate_json(self.storage.read_bytes(STATE))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            fix = "Move it away and run the sweep again: finished cells are found by their content"
            raise IntegrityError(f"{self.storage.uri}/{STATE}: {where}: {first['msg']}. {fix}") from None

    def save(self, sweep: SweepRecipe, state: SweepState) -> None:
        """Write both files."""
        self.storage.write_bytes("sweep.yaml", dump_sweep(sweep).encode())
        self.save_state(state)

    def save_state(self, state: SweepState) -> None:
        """Replace `sweep.json`."""
        self.storage.write_bytes(STATE, (state.model_dump_json(indent=1) + "\n").encode())

    def save_table(self, table: pa.Table) -> None:
        """Replace `table.parquet`."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        self.storage.write_bytes(TABLE, sink.getvalue().to_pybytes())

    def run(self, key: str) -> RunDirectory:
        """The run directory of a cell; it may not be there yet."""
        if key.startswith(MEMBER):
            return RunDirectory(self.storage.child(f"{POPULATION}/{key}"))
        return RunDirectory(Storage.open(self.root).child(f"{CELLS}/{key}"))

    def runs(self, cells: Sequence[CellRecord]) -> Iterator[tuple[CellRecord, RunDirectory]]:
        """The cells that have a run directory, each with it."""
        for cell in cells:
            run = self.run(cell.key)
            if run.storage.exists("recipe.yaml"):
                yield cell, run
