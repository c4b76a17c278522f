"""A page for every restart, and who of a group began its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from longhaul.recipe import parse
from longhaul.resilience.flight import Doing, FlightState
from longhaul.resilience.incidents import first_to_fail, incidents, record_incident
from longhaul.resilience.run_directory import RunDirectory

RECIPE = "{name: r, model: {name: test_resnet}, data: {kind: digits}, training: {steps: 9}}"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(str(tmp_path), "r", parse(RECIPE))


def rank(number: int, *, doing: Doing = "step", step: int = 7, since: int = 0, at: int = 100, hung: bool = False) -> FlightState:
    """The last words of a rank."""
    return FlightState(
        segment=1, attempt="a", rank=number, world_size=4, host=f"host-{number}", pid=1, step=step, state=doing,
        state_since_ns=since, time_ns=at, stacks="in a lock" if hung else None, log=["one", "two"],
    )  # fmt: skip


def test_of_the_dead_the_one_silent_for_longest_was_the_first() -> None:
    assert first_to_fail([rank(0, at=300), rank(1, at=90), rank(2, at=200)]) == rank(1, at=90)


def test_in_a_hang_the_one_that_is_not_in_a_step_is_to_blame() -> None:
    """The others wait for it in the step's collective."""
    states = [rank(0, hung=True, since=5), rank(1, doing="data", hung=True, since=1), rank(2, hung=True, since=9)]
    assert first_to_fail(states) == states[1]


def test_in_a_hang_the_one_a_step_behind_is_to_blame_then_the_last_to_come() -> None:
    behind = [rank(0, hung=True, since=9), rank(1, hung=True, step=6, since=1)]
    assert first_to_fail(behind) == behind[1]
    late = [rank(0, hung=True, since=5), rank(1, hung=True, since=9)]
    assert first_to_fail(late) == late[1]


def test_one_without_stacks_did_not_hang() -> None:
    states = [rank(0, at=1), rank(1, at=500, hung=True)]
    assert first_to_fail(states) == states[1]
    assert first_to_fail([]) is None


def test_pages_are_numbered_and_read_back_oldest_first(run: RunDirectory) -> None:
    record_incident(run, "lost", "a node is gone", segment=1, first=rank(2), retried=True)
    record_incident(run, "hang", "no progress", segment=2, first=rank(1, hung=True), retried=False)
    run.storage.write_bytes("incidents/00009.json", b"{torn")
    one, two = incidents(run)
    assert (one.number, one.kind, one.rank, one.host, one.step, one.log) == (1, "lost", 2, "host-2", 7, ["one", "two"])
    assert (two.number, two.stacks, two.retried) == (2, "in a lock", False)


def test_an_incident_of_which_nobody_left_a_word_is_a_page_too(run: RunDirectory) -> None:
    record_incident(run, "lost", "all gone", segment=1, first=None, retried=True)
    assert incidents(run)[0].rank is None


def thread(top: str) -> str:
    """The stack of the training's thread, innermost frame first, after that of the watchdog."""
    return f'Current thread 0x1:\n  File "flight.py", line 1\n\nThread 0x2:\n  File "{top}", line 9\n  File "x/training/loop.py"'


def test_in_a_hang_whose_stack_waits_in_a_collective_is_not_to_blame() -> None:
    """Both are in the same step; the one that came last waits for nobody."""
    waits = rank(0, since=9).model_copy(update={"stacks": thread("torch/autograd/graph.py")})
    stuck = rank(1, since=1).model_copy(update={"stacks": thread("my/augmentation.py")})
    assert first_to_fail([waits, stuck]) == stuck
    validating = rank(2, doing="validation", since=9).model_copy(
        update={"stacks": thread("torch/distributed/distributed_c10d.py")}
    )
    assert first_to_fail([validating, stuck]) == stuck


def test_an_end_has_its_reason(run: RunDirectory) -> None:
    record_incident(run, "lost", "gone", segment=1, first=rank(2), retried=False, step=9, reason="ten a day")
    [page] = incidents(run)
    assert (page.reason, page.retried, page.step, page.attempt) == ("ten a day", False, 9, "a")
