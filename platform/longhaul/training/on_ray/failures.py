"""What happens when workers fail: classify, write it down, restart or end. Runs in Ray Train's controller.

Ray's own policy (`DefaultFailurePolicy`) counts all failures of a run's life in one number; here each class has its budget a
day. Ray asks `FailurePolicy.make_decision` for every failure; an exception of ours would end the run, so whatever goes wrong
in the writing is logged and swallowed: then the workers are started again.

    preemption   Ray says that a node was taken away, or the workers had a notice
    capacity     no place for the workers within RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S
    memory       a rank ran out of memory
    user         an error on purpose (`LonghaulError`), or more asked for than the cluster can ever give: no restart
    hang         a rank's watchdog left its stacks, NCCL's detector spoke, or a rank no longer answers
    lost         the rest: dead workers and nodes, errors in workers, storage or network trouble in the controller
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence

import ray
from ray.exceptions import RayActorError, RayError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import TrainControllerState, TrainControllerStateType
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2.api.config import FailureConfig, ScalingConfig
from ray.train.v2.api.exceptions import ControllerError, NCCLHangError, PreemptionError, TrainingFailedError, WorkerGroupError

from longhaul.errors import LonghaulError
from longhaul.recipe.schema import RetryBudgets
from longhaul.resilience.checkpoint import CheckpointStore
from longhaul.resilience.flight import FlightState, flights
from longhaul.resilience.incidents import FailureClass, Incident, first_to_fail, incidents, record_incident
from longhaul.resilience.ledger import State, mark
from longhaul.resilience.retries import why_not
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.recovery.memory import MemoryExhaustedError, halve

log = logging.getLogger(__name__)

_STACKS_S = 6.0  # for the other ranks' watchdogs to speak too, after the first has
_DEATH = re.compile(r"Worker exit detail: (.*?)(?: Some common causes.*)?$")
_NOTICE_S = 300.0  # within which a notice explains the loss of workers


class BudgetSpentError(LonghaulError):
    """The run could be restarted, but was too often."""


class RunFailurePolicy(FailurePolicy):
    """Decides on restarts of one run by class of failure."""

    def __init__(self, uri: str, budgets: RetryBudgets) -> None:
        super().__init__(FailureConfig(max_failures=-1))
        self._uri, self._budgets = uri, budgets
        self._unplaced: list[Incident] = []

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Ray's hook: RETRY, or RAISE to end the run; `reason` of an end goes into the run's record."""
        kind, what = classify(training_failed_error)
        try:
            reason = self._unplaced_again(what) if kind == "capacity" else self._write_down(kind, what, training_failed_error)
        except Exception:  # whatever it was: bookkeeping must not end the run
            log.exception("a failure could not be written down: %s", what)
            reason = "it is not cured by a restart" if kind == "user" else None
        if reason is None:
            log.warning("%s: %s; the workers are started again", kind, what)
            return FailureDecision.RETRY
        log.error("%s: %s; the run ends: %s", kind, what, reason)
        return FailureDecision.RAISE

    def _unplaced_again(self, what: str) -> str | None:
        """Places are asked for again every minute until there are some: counted here, without a page each time."""
        run = RunDirectory.open(self._uri)
        reason = why_not("capacity", self._unplaced, self._budgets, now_s=time.time(), saved_s=0.0)
        self._unplaced.append(Incident(number=0, time_s=time.time(), segment=0, kind="capacity", what=what))
        if reason is not None:
            last = flights(run)
            segment, step = max((state.segment for state in last), default=0), max((state.step for state in last), default=0)
            record_incident(run, "capacity", what, segment=segment, first=None, step=step, retried=False, reason=reason)
            run.add_event("budget_spent", f"the run ends: {reason}", segment=segment, step=step)
        return reason

    def _write_down(self, kind: FailureClass, what: str, error: TrainingFailedError) -> str | None:
        run = RunDirectory.open(self._uri)
        last, former = flights(run), incidents(run)
        segment, step = max((state.segment for state in last), default=0), max((state.step for state in last), default=0)
        mark(run, "startup", segment=segment, step=step)
        states = _of_this_group(last, former)
        if kind in ("lost", "hang") and any(state.stacks for state in states):
            states = _with_stacks(run, states, error)
            kind, what = "hang", _standstill(states)
        if kind == "lost" and _had_notice(run, segment):
            kind, what = "preemption", f"after a notice: {what}"
        saved_s = max((entry.created_s for entry in CheckpointStore(run).entries()), default=0.0)
        reason = why_not(kind, former, self._budgets, now_s=time.time(), saved_s=saved_s)
        failure = _first(error)
        if isinstance(failure, MemoryExhaustedError) and failure.micro_batch == 1:
            reason = reason or "not even one sample fits into memory"
        first = _named(states, error) or first_to_fail(states)
        incident = record_incident(
            run, kind, what, segment=segment, first=first, step=step, retried=reason is None, reason=reason
        )  # fmt: skip
        detail = {"class": kind, "incident": incident.number, "rank": incident.rank, "reason": reason}
        run.add_event("lost", f"{kind}: {what}", segment=segment, step=step, **detail)
        if isinstance(failure, MemoryExhaustedError):
            halve(run, failure, segment=segment, step=step)
        if reason is not None and kind != "user":
            run.add_event("budget_spent", f"the run ends: {reason}", segment=segment, step=step)
        return reason


