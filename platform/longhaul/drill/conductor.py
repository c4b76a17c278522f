"""The drill itself: the undisturbed run first, then the disturbed one, fault after fault."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from longhaul.drill.board import Board, Plan
from longhaul.drill.driver import Driver
from longhaul.drill.faults import TRACE, Fault
from longhaul.drill.history import History, Line
from longhaul.drill.nodes import Nodes
from longhaul.drill.object_store import ObjectStore
from longhaul.drill.preparation import Preparation
from longhaul.drill.report import Outcome
from longhaul.drill.strikes import Strikes
from longhaul.recipe import Recipe, dump
from longhaul.resilience.checkpoint import CheckpointStore
from longhaul.resilience.run_directory import RunDirectory

TWIN, DISTURBED = "undisturbed", "disturbed"
_PACE_S, _SLOW_S = 0.15, 0.7
_LOOK_S = 0.1
_PATIENCE_S = 300.0
_STORAGE = ("s3-503", "s3-timeout", "full-disk")
_MOST_DEATHS = 3
_TELLING = ("checkpoint_rejected", "rollback", "quarantine", "micro_batch", "preemption", "save_failed", "lost", "resumed")


class RunEndedError(Exception):
    """The driver has ended by itself, well or not, where it should not have."""


@dataclass(frozen=True)
class Glance:
    """What there is to see at one moment."""

    phase: str
    step: int
    steps: int
    outcomes: list[Outcome]


@dataclass
class Conductor:
    """Runs a drill.

    Attributes:
        prepared: what to run.
        nodes, store: where.
        folder: for the drill's own files.
        full_disk: a folder without any space, if there is one.
        show: is given a glance several times a second.
    """

    prepared: Preparation
    nodes: Nodes
    store: ObjectStore
    folder: Path
    full_disk: str | None
    show: Callable[[Glance], None]
    outcomes: list[Outcome] = field(default_factory=list)

    def run(self) -> tuple[History, History]:
        """Train both runs; the outcomes are in `outcomes`; returns the histories (disturbed, undisturbed).

        Raises:
            RunEndedError: the undisturbed run failed: there is nothing to compare with.
        """
        self.outcomes = [Outcome(fault=fault) for fault in self.prepared.faults]
        twin = Performance(self, TWIN, self.prepared.twin, Plan())
        with twin.on_stage():
            twin.to_the_end()
        plan = Plan(faults=tuple(self.prepared.faults), pace_s=_PACE_S, slow_s=_SLOW_S, full_disk=self.full_disk)
        disturbed = Performance(self, DISTURBED, self.prepared.recipe, plan)
        with disturbed.on_stage():
            deaths = 0
            for outcome in self.outcomes:
                try:
                    disturbed.suffer(outcome)
                except (RunEndedError, TimeoutError) as error:
                    outcome.state, outcome.note = "lost", f"{outcome.note}; {error}".lstrip("; ")
                    deaths += 1
                    if disturbed.driver.ended == 0:
                        outcome.state = "ahead"  # the run was over before it could tell
                    if disturbed.driver.ended == 0 or deaths == _MOST_DEATHS:
                        break
                    disturbed.again()
            with contextlib.suppress(RunEndedError):  # the checks will say so
                disturbed.to_the_end()
        return disturbed.history, twin.history

    def directory(self, name: str) -> RunDirectory:
        """A run's directory, reached without the proxy."""
        return RunDirectory(self.store.direct.child(name))


