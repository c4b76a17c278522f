"""What the failure policy makes of Ray Train's errors and of what the ranks have left in the run directory."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError
from ray.train.v2._internal.exceptions import (
    InsufficientClusterResourcesError,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.controller import state as controller
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.api.exceptions import ControllerError, NCCLHangError, PreemptionError, TrainingFailedError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from longhaul.errors import UserError
from longhaul.recipe import parse
from longhaul.recipe.schema import RetryBudgets
from longhaul.resilience.flight import FlightState
from longhaul.resilience.incidents import incidents
from longhaul.resilience.ledger import read_ledger
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.on_ray import failures
from longhaul.training.on_ray.failures import DriverLedger, RunFailurePolicy, classify, ended_by
from longhaul.training.recovery.memory import MemoryExhaustedError

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
        (ControllerError(InsufficientClusterResourcesError("8 GPU")), "user", "8 GPU"),
        (ControllerError(WorkerGroupStartupFailedError("died in its cradle")), "lost", "died in its cradle"),
        (ControllerError(OSError("AWS Error SLOW_DOWN")), "lost", "SLOW_DOWN"),
        (ControllerError(GetTimeoutError("no answer from the cluster")), "lost", "no answer"),
        (group(r0=RuntimeError("x"), r1=WorkerHealthCheckTimeoutError("no answer for 600 s")), "hang", "rank 1: no answer"),
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
    assert run.events().num_rows == 0


def test_missing_capacity_has_a_budget_too(run: RunDirectory) -> None:
    leave(run, 0, segment=3)
    policy = RunFailurePolicy(run.uri, RetryBudgets(capacity=2))
    error = ControllerError(WorkerGroupStartupTimeoutError(4))
    assert [policy.make_decision(error) for _ in range(3)] == [FailureDecision.RETRY] * 2 + [FailureDecision.RAISE]
    [page] = incidents(run)
    assert (page.kind, page.retried, page.segment, page.step) == ("capacity", False, 3, 40)


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


def test_a_death_is_told_in_one_line_without_rays_advice() -> None:
    words = "Worker exit type: SYSTEM_ERROR Worker exit detail: Worker exits with code 2. Some common causes include: (1) ..."
    gone = dead()
    gone.health_check_failure.error_msg = f"The actor died unexpectedly. {words}"  # type: ignore[attr-defined]
    assert classify(group(r1=gone)) == ("lost", "rank 1: its process died: Worker exits with code 2.")


def test_a_death_after_a_notice_is_a_preemption(run: RunDirectory) -> None:
    """Ray tells of it only where the node was drained by the autoscaler; the workers had the notice in any case."""
    run.add_event("preemption", "notice", segment=1, step=38)
    leave(run, 0)
    assert decide(run, group(r0=dead()), lost=0) is FailureDecision.RETRY
    leave(run, 0, segment=2)
    assert decide(run, group(r0=dead()), lost=0) is FailureDecision.RAISE  # the notice was for the group before
    assert [page.kind for page in incidents(run)] == ["preemption", "lost"]


def test_the_first_hung_rank_to_end_is_not_blamed_before_the_others_have_spoken(run: RunDirectory) -> None:
    """Rank 0 waits for rank 1 in a collective, and its watchdog fires first."""
    leave(run, 0, at=100, stacks=stack("torch/distributed/distributed_c10d.py"))
    leave(run, 1, at=200)
    late = threading.Timer(1.0, leave, (run, 1), {"at": 150, "stacks": stack("time.py")})
    late.start()
    assert decide(run, group(r0=dead())) is FailureDecision.RETRY
    late.join()
    [page] = incidents(run)
    assert (page.kind, page.rank, page.stacks) == ("hang", 1, stack("time.py"))


def test_a_group_that_died_before_its_run_had_a_summary_has_its_own_words(run: RunDirectory) -> None:
    """Its number is that of the group before, as nobody had written that it began; its id is not."""
    leave(run, 0)
    decide(run, group(r0=dead()))
    state = FlightState.model_validate_json(run.storage.read_bytes("flight/00001-00000.json"))
    again = state.model_copy(update={"attempt": "b", "time_ns": 500, "log": ["words of the second"]})
    run.storage.write_bytes("flight/00001-00000.json", again.model_dump_json().encode())
    decide(run, group(r0=dead()))
    assert incidents(run)[1].log == ["words of the second"]


def test_files_of_ranks_that_are_no_more_are_not_looked_at(run: RunDirectory) -> None:
    leave(run, 0, at=300)
    old = FlightState(
        segment=1, attempt="older", rank=2, world_size=3, host="gone", pid=1, state="data", time_ns=1, stacks="in a lock"
    )  # fmt: skip
    run.storage.write_bytes("flight/00001-00002.json", old.model_dump_json().encode())
    decide(run, group(r0=dead()))
    assert (incidents(run)[0].kind, incidents(run)[0].rank) == ("lost", 0)


def test_an_end_by_budget_has_a_message_for_the_user(run: RunDirectory) -> None:
    assert ended_by(run) is None
    leave(run, 0)
    decide(run, group(r0=dead()), lost=1)
    assert ended_by(run) is None
    leave(run, 0, segment=2)
    decide(run, group(r0=dead()), lost=1)
    assert "budget of 1 restarts a day for 'lost'" in str(ended_by(run))
    assert f"longhaul runs incidents {run.uri} 2" in str(ended_by(run))


def stack(top: str) -> str:
    """As `faulthandler` writes it, innermost frame first."""
    watchdog = 'Current thread 0x01 [longhaul-flight] (most recent call first):\n  File "resilience/flight.py", line 1 in _stacks'
    frames = f'  File "lib/{top}", line 9 in wait\n  File "longhaul/training/loop.py", line 190 in step'
    return f"{watchdog}\n\nThread 0x02 (most recent call first):\n{frames}\n"


def states(ledger: DriverLedger, *path: controller.TrainControllerState) -> None:
    """Take Ray Train's controller through its states."""
    for before, after in itertools.pairwise(path):
        ledger.after_controller_state_update(before, after)


