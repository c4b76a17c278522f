"""Which cell Ray Tune trains next: a `Searcher` of ours, asked whenever there is room for one more trial.

It knows nothing by heart: what has been trained lies on the board, so that a sweep that was killed goes on as if it had not been.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ray.tune.search import Searcher

from longhaul.resilience.requests import ask, asked
from longhaul.resilience.sweep_directory import CellRecord
from longhaul.tuning.board import Board
from longhaul.tuning.budget import Budget
from longhaul.tuning.trial import TrialOrder

_ASK_S = 5.0


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

    Args:
        board: of the sweep.
        planner: chooses.
        budget: ends it all.
        order: makes a trial's order.
        why_stopped: said of a cell that Tune has ended before its time.
    """

    def __init__(self, board: Board, planner: Planner, budget: Budget, order: MakeOrder, why_stopped: str) -> None:
        super().__init__(metric="score", mode=board.state.direction)
        self._board, self._planner, self._budget = board, planner, budget
        self._order, self._why_stopped = order, why_stopped
        self._orders: dict[str, TrialOrder] = {}
        self._seconds: dict[str, float] = {}
        self._asked_s = 0.0
        self.ending: str | None = None
        """Why no more trials begin and those that run are paused; None while all goes on."""

    def suggest(self, trial_id: str) -> Any:
        """Tune's hook: the next trial's config, None for not yet, or FINISHED."""
        self.look()
        if self.ending is not None:
            return Searcher.FINISHED
        if not self._has_room():
            return None  # what has begun trains to its end; then the budget is over
        records = self._planner.next(trial_id)
        if records is None:
            return None
        if not records:
            return Searcher.FINISHED
        order = self._order(records)
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
        order = self._orders.pop(trial_id)
        records = [self._board[cell.key] for cell in order.cells]
        if result and "key" in result:
            self._charge(trial_id, self._board[result["key"]], result)
        failed = False
        for record in records:
            if record.standing == "running":  # after a fold that failed, the others wait for the next call
                self._board.ended(record, None if self.ending or failed else self._why_stopped, error=error)
            failed = failed or record.standing == "failed"
        self._planner.over(trial_id, result, failed=failed or error)

    def look(self) -> None:
        """See whether the budget is spent; while the sweep ends, ask what runs to pause."""
        if self.ending is None:
            reason = self._budget.over(self._board.state)
            if reason is not None:
                self.end(reason)
        if self.ending is not None and time.monotonic() - self._asked_s > _ASK_S:
            self._asked_s = time.monotonic()
            for order in self._orders.values():
                for cell in order.cells:
                    run = self._board.directory.run(cell.key)
                    if self._board[cell.key].standing == "running" and asked(run) is None:
                        ask(run, "pause")  # again and again: a run that is just starting forgets what was asked before

    def end(self, reason: str) -> None:
        """Begin no more trials, and pause those that run."""
        self.ending = reason
        self._board.note(reason)

    @property
    def running(self) -> int:
        """How many trials have begun and not ended."""
        return len(self._orders)

    def _charge(self, trial_id: str, record: CellRecord, result: dict[str, Any]) -> None:
        total = float(result.get("time_total_s", 0.0))
        self._board.spent(record, max(total - self._seconds.get(trial_id, 0.0), 0.0))
        self._seconds[trial_id] = total

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's own state has all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing either."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its searcher into the experiment's folder, for a restore that is not wanted here."""
        return {}