class DriverLedger(ControllerCallback, WorkerGroupCallback):
    """Writes the driver's marks into the ledger, as Ray Train's controller goes from state to state."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._last: State | None = None
        self._unplaced = False

    def after_controller_state_update(self, previous_state: TrainControllerState, current_state: TrainControllerState) -> None:
        """Ray's hook: tells a resize, and a wait for capacity (no place in time, or the scaling policy sees none)."""
        before, now = previous_state._state_type, current_state._state_type
        kinds = TrainControllerStateType
        if now is kinds.RUNNING:
            self._last, self._unplaced = None, False
        elif now is kinds.RESIZING:
            self._mark("startup")
        elif now is kinds.RESCHEDULING or (now is before and now in (kinds.INITIALIZING, kinds.RESTARTING)):
            self._unplaced = True
            self._mark("waiting")

    def on_controller_start_worker_group(self, *, scaling_config: ScalingConfig, num_workers: int) -> None:
        """Ray's hook: the workers are asked for; whether there is room for them shows only later."""
        self._mark("waiting" if self._unplaced or _too_few(scaling_config, num_workers) else "startup")

    def before_init_train_context(self, workers: Sequence[object]) -> dict[str, list[object]]:
        """Ray's hook: the workers have their places, and their processes live."""
        self._mark("startup")
        return {}

    def _mark(self, state: State) -> None:
        if state == self._last:  # every mark is a file
            return
        try:
            run = RunDirectory.open(self._uri)
            mark(run, state, segment=run.summary().segment)
            self._last = state
        except Exception:  # whatever it was: bookkeeping must not end the run
            log.exception("the ledger's mark %r could not be written", state)


def ended_by(run: RunDirectory) -> BudgetSpentError | None:
    """Why the run's newest incident ended it, if it did: what Ray's own error, which the driver gets, does not know."""
    last = incidents(run)[-1:]
    if not last or last[0].retried:
        return None
    return BudgetSpentError(f"run {run.name}: {last[0].reason}. See `longhaul runs incidents {run.uri} {last[0].number}`")


def classify(error: TrainingFailedError) -> tuple[FailureClass, str]:
    """The class of a failure, and what happened in one line."""
    if isinstance(error, PreemptionError):
        return "preemption", f"the node of ranks {list(error.preemption_info.preempted_ranks)} was taken away"
    if isinstance(error, ControllerError):
        failure = error.controller_failure
        if isinstance(failure, WorkerGroupStartupTimeoutError):
            return "capacity", _line(failure)
        # A worker that died while it started, or the network or the storage while the controller needed them.
        passing = isinstance(failure, WorkerGroupStartupFailedError | RayError | OSError)
        return ("lost" if passing else "user"), _line(failure)
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
    for rank, failure in failures.items():
        if isinstance(failure, WorkerHealthCheckTimeoutError):
            return "hang", f"rank {rank}: {_line(failure)}"
    dead = {rank: f for rank, f in failures.items() if isinstance(f, WorkerHealthCheckFailedError)}
    rank, failure = min((dead or failures).items())
    return "lost", f"rank {rank}: {_line(failure)}"


def _of_this_group(last: list[FlightState], former: list[Incident]) -> list[FlightState]:
    """The last words of the group that has just failed: none where it died before its first word.

    What lies there is then of the group before, whose end has its page already; and of a group that shrank, files of ranks
    that are no more may lie there too.
    """
    newest = max(last, key=lambda state: state.time_ns, default=None)
    if newest is None:
        return []
    pages = [one for one in former if one.kind != "rollback" and one.segment == newest.segment]
    if any(one.attempt in ("", newest.attempt) for one in pages):
        return []
    return [state for state in last if state.attempt == newest.attempt]


def _with_stacks(run: RunDirectory, states: list[FlightState], error: TrainingFailedError) -> list[FlightState]:
    """Wait a little for the stacks of those that still stand still: whoever ends first is not to blame for that alone."""
    gone = set(error.worker_failures) if isinstance(error, WorkerGroupError) else set()
    attempt, until = states[0].attempt, time.monotonic() + _STACKS_S
    while any(state.stacks is None and state.rank not in gone for state in states) and time.monotonic() < until:
        time.sleep(0.5)
        states = [state for state in flights(run, states[0].segment) if state.attempt == attempt] or states
    return states


def _had_notice(run: RunDirectory, segment: int) -> bool:
    """Whether this group was told a short while ago that a node of it goes away."""
    rows = [row for row in run.events().to_pylist() if row["kind"] == "preemption" and row["segment"] == segment]
    return any(time.time() - row["time_s"] < _NOTICE_S for row in rows)


def _too_few(scaling_config: ScalingConfig, num_workers: int) -> bool:
    """Whether the cluster, as it is, has no room for the workers, even if it were empty."""
    each: dict[str, float] = scaling_config._resources_per_worker_not_none
    try:
        have = ray.cluster_resources()
    except Exception:  # whatever it was: bookkeeping must not end the run
        log.warning("the cluster's resources cannot be had now", exc_info=True)  # only the ledger's wording hangs on it
        return False
    return any(have.get(name, 0.0) < amount * num_workers for name, amount in each.items())


def _standstill(states: list[FlightState]) -> str:
    first = first_to_fail(states)
    return f"no progress: rank {first.rank} on {first.host} stood still in {first.state!r}" if first else "no progress"


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
    """What an error says, in one line; of a worker's death only the cause, without Ray's advice."""
    if isinstance(error, WorkerHealthCheckFailedError):
        error = error.health_check_failure
    text = " ".join(str(error).split()) or type(error).__name__
    if (found := _DEATH.search(text)) is not None:
        text = f"its process died: {found[1]}"
    return text if len(text) <= 300 else f"{text[:150]} ... {text[-150:]}"
