"""What a rank was doing outlives it; one that makes no progress ends itself, with its stacks on storage."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longhaul.recipe import parse
from longhaul.resilience import flight
from longhaul.resilience.flight import HANG_EXIT, FlightRecorder, FlightState, flights, forget_old_flights, recover_span
from longhaul.resilience.ledger import Span, Stopwatch, TimeClass, read_ledger
from longhaul.resilience.requests import ask
from longhaul.resilience.run_directory import RunDirectory

RECIPE = "{name: r, model: {name: test_resnet}, data: {kind: digits}, training: {steps: 9}}"

# A process of its own: the watchdog ends the one that it runs in.
HANGING = """
import sys, threading
from longhaul.resilience.flight import FlightRecorder, FlightState
from longhaul.resilience.run_directory import RunDirectory

def stuck_in_a_barrier():
    threading.Event().wait(60)

run = RunDirectory.open(sys.argv[1])
state = FlightState(segment=1, attempt="a", rank=1, world_size=2, host="h", pid=1)
with FlightRecorder(run, state, hang_s=1.0) as recorder:
    recorder.beat("step", 7)
    stuck_in_a_barrier()
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(str(tmp_path), "r", parse(RECIPE))


def state(segment: int = 1, rank: int = 0) -> FlightState:
    return FlightState(segment=segment, attempt="a", rank=rank, world_size=2, host="h", pid=1)


def test_the_last_words_of_a_rank_are_kept(run: RunDirectory) -> None:
    def work() -> None:
        with FlightRecorder(run, state(), 600.0) as recorder:
            recorder.beat("data", 12)
            logging.getLogger("longhaul.somewhere").warning("the disk is slow")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work()
    [last] = flights(run)
    assert (last.step, last.state) == (12, "data")
    assert "the disk is slow" in last.log[-2]
    assert last.log[-1] == "ValueError: broken"


def test_a_rank_without_progress_ends_itself_and_leaves_its_stacks(run: RunDirectory) -> None:
    ended = subprocess.run([sys.executable, "-c", HANGING, run.uri], timeout=60, check=False)
    assert ended.returncode == HANG_EXIT
    [last] = flights(run)
    assert (last.rank, last.state, last.step) == (1, "step", 7)
    assert last.stacks is not None
    assert "stuck_in_a_barrier" in last.stacks
    assert "no progress in 'step'" in last.log[-1]


def test_a_rank_that_beats_is_left_alone(run: RunDirectory) -> None:
    with FlightRecorder(run, state(), hang_s=0.4) as recorder:
        for step in range(10):
            recorder.beat("step", step)
            time.sleep(0.1)
    assert flights(run)[0].stacks is None


def test_only_the_newest_segments_are_kept_and_read(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "_KEEP_SEGMENTS", 2)
    for segment in (1, 2, 3):
        for rank in (0, 1):
            with FlightRecorder(run, state(segment, rank), 600.0):
                pass
    assert [(last.segment, last.rank) for last in flights(run)] == [(3, 0), (3, 1)]
    forget_old_flights(run)
    assert flights(run, 1) == []
    assert len(flights(run, 2)) == 2


def test_the_span_of_a_rank_that_died_is_put_into_the_ledger_once(run: RunDirectory) -> None:
    watch = Stopwatch(1, 0, 0)
    with FlightRecorder(run, state(), 600.0, watch.span):
        watch.training(0)
        time.sleep(0.01)
        watch.stepped(41, samples=8)
    assert recover_span(run) == 41
    assert recover_span(run) == 41
    [row] = read_ledger(run).to_pylist()
    assert row["step"] == 41
    assert row["productive_ns"] > 0


def test_the_span_is_found_although_the_new_group_has_begun_to_write(run: RunDirectory) -> None:
    watch = Stopwatch(1, 0, 0)
    with FlightRecorder(run, state(), 600.0, watch.span):
        watch.training(0)
        watch.stepped(41, samples=8)
    with FlightRecorder(run, state(segment=2, rank=1), 600.0):
        pass
    assert recover_span(run) == 41
    assert read_ledger(run).num_rows == 1


def test_rank_0_sees_what_is_asked_of_the_run(run: RunDirectory) -> None:
    request = ask(run, "pause")
    with FlightRecorder(run, state(), 0.4, Stopwatch(1, 0, 0).span) as recorder:
        for _ in range(50):
            if recorder.request is not None:
                break
            recorder.beat("step")
            time.sleep(0.05)
    assert recorder.request == request


def test_the_time_in_which_a_group_hung_is_not_productive(run: RunDirectory) -> None:
    since = 1_000_000_000_000
    shares: dict[TimeClass, int] = {"validation": 300, "productive": 700}
    span = Span(segment=1, start_ns=since - 400, end_ns=since + 600, step=5, samples=8, shares=shares)
    first = state().model_copy(update={"state": "step", "state_since_ns": since, "span": span})
    stuck = state(rank=1).model_copy(update={"stacks": "in a barrier"})
    for one in (first, stuck):
        run.storage.write_bytes(f"flight/00001-{one.rank:05d}.json", one.model_dump_json().encode())
    assert recover_span(run) == 5
    [row] = read_ledger(run).to_pylist()
    assert {name: row[f"{name}_ns"] for name in ("validation", "productive", "hung")} == {
        "validation": 300,
        "productive": 100,
        "hung": 600,
    }
