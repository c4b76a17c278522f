"""Which cell Ray Tune trains next: a `Searcher` of ours, asked whenever there is room for one more trial.

It knows nothing by heart: what has been trained lies on the board, so that a sweep that was killed goes on as if it had not been.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ray.tune.search import Searcher

from longhaul.resilience.lease import holder
from longhaul.resilience.requests import ask, asked
from longhaul.resilience.run_directory import RunDirectory
from longhaul.resilience.sweep_directory import CellRecord
from longhaul.tuning.board import PAUSED, Board
from longhaul.tuning.budget import Budget
from longhaul.tuning.trial import TrialOrder

log = logging.getLogger(__name__)

_ASK_S = 5.0
_AGAIN_S = 1.0  # after storage was away


class Planner(Protocol):
    """Decides what is trained next."""

    def next(self, trial_id: str) -> Sequence[CellRecord] | None:
        """The cells of the next trial; none of them: nothing is left; None: not yet, something that runs must end first."""
        ...

    def heard(self, trial_id: str, result: dict[str, Any]) -> None:
        """A trial has reported."""
        ...

    def over(self, trial_id: str, result: dict[str, Any] | None, *, failed: bool) -> None:
        """A trial has ended."""
        ...


MakeOrder = Callable[[Sequence[CellRecord]], TrialOrder]
"""What a trial of these cells is told."""


class TrialSource(Searcher):
    """Hands the planner's cells to Tune as `TrialOrder`s, and what comes back to the board.

    Storage that is away for a moment ends no sweep: what was to be read or asked is tried again at one of the next looks.

    Args:
        board: of the sweep.
        planner: chooses.
        budget: ends it all.
        order: makes a trial's order.
        why_stopped: said of a cell that was condemned (`condemn`).
    """

    def __init__(self, board: Board, planner: Planner, budget: Budget, order: MakeOrder, why_stopped: str) -> None:
        super().__init__(metric="score", mode=board.state.direction)
        self._board, self._planner, self._budget = board, planner, budget
        self._order, self._why_stopped = order, why_stopped
        self._orders: dict[str, TrialOrder] = {}
        self._seconds: dict[str, float] = {}
        self._condemned: dict[str, str] = {}  # key of the cell at hand, by trial
        self._ended: list[tuple[str, dict[str, Any] | None, bool]] = []  # of trials that are over: not yet on the board
        self._asked_s = self._settled_s = 0.0
        self.ending: str | None = None
        """Why no more trials begin and those that run are paused; None while all goes on."""

    def suggest(self, trial_id: str) -> Any:
        """Tune's hook: the next trial's config, None for not yet, or FINISHED."""
        self.look()
        if self.ending is not None:
            return Searcher.FINISHED
        if not self._has_room():
            return None  # what has begun trains to its end; then the budget is over
        try:
            records = self._planner.next(trial_id)
            if records is None:
                return None
            if not records:
                return Searcher.FINISHED
            order = self._order(records)
        except OSError as error:
            log.warning("the next cells cannot be looked at just now: %s", error)
            return None
        self._orders[trial_id] = order
        self._board.began(records)
        return order.model_dump()

    def _has_room(self) -> bool:
        """Whether the budget lets anything begin, or go on: a search must not be asked for what would be thrown away."""
        state = self._board.state
        return self._budget.room(state) or any(
            record.standing == "planned" and self._budget.allows(state, record) for record in state.cells
        )

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tune's hook: a validation; or nothing, of a trial that ends without one."""
        if "key" not in result:
            return
        record = self._board[result["key"]]
        self._charge(trial_id, record, result)
        self._board.validated(record, result["cell_epoch"], result["cell_score"], result["steps"])
        self._planner.heard(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune's hook: a trial has ended, for whatever reason."""
        self._ended.append((trial_id, result, error))
        self.settle()

    def condemn(self, trial_id: str, result: dict[str, Any]) -> None:
        """The rule of early stopping wants the trial to end at the validation that it has just told of."""
        if trial_id in self._orders and "key" in result:
            self._condemned[trial_id] = result["key"]
            try:
                ask(self._board.directory.run(result["key"]), "pause")
            except OSError as error:
                log.warning("cell %s cannot be asked to pause just now: %s", result["key"], error)

    def settle(self) -> None:
        """Bring on the board how trials have ended; what cannot be read just now is left for later."""
        self._settled_s = time.monotonic()
        for one in list(self._ended):
            try:
                self._over(*one)
            except OSError as error:
                log.warning("how trial %s has ended cannot be read just now: %s", one[0], error)
                return
            self._ended.remove(one)

    def _over(self, trial_id: str, result: dict[str, Any] | None, error: bool) -> None:
        order = self._orders[trial_id]
        records = [self._board[cell.key] for cell in order.cells]
        if result and "key" in result:
            self._charge(trial_id, self._board[result["key"]], result)
        failed = False
        why = self._why_stopped if trial_id in self._condemned else None if self.ending else PAUSED
        for record in records:
            if record.standing == "running":  # after a fold that failed, the others wait for the next call
                self._board.ended(record, None if failed else why, error=error and not failed)
            failed = failed or record.standing == "failed"
        self._planner.over(trial_id, result, failed=failed or error)
        del self._orders[trial_id]
        self._condemned.pop(trial_id, None)

    def look(self) -> None:
        """See whether the budget is spent; ask what shall end to pause, again and again: who just starts forgets it."""
        self._board.tick()
        if self._ended and time.monotonic() - self._settled_s > _AGAIN_S:
            self.settle()
        if self.ending is None:
            reason = self._budget.over(self._board.state)
            if reason is not None:
                self.end(reason)
        doomed = list(self._orders if self.ending is not None else self._condemned)
        if doomed and time.monotonic() - self._asked_s > _ASK_S:
            self._asked_s = time.monotonic()
            try:
                self._ask(doomed)
            except OSError as error:
                log.warning("what runs cannot be asked to pause just now: %s", error)

    def _ask(self, trials: Sequence[str]) -> None:
        """Ask for a pause: of the runs that these trials train themselves, and of trials that wait for another sweep's."""
        directory = self._board.directory
        if self.ending is not None:
            _ask_once(RunDirectory(directory.storage))
        for key in [cell.key for trial_id in trials for cell in self._orders[trial_id].cells]:
            if self._board[key].standing == "running":
                now = holder(directory.run(key))
                if now is not None and now.owner == directory.storage.uri:
                    _ask_once(directory.run(key))

    def end(self, reason: str) -> None:
        """Begin no more trials, and pause those that run."""
        self.ending = reason
        self._board.note(reason)

    @property
    def running(self) -> int:
        """How many trials have begun and not ended."""
        return len(self._orders)

    def _charge(self, trial_id: str, record: CellRecord, result: dict[str, Any]) -> None:
        total, before = float(result.get("time_total_s", 0.0)), self._seconds.get(trial_id, 0.0)
        order = self._orders[trial_id]
        each = order.resources if order.charged is None else order.charged
        taken = {kind: amount * max(int(result.get("workers", 1)), 1) for kind, amount in each.items()}
        # A process that was lost is followed by one that counts from zero.
        self._board.spent(record, total - before if total >= before else total, taken)
        self._seconds[trial_id] = total

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's own state has all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing either."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its searcher into the experiment's folder, for a restore that is not wanted here."""
        return {}


def _ask_once(run: RunDirectory) -> None:
    if asked(run) is None:
        ask(run, "pause")
