"""Where every cell of a sweep stands while it runs: kept in memory, written to `sweep.json` whenever it counts."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from longhaul.errors import IntegrityError
from longhaul.recipe import dump
from longhaul.recipe.sweep import SweepRecipe
from longhaul.resilience.run_directory import Summary
from longhaul.resilience.sweep_directory import CellRecord, SweepDirectory, SweepState
from longhaul.tuning.budget import dollars
from longhaul.tuning.cells.cells import Cell
from longhaul.tuning.cells.code_version import CodeVersion, changed
from longhaul.tuning.trial import validations

log = logging.getLogger(__name__)

CELL = "cell.json"
PAUSED = "paused by request; the same command goes on with it"
"""Why a cell is `stopped` that somebody has paused: until the call ends it is left alone."""
_SAVE_S = 2.0

Watch = Callable[[SweepState], None]
"""Is shown how the sweep stands, whenever something has changed."""


class Board:
    """The state of one sweep, and who is told of it.

    Args:
        directory: the sweep's.
        sweep: what was asked for.
        state: where it stands.
        watch: see `Watch`.
    """

    def __init__(self, directory: SweepDirectory, sweep: SweepRecipe, state: SweepState, watch: Watch) -> None:
        self.directory, self.sweep, self.state, self._watch = directory, sweep, state, watch
        self._cells = {cell.key: cell for cell in state.cells}
        self._began_s, self._hours = time.monotonic(), state.hours
        self._saved_s = 0.0

    def __getitem__(self, key: str) -> CellRecord:
        return self._cells[key]

    def known(self, record: CellRecord) -> CellRecord:
        """A cell that may have come to the state since; brought up to what its run directory says."""
        if record.key not in self._cells:
            self._cells[record.key] = record
            try:
                if self.directory.run(record.key).storage.exists("recipe.yaml"):
                    self.look(record)
            except OSError as error:  # its trial finds out
                log.warning("cell %s: %s", record.key, error)
        return record

    def note(self, text: str) -> None:
        """Write down a decision."""
        if text not in self.state.notes:
            self.state.notes.append(text)
        self.changed(now=True)

    def began(self, records: Sequence[CellRecord]) -> None:
        """A trial of these cells begins."""
        for record in records:
            if record.open:
                record.standing, record.reason, record.begun = "running", None, True
        self.changed(now=True)

    def skipped(self, record: CellRecord, reason: str) -> None:
        """The cell is not trained."""
        record.standing, record.reason = "skipped", reason
        self.changed(now=True)

    def validated(self, record: CellRecord, epoch: float, score: float, steps: int) -> None:
        """A validation of it."""
        record.scores = [*(one for one in record.scores if one[0] < epoch), (epoch, score)]
        record.steps = steps
        self._score(record)
        self.changed()

    def spent(self, record: CellRecord, seconds: float, taken: Mapping[str, float]) -> None:
        """It has been trained for so much longer, on these resources, such as `{"CPU": 1.0, "GPU": 0.25}`."""
        record.seconds += seconds
        self.state.dollars += dollars(self.sweep.budget, seconds, cpus=taken.get("CPU", 0.0), gpus=taken.get("GPU", 0.0))

    def ended(self, record: CellRecord, reason: str | None, *, error: bool) -> None:
        """Its trial is over.

        Args:
            record: the cell.
            reason: why the trial was ended before its time, where it was; None where the cell shall go on at the next call.
            error: whether its process died, at every attempt; this call tries it no more.
        """
        summary = self.look(record)
        if summary.status == "finished":
            record.reason = None
        elif error or summary.status == "failed":
            lost = "its process died at every attempt (out of memory?); the same command tries it again"
            record.standing, record.reason = "failed", summary.error if summary.status == "failed" else lost
        elif summary.status == "cancelled":
            record.standing, record.reason = "stopped", "cancelled by request"
        else:
            record.standing, record.reason = ("planned", None) if reason is None else ("stopped", reason)
        self.changed(now=True)

    def look(self, record: CellRecord) -> Summary:
        """Bring a record up to what its run directory says; the run's summary."""
        run = self.directory.run(record.key)
        summary = run.summary()
        if summary.goal:
            try:
                record.scores = [(epoch, value) for _, epoch, value in validations(run, summary.goal)]
            except IntegrityError as error:
                log.warning("cell %s: %s", record.key, error)
            # A run that goes on tells of itself behind what its trial has reported.
            record.steps, record.results = max(record.steps, summary.step), summary.results
            self._score(record)
        if summary.status == "finished":
            record.standing = "finished"
        return summary

    def _score(self, record: CellRecord) -> None:
        finite = [score for _, score in record.scores if not math.isnan(score)]
        if finite:
            record.score = max(finite) if self.state.direction == "max" else min(finite)

    def tick(self) -> None:
        """Count the time."""
        self.state.hours = self._hours + (time.monotonic() - self._began_s) / 3600

    def close(self) -> None:
        """The call is over: what somebody has paused waits for the next one."""
        for record in self.state.cells:
            if record.standing == "stopped" and record.reason == PAUSED:
                record.standing, record.reason = "planned", None
        self.changed(now=True)

    def changed(self, *, now: bool = False) -> None:
        """Show it, and write it down where that is due."""
        at = time.monotonic()
        self.tick()
        if now or at - self._saved_s >= _SAVE_S:
            self._saved_s = at
            with contextlib.suppress(OSError):  # storage that is away for a moment: the next change writes it all again
                self.directory.save_state(self.state)
        self._watch(self.state)


def record_of(cell: Cell, *, cost: float | None, gpus: float) -> CellRecord:
    """A new cell's record."""
    return CellRecord(key=cell.key, coordinates=cell.coordinates, recipe=dump(cell.recipe), cost=cost, gpus=gpus)


def sign(directory: SweepDirectory, cell: Cell) -> None:
    """Write beside a cell's run what its key is made of, so that a later look can tell what has changed since."""
    run = directory.run(cell.key)
    if not run.storage.exists(CELL):
        text = json.dumps({"content": cell.content, "modules": cell.code.modules, "libraries": cell.code.libraries}, indent=1)
        run.storage.write_bytes(CELL, text.encode())


def changed_code(directory: SweepDirectory, key: str, now: CodeVersion) -> list[str]:
    """What of the code has changed since the cell `key` was trained; empty where nobody knows."""
    try:
        told: dict[str, Any] = json.loads(directory.run(key).storage.read_bytes(CELL))
        return changed(CodeVersion("", told["modules"], told["libraries"]), now)
    except (FileNotFoundError, ValueError, KeyError):
        return []
