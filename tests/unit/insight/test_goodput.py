"""Where a run's time went, what its incidents cost, and asking it to pause: from the run directory, and by the commands."""

from __future__ import annotations

import time

import pytest
from typer.testing import CliRunner

from longhaul.cli.main import app
from longhaul.errors import UserError
from longhaul.insight.goodput import incident_cost, incident_costs, run_account, utilisation
from longhaul.insight.runs import list_runs
from longhaul.resilience.incidents import Incident
from longhaul.resilience.ledger import Span, State, TimeClass, ledger_writer, span_row
from longhaul.resilience.requests import asked
from longhaul.resilience.run_directory import RunDirectory, event_row
from longhaul.resilience.series import EVENTS, SeriesWriter

from .conftest import T0, MakeRun

S = 10**9


def span(run: RunDirectory, segment: int, at_s: float, step: int, **shares: int) -> None:
    """A span of rank 0, `at_s` seconds after the start of the run; `shares` in seconds."""
    given: dict[TimeClass, int] = {name: seconds * S for name, seconds in shares.items()}  # type: ignore[misc]
    start = int((T0 + at_s) * S)
    end = start + sum(given.values())
    with ledger_writer(run) as writer:
        writer.append(**span_row(Span(segment=segment, start_ns=start, end_ns=end, step=step, samples=8 * step, shares=given)))


def mark(run: RunDirectory, at_s: float, state: State) -> None:
    """A driver's mark."""
    at = int((T0 + at_s) * S)
    row = span_row(Span(segment=1, start_ns=at, end_ns=at, step=0, samples=0, shares={}))
    with ledger_writer(run) as writer:
        writer.append(**row | {"source": "driver", "state": state})


def event(run: RunDirectory, at_s: float, kind: str, step: int) -> None:
    """An event."""
    with SeriesWriter(run.storage.child("events"), EVENTS) as writer:
        writer.append(**event_row(kind, f"{kind} at {step}", segment=1, step=step) | {"time_s": T0 + at_s})


def incident(run: RunDirectory, number: int, at_s: float, segment: int, step: int) -> None:
    """A page."""
    page = Incident(
        number=number, time_s=T0 + at_s, segment=segment, kind="lost", what="node [7] is gone", rank=3, host="node-7",
        step=step, log=["the last", "words [sic]"], stacks="File loop.py, line 1",
    )  # fmt: skip
    run.storage.write_bytes(f"incidents/{number:05d}.json", page.model_dump_json().encode())


@pytest.fixture
def run(make_run: MakeRun) -> RunDirectory:
    """Step 100 at 100 s, lost, found at 110; back at step 80 at 130; lost again at 140 (step 90); back, and at step 200."""
    run = make_run("a", status="finished")
    mark(run, 0, "began")
    span(run, 1, 5, 100, startup=5, productive=90)
    mark(run, 110, "startup")
    incident(run, 1, 110.01, 1, 100)
    mark(run, 112, "waiting")
    mark(run, 118, "startup")
    event(run, 129, "resumed", 80)
    span(run, 2, 120, 90, startup=10, recomputed=10)
    mark(run, 150, "startup")
    incident(run, 2, 150.01, 2, 90)
    event(run, 159, "resumed", 80)
    span(run, 3, 155, 101, startup=5, recomputed=20, productive=1)
    span(run, 3, 181, 200, productive=100)
    mark(run, 281, "ended")
    return run


def test_an_incident_costs_until_its_step_is_reached_or_the_next_one_comes(run: RunDirectory) -> None:
    one, two = incident_costs(run)
    # 10 s unnoticed, 2 + 2 s and then 10 s of start-up, 6 s without capacity, 10 s done again, 10 s unnoticed once more
    assert (one.steps_lost, one.seconds_lost, one.over) == (20, pytest.approx(10 + 2 + 6 + 2 + 10 + 10 + 10, abs=0.1), True)
    # 10 s unnoticed, 5 + 5 s of start-up, 20 s done again
    assert (two.steps_lost, two.seconds_lost, two.over) == (10, pytest.approx(10 + 5 + 5 + 20, abs=0.1), True)


def test_the_account_of_a_run_that_goes_on_reaches_until_now(make_run: MakeRun) -> None:
    run = make_run("b", status="running")
    span(run, 1, 0, 20, productive=40)
    assert run_account(run, now_s=T0 + 60).classes["hung"] == 20 * S
    assert run_account(run, now_s=T0 + 10_000).total_ns == 40 * S  # silent: nobody knows


def test_an_incident_that_is_not_made_up_for_costs_until_now(make_run: MakeRun) -> None:
    run = make_run("b", status="running")
    span(run, 1, 0, 20, productive=40)
    mark(run, 45, "startup")
    incident(run, 1, 45.01, 1, 20)
    [cost] = incident_costs(run, now_s=T0 + 60)
    assert (cost.steps_lost, cost.over) == (None, False)
    assert cost.seconds_lost == pytest.approx(20, abs=0.1)


