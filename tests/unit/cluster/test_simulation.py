"""The model of a long run: its cadence is the real one, its time adds up, and it is near the best fixed interval."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from longhaul.cli.main import app
from longhaul.cluster.simulation import DAY_S, Model, calibrate, intervals, simulate
from longhaul.recipe import parse
from longhaul.resilience.cadence import Cadence
from longhaul.resilience.checkpoint import CheckpointStore, Manifest
from longhaul.resilience.incidents import record_incident
from longhaul.resilience.ledger import CLASSES, Span, State, ledger_writer, span_row
from longhaul.resilience.run_directory import RunDirectory

ROOT = Path(__file__).parents[3]
RECIPE = "{name: r, model: {name: test_resnet}, data: {kind: digits}, training: {steps: 9}}"
CALM = Model(interruptions=0.0, crashes=0.0, hangs=0.0)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cadence_benchmark", ROOT / "benchmarks/cadence.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cadence_benchmark"] = module
    spec.loader.exec_module(module)
    return module


@given(
    cost=st.floats(0, 1e6), rate=st.floats(0.0001, 0.9999), nodes=st.integers(1, 1000), losses=st.integers(0, 500),
    uptime=st.floats(0, 1e7), weight=st.floats(0.1, 10), least=st.floats(0.1, 100), duration=st.floats(0, 5000),
)  # fmt: skip
def test_the_interval_in_arrays_is_that_of_the_cadence(
    cost: float,
    rate: float,
    nodes: int,
    losses: int,
    uptime: float,
    weight: float,
    least: float,
    duration: float,
) -> None:
    cadence = Cadence(nodes=nodes, monthly_rate=rate, prior_losses=weight, least_s=least, duration_s=duration)
    prior_s = cadence.mean_between_losses_s()
    seen = cadence.model_copy(update={"cost_s": cost, "losses": losses, "uptime_s": uptime})
    found = intervals(cadence, np.array([cost]), np.array([losses]), np.array([uptime]), prior_s)
    assert found[0] == pytest.approx(seen.interval_s(), rel=1e-9)


def test_every_second_of_every_run_is_in_a_class() -> None:
    outcome = simulate(replace(Model(), interruptions=0.9, crashes=20.0, hangs=20.0), nodes=8, days=10, runs=400)
    assert all((seconds >= 0).all() for seconds in outcome.seconds.values())
    np.testing.assert_allclose(sum(outcome.seconds.values()), 10 * DAY_S, rtol=1e-9)
    assert outcome.losses.mean() > 50
    assert sum(outcome.share(name) for name in CLASSES) == pytest.approx(1)


def test_without_losses_only_saves_and_validations_cost() -> None:
    outcome = simulate(CALM, nodes=4, days=5, runs=3)
    assert {name for name in CLASSES if outcome.share(name) > 1e-9} == {"productive", "checkpoint", "validation"}
    assert outcome.share("validation") == pytest.approx(0.01, rel=0.01)


def test_each_kind_of_loss_is_booked_where_the_ledger_books_it() -> None:
    days, runs = 300.0, 30
    noticed = simulate(replace(CALM, interruptions=0.5, notice_share=1.0), nodes=4, days=days, runs=runs)
    assert noticed.share("recomputed") + noticed.share("hung") < 1e-9
    losses = noticed.losses.sum()
    assert losses / runs == pytest.approx(days / 30 * 4 * math.log(2), rel=0.15)
    assert noticed.seconds["waiting"].sum() / losses == pytest.approx(900, rel=0.15)
    assert noticed.seconds["startup"].sum() / losses == pytest.approx(180, rel=0.02)
    hangs = simulate(replace(CALM, hangs=30.0), nodes=4, days=days, runs=runs)
    assert hangs.seconds["hung"].sum() / hangs.losses.sum() == pytest.approx(600, rel=0.02)
    assert hangs.share("waiting") == 0


def test_a_loss_before_a_save_counts_goes_back_to_the_one_before() -> None:
    quick = simulate(replace(CALM, crashes=30.0, save_s=0.0), nodes=8, days=30, runs=50)
    slow = simulate(replace(CALM, crashes=30.0, save_s=200.0), nodes=8, days=30, runs=50)
    assert slow.share("recomputed") > 1.2 * quick.share("recomputed")


@pytest.mark.parametrize(("between_s", "bound"), [(DAY_S, 1.05), (3 * DAY_S, 1.08)])
def test_the_cadence_is_near_the_best_fixed_interval(benchmark: ModuleType, between_s: float, bound: float) -> None:
    """A small version of benchmarks/cadence.py; the bound leaves room for the chance of 200 traces."""
    gaps = benchmark.draw(200, between_s)
    _, best = benchmark.best_fixed(gaps, between_s, 30.0)
    cadence = Cadence(least_s=1.0, most_s=math.inf)
    assert best * 0.98 < benchmark.lost_with(cadence, gaps, between_s, 30.0, between_s) < best * bound


def test_the_search_finds_what_the_simulation_of_a_fixed_interval_loses(benchmark: ModuleType) -> None:
    gaps = benchmark.draw(200, DAY_S)
    fixed = Cadence(least_s=1800.0, most_s=1800.0)
    simulated = benchmark.lost_with(fixed, gaps, DAY_S, 30.0, DAY_S)
    assert simulated == pytest.approx(benchmark.lost_fixed(gaps, 1800.0, 30.0), rel=0.01)


def ledger_row(run: RunDirectory, start_s: float, state: State | None = None, **shares: int) -> None:
    """A mark, or a span of `shares` in seconds."""
    given = {name: shares[name] * 10**9 for name in CLASSES if name in shares}
    start = int(start_s * 1e9)
    row = span_row(Span(segment=1, start_ns=start, end_ns=start + sum(given.values()), step=5, samples=8, shares=given))
    with ledger_writer(run) as writer:
        writer.append(**row | ({"source": "driver", "state": state} if state else {}))


def test_a_real_run_replaces_the_assumptions(tmp_path: Path) -> None:
    run = RunDirectory.create(str(tmp_path), "r", parse(RECIPE, overrides=("resilience.hang_s=300",)))
    assert calibrate(run) == replace(Model(), hang_s=300.0)
    run.add_event("started", "", segment=1)
    run.add_event("resumed", "", segment=2)
    ledger_row(run, 0, "began")
    ledger_row(run, 30, productive=760, validation=40)
    ledger_row(run, 850, "startup")
    ledger_row(run, 851, "waiting")
    ledger_row(run, 951, "startup")
    ledger_row(run, 1000, recomputed=200)
    record_incident(run, "lost", "gone", segment=1, first=None, retried=True)
    (tmp_path / "file").mkdir()
    (tmp_path / "file/a").write_bytes(b"a")
    for step, stall_s in ((1, 0.25), (2, 0.75), (3, 0.5)):
        run.add_event("checkpoint", "", segment=1, step=step, checkpoint=f"step-{step:09d}-a", stall_s=stall_s)
    written = {json.loads(e["detail"])["checkpoint"]: e["time_s"] for e in run.events().to_pylist() if e["kind"] == "checkpoint"}
    for step, name in enumerate(sorted(written), 1):
        manifest = Manifest(step=step, rank=0, world_size=1, attempt="a", created_s=written[name] - 7.0, files={})
        CheckpointStore(run).publish(name, tmp_path / "file", manifest)
    found = calibrate(run)
    assert found.restart_s == pytest.approx((30 + 1 + 49) / 2)
    assert (found.detect_s, found.wait_s) == (pytest.approx(20), pytest.approx(100))
    assert (found.stall_s, found.save_s, found.validation_share) == (0.5, pytest.approx(7.0), pytest.approx(0.04))
    assert found.hang_s == 300


def plan(*arguments: str) -> str:
    """What `longhaul plan` prints."""
    result = CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def test_plan_prints_goodput_where_the_time_goes_and_what_it_assumes() -> None:
    text = plan("--days", "5", "--nodes", "2,8", "--interruptions", "0.3")
    for part in ("goodput", "90 %", "2 nodes", "8 nodes", "30 %", "recomputed", "waiting", "assumed", "97 %"):
        assert part in text


def test_plan_takes_what_a_run_has_measured(tmp_path: Path) -> None:
    run = RunDirectory.create(str(tmp_path), "r", parse(RECIPE, overrides=("resilience.hang_s=333",)))
    assert "333 s" in plan("--days", "2", "--nodes", "2", "--interruptions", "0.1", "--run", run.uri)


def test_plan_refuses_what_cannot_be() -> None:
    from longhaul.errors import UserError

    for arguments in (("--nodes", "four"), ("--nodes", "0"), ("--interruptions", "1.5"), ("--days", "0")):
        result = CliRunner().invoke(app, ["plan", *arguments])
        assert isinstance(result.exception, UserError) or result.exit_code == 2, arguments
