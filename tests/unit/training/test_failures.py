"""What the failure policy makes of Ray Train's errors and of what the ranks have left in the run directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import ControllerError, NCCLHangError, PreemptionError, TrainingFailedError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from longhaul.errors import UserError
from longhaul.recipe import parse
from longhaul.recipe.schema import RetryBudgets
from longhaul.resilience.flight import FlightState
from longhaul.resilience.incidents import incidents
from longhaul.resilience.ledger import read_ledger
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training import failures
from longhaul.training.failures import RunFailurePolicy, classify
from longhaul.training.memory import MemoryExhaustedError

RECIPE = "{name: r, model: {name: test_resnet}, data: {kind: digits}, training: {steps: 9}}"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(str(tmp_path), "r", parse(RECIPE))


def leave(run: RunDirectory, rank: int, segment: int = 1, step: int = 40, stacks: str | None = None, at: int = 100) -> None:
    """A flight file."""
    state = FlightState(
        segment=segment, attempt="a", rank=rank, world_size=3, host=f"host-{rank}", pid=1, step=step, state="step",
        state_since_ns=at, time_ns=at, log=[f"words of rank {rank}"], stacks=stacks,
    )  # fmt: skip
    run.storage.write_bytes(f"flight/{segment:05d}-{rank:05d}.json", state.model_dump_json().encode())


def dead(*, preempted: bool = False) -> WorkerHealthCheckFailedError:
    """A worker that is gone."""
    gone = ActorDiedError()
    gone._preempted = preempted
    return WorkerHealthCheckFailedError("the health check failed", gone)


def group(**ranks: Exception) -> WorkerGroupError:
    """The failure of a worker group, by rank: `r0=...`."""
    return WorkerGroupError("workers failed", {int(name[1:]): error for name, error in ranks.items()})


def decide(run: RunDirectory, error: TrainingFailedError, **budgets: int) -> FailureDecision:
    return RunFailurePolicy(run.uri, RetryBudgets.model_validate(budgets)).make_decision(error)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (PreemptionError(PreemptionInfo(None, {"node": [2, 1]})), "preemption", "ranks [1, 2]"),
        (ControllerError(WorkerGroupStartupTimeoutError(4)), "capacity", "4"),
        (ControllerError(ValueError("a bug in the policy")), "user", "a bug in the policy"),
        (group(r0=RuntimeError("connection reset"), r1=dead()), "lost", "rank 1"),
        (group(r0=dead(preempted=True), r1=RuntimeError("connection reset")), "preemption", "taken away"),
        (group(r0=RuntimeError("connection reset"), r1=MemoryExhaustedError(8, "20 GiB")), "memory", "micro-batches of 8"),
        (group(r0=RuntimeError("connection reset"), r1=UserError("no such file")), "user", "no such file"),
        (group(r0=RuntimeError("connection reset")), "lost", "rank 0: connection reset"),
        (NCCLHangError("deadlocked", {}), "hang", "deadlocked"),
        (WorkerGroupError("nobody knows", {}), "lost", "nobody knows"),
        (TrainingFailedError("whatever"), "lost", "whatever"),
    ],
)
def test_each_failure_has_its_class(error: TrainingFailedError, kind: str, words: str) -> None:
    found, what = classify(error)
    assert found == kind
    assert words in what
    assert len(what) < 320


def test_a_lost_node_is_written_down_and_the_run_goes_on(run: RunDirectory) -> None:
    for rank in range(3):
        leave(run, rank, at=100 + rank)
    assert decide(run, group(r0=RuntimeError("connection reset"), r1=dead())) is FailureDecision.RETRY
    [page] = incidents(run)
    assert (page.kind, page.rank, page.host, page.step, page.segment, page.retried) == ("lost", 1, "host-1", 40, 1, True)
    assert page.log == ["words of rank 1"]
    [mark] = read_ledger(run).to_pylist()
    assert (mark["source"], mark["state"], mark["step"]) == ("driver", "startup", 40)
    [event] = run.events().to_pylist()
    assert (event["kind"], event["step"]) == ("lost", 40)


def test_of_several_that_raised_the_first_is_named(run: RunDirectory) -> None:
    for rank, at in enumerate((300, 100, 200)):
        leave(run, rank, at=at)
    decide(run, group(r0=RuntimeError("peer is gone"), r1=RuntimeError("disk"), r2=RuntimeError("peer is gone")))
    assert incidents(run)[0].rank == 1


def test_stacks_in_the_flight_files_make_it_a_hang(run: RunDirectory) -> None:
    leave(run, 0, at=100)
    leave(run, 1, at=200, stacks="in a barrier")
    assert decide(run, group(r0=dead())) is FailureDecision.RETRY
    [page] = incidents(run)
    assert (page.kind, page.rank, page.stacks) == ("hang", 1, "in a barrier")
    assert decide(run, group(r0=dead()), hang=1) is FailureDecision.RETRY  # what lies there has its page: not a second hang
    assert [page.kind for page in incidents(run)] == ["hang", "lost"]
    assert (incidents(run)[1].rank, incidents(run)[1].stacks) == (None, None)
    leave(run, 0, segment=2, stacks="in a barrier")
    assert decide(run, group(r0=dead()), hang=1) is FailureDecision.RAISE


def test_a_spent_budget_ends_the_run_and_says_so(run: RunDirectory) -> None:
    leave(run, 0)
    assert decide(run, group(r0=dead()), lost=1) is FailureDecision.RETRY
    leave(run, 0, segment=2)
    assert decide(run, group(r0=dead()), lost=1) is FailureDecision.RAISE
    assert [page.retried for page in incidents(run)] == [True, False]
    assert [event["kind"] for event in run.events().to_pylist()].count("budget_spent") == 1


def test_missing_capacity_is_waited_for_without_a_page_each_time(run: RunDirectory) -> None:
    for _ in range(30):
        assert decide(run, ControllerError(WorkerGroupStartupTimeoutError(4))) is FailureDecision.RETRY
    assert incidents(run) == []
    assert {row["state"] for row in read_ledger(run).to_pylist()} == {"waiting"}


def test_memory_halves_the_micro_batch_until_not_one_sample_fits(run: RunDirectory) -> None:
    assert decide(run, group(r0=MemoryExhaustedError(2, "full"))) is FailureDecision.RETRY
    assert decide(run, group(r0=MemoryExhaustedError(1, "full"))) is FailureDecision.RAISE
    smaller = [event for event in run.events().to_pylist() if event["kind"] == "micro_batch"]
    assert len(smaller) == 1
    assert '"micro_batch": 1' in smaller[0]["detail"].replace('":1', '": 1')
    assert [page.retried for page in incidents(run)] == [True, False]


def test_a_users_mistake_ends_the_run(run: RunDirectory) -> None:
    assert decide(run, group(r0=UserError("no such file"))) is FailureDecision.RAISE
    assert incidents(run)[0].retried is False


def test_a_storage_that_cannot_be_written_does_not_end_the_run(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("AWS Error SLOW_DOWN")

    monkeypatch.setattr(failures, "record_incident", broken)
    assert decide(run, group(r0=dead())) is FailureDecision.RETRY
    assert decide(run, group(r0=UserError("no such file"))) is FailureDecision.RAISE
    assert "could not be written down" in caplog.text