def test_what_comes_after_the_step_was_reached_is_no_cost_of_the_incident(make_run: MakeRun) -> None:
    run = make_run("b")
    span(run, 1, 0, 20, productive=40)
    mark(run, 45, "startup")
    incident(run, 1, 45.01, 1, 20)
    span(run, 2, 50, 30, recomputed=10, productive=10)
    mark(run, 71, "paused")
    mark(run, 500, "began")
    span(run, 3, 600, 40, startup=50, productive=10)
    [cost] = incident_costs(run)
    assert cost.seconds_lost == pytest.approx(5 + 5 + 10, abs=0.1)  # not the 150 s of start-up after the pause


def test_an_unknown_incident_names_those_that_there_are(run: RunDirectory, make_run: MakeRun) -> None:
    with pytest.raises(UserError, match="It has 1 to 2"):
        incident_cost(run, 3)
    with pytest.raises(UserError, match="It has none"):
        incident_cost(make_run("c"), 1)


def call(root: str, *arguments: str) -> tuple[int, str]:
    """The verb's exit code, and what it says or raises."""
    result = CliRunner().invoke(app, ["runs", *arguments, "--storage", root], env={"COLUMNS": "200"})
    if isinstance(result.exception, UserError):
        return result.exception.exit_code, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def test_show_prints_where_the_time_went(run: RunDirectory, root: str) -> None:
    code, text = call(root, "show", "a")
    assert code == 0
    rows = {line.split()[1]: line for line in text.splitlines() if line.startswith("│ ")}
    assert "3 min 11 s" in rows["productive"]
    assert "68.0%" in rows["productive"]
    assert "4 min 41 s" in rows["all"]
    assert "goodput 67.97%" in text
    assert "samples a productive second" in text


def test_show_of_a_run_without_a_ledger_leaves_it_out(make_run: MakeRun, root: str) -> None:
    make_run("old", status="running")
    assert "goodput" not in call(root, "show", "old")[1]


def test_incidents_as_a_table_and_one_as_a_page(run: RunDirectory, make_run: MakeRun, root: str) -> None:
    code, text = call(root, "incidents", "a")
    assert code == 0
    line = next(line for line in text.splitlines() if line.split()[:1] == ["1"])
    for part in ("lost", "3", "node [7] is gone", "100", "20", "50 s"):
        assert part in line
    code, text = call(root, "incidents", "a", "1")
    assert code == 0
    for part in ("rank 3 on node-7", "words [sic]", "File loop.py", "20 steps", "went on by itself"):
        assert part in text
    assert call(root, "incidents", "a", "9")[0] == 2
    make_run("calm")
    assert "no incidents" in call(root, "incidents", "calm")[1]


@pytest.mark.parametrize("verb", ["pause", "cancel"])
def test_a_running_run_is_asked_and_the_way_back_is_said(make_run: MakeRun, root: str, verb: str) -> None:
    run = make_run("a", status="running", started_s=time.time())
    run.write_summary(run.summary())  # a sign of life
    code, text = call(root, verb, "a")
    assert code == 0
    assert f"longhaul train {run.uri}/recipe.yaml --name a --storage {root}" in text
    standing = asked(run)
    assert standing is not None
    assert standing.kind == verb


@pytest.mark.parametrize("status", ["finished", "paused", "cancelled", "failed"])
def test_a_run_that_is_not_running_cannot_be_paused(make_run: MakeRun, root: str, status: str) -> None:
    run = make_run("a", status=status)
    code, text = call(root, "pause", "a")
    assert code == 2
    assert f"is not running, it is {status}" in text
    assert asked(run) is None


def test_a_silent_run_is_asked_with_a_warning(make_run: MakeRun, root: str) -> None:
    run = make_run("a", status="running")
    code, text = call(root, "cancel", "a")
    assert code == 0
    assert "its processes are gone" in text
    assert asked(run) is not None


@pytest.mark.parametrize("status", ["paused", "cancelled"])
def test_an_end_on_request_is_an_end_for_list_and_watch(make_run: MakeRun, root: str, status: str) -> None:
    make_run("a", status=status)
    assert [row.status for row in list_runs(root)] == [status]
    assert status in call(root, "ls")[1]
    code, text = call(root, "watch", "a")
    assert code == 0
    assert status in text


@pytest.mark.parametrize(("device", "share"), [("NVIDIA A100-SXM4-40GB", 0.25), ("NVIDIA L40S", 78e12 / 362e12), ("cpu", None)])
def test_utilisation_is_the_models_own_operations_over_what_the_devices_could_do(
    make_run: MakeRun, device: str, share: float | None
) -> None:
    """800 samples in 10 productive seconds on 4 workers, 3.9 TFLOP each: 312 TFLOP/s, 78 a worker."""
    run = make_run("busy")
    span(run, 1, 0, 100, productive=10, startup=30)
    run.write_summary(run.summary().model_copy(update={"flops_per_sample": 3.9e12, "device": device, "workers": 4}))
    used = utilisation(run, run_account(run))
    assert used is not None
    assert used[0] == pytest.approx(312e12)
    assert used[1] == (None if share is None else pytest.approx(share))


def test_without_a_count_of_operations_there_is_no_utilisation(make_run: MakeRun) -> None:
    run = make_run("plain")
    span(run, 1, 0, 100, productive=10)
    assert utilisation(run, run_account(run)) is None