def marks(run: RunDirectory) -> list[str]:
    rows = [row for row in read_ledger(run).to_pylist() if row["source"] == "driver"]
    return [row["state"] for row in sorted(rows, key=lambda row: row["start_ns"])]


ERROR = ControllerError(WorkerGroupStartupTimeoutError(1))
PLACE = ResizeDecision(num_workers=1, resources_per_worker={"CPU": 1})
ONE, MANY = ScalingConfig(num_workers=1), ScalingConfig(num_workers=10_000)


@pytest.mark.usefixtures("ray_cluster")
def test_the_wait_for_a_place_is_waiting_until_the_workers_have_theirs(run: RunDirectory) -> None:
    """Three times in vain, a minute each; marked once, as every mark is a file on the storage."""
    ledger = DriverLedger(run.uri)
    scheduling, again = controller.SchedulingState(PLACE), controller.ReschedulingState(ERROR)
    states(ledger, controller.InitializingState(), scheduling)
    for _ in range(3):
        ledger.on_controller_start_worker_group(scaling_config=MANY, num_workers=10_000)
        states(ledger, scheduling, again, scheduling)
    ledger.on_controller_start_worker_group(scaling_config=ONE, num_workers=1)  # there may be room now; it is not sure
    assert marks(run) == ["waiting"]
    assert ledger.before_init_train_context([object()]) == {}
    assert marks(run) == ["waiting", "startup"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_start_with_room_is_startup_all_along(run: RunDirectory) -> None:
    ledger = DriverLedger(run.uri)
    ledger.on_controller_start_worker_group(scaling_config=ONE, num_workers=1)
    ledger.before_init_train_context([object()])
    assert marks(run) == ["startup"]
    states(ledger, controller.SchedulingState(PLACE), controller.RunningState(), controller.ResizingState(PLACE))
    assert marks(run) == ["startup", "startup"]  # of another group


def test_a_scaling_policy_that_sees_no_room_waits(run: RunDirectory) -> None:
    ledger, restarting = DriverLedger(run.uri), controller.RestartingState(ERROR)
    states(ledger, controller.RunningState(), restarting)
    assert marks(run) == []  # the failure policy has marked it
    states(ledger, restarting, restarting, restarting)
    assert marks(run) == ["waiting"]


def test_a_mark_that_cannot_be_written_does_not_reach_ray(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    DriverLedger(str(tmp_path / "nowhere")).before_init_train_context([object()])
    assert "could not be written" in caplog.text
