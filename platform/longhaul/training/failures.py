"""What happens when workers fail: classify, write it down, restart or end. Runs in Ray Train's controller.

Ray's own policy (`DefaultFailurePolicy`) counts all failures of a run's life in one number; here each class has its budget a
day. Ray asks `FailurePolicy.make_decision` for every failure; an exception of ours would end the run, so whatever goes wrong
in the writing is logged and swallowed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import TrainControllerState, TrainControllerStateType
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2.api.config import FailureConfig, ScalingConfig
from ray.train.v2.api.exceptions import ControllerError, NCCLHangError, PreemptionError, TrainingFailedError, WorkerGroupError

from longhaul.errors import LonghaulError
from longhaul.recipe.schema import RetryBudgets
from longhaul.resilience.checkpoint import CheckpointStore
from longhaul.resilience.flight import FlightState, flights
from longhaul.resilience.incidents import FailureClass, first_to_fail, incidents, record_incident
from longhaul.resilience.ledger import State, mark
from longhaul.resilience.retries import why_not
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training import memory
from longhaul.training.memory import MemoryExhaustedError

log = logging.getLogger(__name__)


class BudgetSpentError(LonghaulError):
    """The run could be restarted, but was too often."""


class RunFailurePolicy(FailurePolicy):
    """Decides on restarts of one run by class of failure."""

    def __init__(self, uri: str, budgets: RetryBudgets) -> None:
        super().__init__(FailureConfig(max_failures=-1))
        self._uri, self._budgets = uri, budgets

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Ray's hook: RETRY, or RAISE to end the run; `reason` of an end goes into the run's record."""
        kind, what = classify(training_failed_error)
        try:
            reason = self._write_down(kind, what, training_failed_error)
        except Exception:
            log.exception("a failure could not be written down: %s", what)
            reason = "it is not cured by a restart" if kind == "user" else None
        if reason is None:
            log.warning("%s: %s; the workers are started again", kind, what)
            return FailureDecision.RETRY
        log.error("%s: %s; the run ends: %s", kind, what, reason)
        return FailureDecision.RAISE

    def _write_down(self, kind: FailureClass, what: str, error: TrainingFailedError) -> str | None:
        run = RunDirectory.open(self._uri)
        last, former = flights(run), incidents(run)
        segment, step = max((state.segment for state in last), default=0), max((state.step for state in last), default=0)
        # A group that died before its first word: what lies there is of the group before, whose end has its page already.
        states = [] if any(one.segment == segment and one.kind != "rollback" for one in former) else last
        if kind == "lost" and any(state.stacks for state in states):
            kind, what = "hang", f"no progress in {first_state(states)}: {what}"
        saved_s = max((entry.created_s for entry in CheckpointStore(run).entries()), default=0.0)
        reason = why_not(kind, former, self._budgets, now_s=time.time(), saved_s=saved_s)
        if kind == "capacity":  # asked for again every few seconds until there is some: no page each time
            mark(run, "waiting", segment=segment, step=step)
            return reason
        failure = _first(error)
        if isinstance(failure, MemoryExhaustedError) and failure.micro_batch == 1:
            reason = reason or "not even one sample fits into memory"
        mark(run, "startup", segment=segment, step=step)
        first = _named(states, error) or first_to_fail(states)
        incident = record_incident(run, kind, what, segment=segment, first=first, retried=reason is None)
        detail = {"class": kind, "incident": incident.number, "rank": incident.rank, "reason": reason}
        run.add_event("lost", f"{kind}: {what}", segment=segment, step=step, **detail)
        if isinstance(failure, MemoryExhaustedError) and failure.micro_batch > 1:
            smaller = failure.micro_batch // 2
            text = f"micro-batch {failure.micro_batch} -> {smaller}, accumulation to match: {failure}"
            run.add_event(memory.EVENT, text, segment=segment, step=step, micro_batch=smaller)
        if reason is not None and kind != "user":
            run.add_event("budget_spent", f"the run ends: {reason}", segment=segment, step=step)
        return reason


class DriverLedger(ControllerCallback):
    """Writes the driver's marks into the ledger, as Ray Train's controller goes from state to state."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def after_controller_state_update(self, previous_state: TrainControllerState, current_state: TrainControllerState) -> None:
        """Ray's hook: while a group is scheduled, the run waits for capacity."""
        waits = (TrainControllerStateType.SCHEDULING, TrainControllerStateType.RESCHEDULING)
        if current_state._state_type in waits:
            self._mark("waiting")

    def on_controller_start_worker_group(self, *, scaling_config: ScalingConfig, num_workers: int) -> None:
        """Ray's hook: there is capacity, the workers start."""
        self._mark("startup")

    def _mark(self, state: State) -> None:
        try:
            run = RunDirectory.open(self._uri)
            mark(run, state, segment=run.summary().segment)
        except Exception:
            log.exception("the ledger's mark %r could not be written", state)


def classify(error: TrainingFailedError) -> tuple[FailureClass, str]:
    """The class of a failure, and what happened in one line."""
    if isinstance(error, PreemptionError):
        return "preemption", f"the node of ranks {list(error.preemption_info.preempted_ranks)} was taken away"
    if isinstance(error, ControllerError):
        failure = error.controller_failure
        starting = isinstance(failure, WorkerGroupStartupTimeoutError | WorkerGroupStartupFailedError)
        return ("capacity" if starting else "user"), _line(failure)
    if not isinstance(error, WorkerGroupError):
        return "lost", _line(error)
    failures = error.worker_failures
    if isinstance(error, NCCLHangError):
        return "hang", _line(error)
    if not failures:
        return "lost", _line(error)
    if any(isinstance(failure, MemoryExhaustedError) for failure in failures.values()):
        return "memory", _line(next(f for f in failures.values() if isinstance(f, MemoryExhaustedError)))
    for failure in failures.values():
        if isinstance(failure, LonghaulError):
            return "user", _line(failure)
    if any(_preempted(failure) for failure in failures.values()):
        return "preemption", "a node was taken away before its workers had ended"
    dead = {rank: f for rank, f in failures.items() if isinstance(f, WorkerHealthCheckFailedError)}
    rank, failure = min((dead or failures).items())
    return "lost", f"rank {rank}: {_line(failure)}"


def first_state(states: list[FlightState]) -> str:
    """What the first to fail was at."""
    first = first_to_fail(states)
    return repr(first.state) if first else "?"


def _first(error: TrainingFailedError) -> Exception | None:
    if not isinstance(error, WorkerGroupError):
        return None
    known: Callable[[Exception], bool] = lambda failure: isinstance(failure, LonghaulError)  # noqa: E731
    failures = sorted(error.worker_failures.values(), key=known, reverse=True)
    return failures[0] if failures else None


def _named(states: list[FlightState], error: TrainingFailedError) -> FlightState | None:
    """The last words of the first among those that Ray names, the dead before those that only raised, where nobody hung."""
    if not isinstance(error, WorkerGroupError) or any(state.stacks for state in states):
        return None
    dead = [rank for rank, failure in error.worker_failures.items() if isinstance(failure, WorkerHealthCheckFailedError)]
    ranks = dead or list(error.worker_failures)
    return first_to_fail([state for state in states if state.rank in ranks])


def _preempted(failure: Exception) -> bool:
    inner = failure.health_check_failure if isinstance(failure, WorkerHealthCheckFailedError) else failure
    return isinstance(inner, RayActorError) and bool(inner.preempted)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:150]} ... {text[-150:]}"