class Performance:
    """One run: its driver, what is known of it, what strikes it."""

    def __init__(self, conductor: Conductor, name: str, recipe: Recipe, plan: Plan) -> None:
        self._conductor, self._name = conductor, name
        self.board = Board(conductor.folder / name)
        self.board.create(plan)
        file = self.board.folder / "recipe.yaml"
        file.write_text(dump(recipe))
        arguments = [conductor.nodes.address, str(file), conductor.store.uri, name, str(self.board.folder)]
        self.driver = Driver(arguments, dict(os.environ), conductor.folder / f"{name}.log")
        self.run = conductor.directory(name)
        self.history = History(self.board.notes, recipe.training.global_batch)
        self._dead: Line = (0, 0)
        self._strikes = Strikes(
            self.board, self.history, self.driver, conductor.nodes, conductor.store.proxy, self.run, self._until
        )

    @contextlib.contextmanager
    def on_stage(self) -> Iterator[None]:
        """The driver runs, from here at the latest to the end of the block."""
        self.driver.start()
        try:
            yield
        finally:
            self.driver.kill()

    def again(self) -> None:
        """Start the driver by hand, as it were: the drill goes on for the sake of the other faults."""
        self._dead = self.history.newest
        self.driver.kill()
        self.driver.start()

    def to_the_end(self) -> None:
        """Wait until the run has finished.

        Raises:
            RunEndedError: it has failed, or makes no progress.
        """
        known, since = -1, time.monotonic()
        while self.driver.ended is None:
            self._look()
            if self.history.furthest > known:
                known, since = self.history.furthest, time.monotonic()
            if time.monotonic() - since > _PATIENCE_S:
                raise RunEndedError(f"no progress in {_PATIENCE_S:g} s")
        self._look()
        if self.driver.ended != 0:
            raise RunEndedError(self._last_words())

    def suffer(self, outcome: Outcome) -> None:
        """One fault, from waiting for its turn to the run's recovery.

        Raises:
            RunEndedError: the run has ended where it should have gone on.
        """
        fault = outcome.fault
        self._demand(lambda: self.history.newest > self._dead and self.history.step >= fault.step, "did not get there")
        line, since_s = self.history.newest, time.time()
        if fault.kind == "poisoned-sample":  # it strikes in its own time, perhaps while the run still recovers
            line = min([found.line for found in self.history.passes if fault.sample in found.note.indices] or [line])
        outcome.state, outcome.at_step = "striking", self.history.step + 1
        try:
            outcome.note = self._strikes.strike(fault)
            outcome.state = "recovering"
            until_s = time.time()
            self._demand(lambda: self._recovered(fault, line, until_s), "did not recover")
        finally:
            self._tell(outcome, since_s)
        recovered_s = self.history.recovered_s(line) or time.time()
        outcome.state = "survived"
        outcome.steps_lost = self.history.lost_steps(line, self.history.newest)
        outcome.seconds_lost = self.history.lost_seconds(since_s, recovered_s)

    def _recovered(self, fault: Fault, line: Line, until_s: float) -> bool:
        if fault.kind not in _STORAGE:
            return self.history.recovered_s(line) is not None
        # Steps may go on all the while; what must come back is that something can be saved.
        going = self.history.newest == line or self.history.recovered_s(line) is not None
        return going and any(entry.created_s > until_s for entry in CheckpointStore(self.run).entries())

    def _tell(self, outcome: Outcome, since_s: float) -> None:
        """Put into the outcome what the run's own record says of the time since then."""
        since_s = 0.0 if outcome.fault.kind == "poisoned-sample" else since_s  # it may have struck before its turn
        events = sorted(self.run.events().to_pylist(), key=lambda event: float(event["time_s"]))
        told = [event for event in events if event["time_s"] >= since_s and event["kind"] in _TELLING]
        messages = list(dict.fromkeys(str(event["message"]) for event in told))
        outcome.note = "; ".join([outcome.note, *messages]).lstrip("; ")
        outcome.recorded = TRACE.get(outcome.fault.kind) in (None, *(event["kind"] for event in told))

    def _demand(self, condition: Callable[[], bool], otherwise: str) -> None:
        if not self._until(condition, _PATIENCE_S):
            raise RunEndedError(f"{otherwise} within {_PATIENCE_S:g} s; {self._last_words()}")

    def _until(self, condition: Callable[[], bool], patience_s: float) -> bool:
        until = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > until:
                return False
            self._look()
            if self.driver.ended is not None:
                raise RunEndedError(f"the run ended: {self._last_words()}")
        return True

    def _look(self) -> None:
        time.sleep(_LOOK_S)
        self.history.read()
        steps = self._conductor.prepared.steps
        self._conductor.show(Glance(self._name, self.history.step, steps, self._conductor.outcomes))

    def _last_words(self) -> str:
        return self.run.summary().error or self.driver.tail()
