"""The cadence of saves: Daly's interval from what was measured, bounded, kept across restarts, near the best in hindsight."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longhaul.resilience.cadence import Cadence, daly

from .failure_traces import DAY_S, HOUR_S, RUN_S, Cadences, Environment, best_fixed, lost_fixed, ratio, traces

MONTH_S = 30 * 86_400.0


HARSH, MILD = Environment(3 * HOUR_S, 5.0), Environment(DAY_S, 1.0)


@pytest.mark.parametrize(("cost", "mean"), [(0.5, 10_800.0), (5.0, 10_800.0), (30.0, 43_200.0), (60.0, 600.0)])
def test_no_other_interval_costs_less_than_dalys(cost: float, mean: float) -> None:
    """Against Daly's complete model of the wall time (equation 20 of the paper), by search."""
    grid = np.geomspace(1.0, 20 * mean, 200_000)
    wall = mean * (np.exp((grid + cost) / mean) - 1) / grid
    interval = daly(cost, mean)
    mine = mean * (np.exp((interval + cost) / mean) - 1) / interval
    assert mine == pytest.approx(wall.min(), rel=2e-3)
    assert interval == pytest.approx(grid[wall.argmin()], rel=0.05)


def test_a_save_that_costs_more_than_losses_leave_time_for_is_made_once_a_loss() -> None:
    assert daly(100.0, 50.0) == 50.0


def test_before_anything_is_seen_the_prior_rules() -> None:
    cadence = Cadence(nodes=4, monthly_rate=0.1)
    assert cadence.mean_between_losses_s() == pytest.approx(MONTH_S / (4 * 0.10536), rel=1e-4)
    assert cadence.interval_s() == 30.0  # a save costs nothing so far
    cadence.observe_save(1.0)
    assert cadence.interval_s() == pytest.approx(daly(1.0, cadence.mean_between_losses_s()))


def test_what_is_seen_takes_over_from_the_prior() -> None:
    cadence = Cadence(nodes=4)
    for _ in range(30):
        cadence.observe_uptime(3600.0)
        cadence.observe_loss()
    assert 3600.0 < cadence.mean_between_losses_s() < 60 * 3600.0
    prior_s = Cadence(nodes=4).mean_between_losses_s()
    assert cadence.mean_between_losses_s() == pytest.approx((prior_s + 30 * 3600.0) / 31)


def test_quiet_time_makes_saves_rarer_and_losses_more_frequent() -> None:
    cadence = Cadence(most_s=1e9)
    cadence.observe_save(1.0)
    first = cadence.interval_s()
    cadence.observe_uptime(90 * 86_400.0)
    rarer = cadence.interval_s()
    cadence.observe_loss()
    cadence.observe_loss()
    assert rarer > first > cadence.interval_s()


def test_a_dear_save_makes_saves_rarer() -> None:
    cadence = Cadence(most_s=1e9)
    cadence.observe_save(1.0)
    cheap = cadence.interval_s()
    for _ in range(20):
        cadence.observe_save(16.0)
    assert cadence.interval_s() == pytest.approx(4 * cheap, rel=0.01)


def test_the_next_save_is_not_begun_before_the_last_one_counts() -> None:
    cadence = Cadence(least_s=30.0, most_s=100.0)
    cadence.observe_save(1e-6, duration_s=80.0)
    assert cadence.interval_s() == 80.0
    for _ in range(20):
        cadence.observe_save(1e-6, duration_s=400.0)  # an upload slower than the longest distance asked for
    assert cadence.interval_s() == pytest.approx(400.0, rel=0.01)


@given(
    costs=st.lists(st.floats(0, 1e5), max_size=8),
    uptimes=st.lists(st.floats(0, 1e7), max_size=8),
    losses=st.integers(0, 50),
    nodes=st.integers(0, 500),
    rate=st.floats(1e-4, 1.0),
)
def test_the_interval_stays_within_its_bounds(
    costs: list[float], uptimes: list[float], losses: int, nodes: int, rate: float
) -> None:
    cadence = Cadence(nodes=nodes, monthly_rate=rate, least_s=30.0, most_s=3600.0)
    for cost in costs:
        cadence.observe_save(cost)
    for uptime in uptimes:
        cadence.observe_uptime(uptime)
    for _ in range(losses):
        cadence.observe_loss()
    assert 30.0 <= cadence.interval_s() <= 3600.0


def test_it_survives_a_restart_in_the_checkpoint() -> None:
    cadence = Cadence(nodes=3)
    cadence.observe_save(2.5, 9.0)
    cadence.observe_uptime(5000.0)
    cadence.observe_loss()
    again = Cadence.model_validate_json(cadence.model_dump_json())
    assert again == cadence
    assert again.decision() == cadence.decision()


def test_a_decision_names_all_that_it_follows_from() -> None:
    cadence = Cadence(nodes=4, most_s=1e9)
    cadence.observe_save(2.0)
    cadence.observe_uptime(1e6)
    decision = cadence.decision()
    assert decision["interval_s"] == pytest.approx(daly(decision["cost_s"], decision["mean_between_losses_s"]))
    assert {"losses", "uptime_s", "duration_s"} <= decision.keys()


def test_the_arrays_of_the_traces_are_the_cadence() -> None:
    """Twelve cadences driven one by one, and in arrays, through the same saves, times and losses."""
    random = np.random.default_rng(3)
    one = Cadence(nodes=7, monthly_rate=0.2)
    many = Cadences(one.mean_between_losses_s(), 12, one)
    each = [one.model_copy() for _ in range(12)]
    for _ in range(40):
        costs, uptimes = random.lognormal(0.0, 1.0, 12), random.exponential(4e4, 12)
        saves, losses = random.random(12) < 0.7, random.random(12) < 0.2
        many.observe_save(costs, saves)
        many.uptime_s = many.uptime_s + uptimes
        many.losses = many.losses + losses
        for cadence, cost, uptime, saved, lost in zip(each, costs, uptimes, saves, losses, strict=True):
            cadence.observe_uptime(uptime)
            if saved:
                cadence.observe_save(cost)
            if lost:
                cadence.observe_loss()
        np.testing.assert_allclose(many.interval_s(), [cadence.interval_s() for cadence in each], rtol=1e-12)


def test_lost_time_is_near_that_of_the_best_fixed_interval_in_hindsight() -> None:
    """400 traces; `benchmarks/cadence.py` has 10,000 and another simulation."""
    assert ratio(HARSH, 1.0, 400, 30.0)[0] < 1.05
    assert ratio(MILD, 1.0, 400, 30.0)[0] < 1.07
    assert ratio(HARSH, 10.0, 400, 30.0)[0] < 1.10


def test_an_interval_that_is_far_off_would_be_seen() -> None:
    """The negative control: four times the best interval loses about twice as much."""
    environment = HARSH
    length_s = RUN_S
    table = traces(environment, 400, length_s, 0)
    interval, lost = best_fixed(environment, table, length_s)
    assert lost_fixed(environment, table, length_s, 4 * interval) > 1.7 * lost


def test_the_search_finds_the_theorys_optimum() -> None:
    environment = Environment(3 * HOUR_S, 5.0, 0.0)
    table = traces(environment, 400, 30 * 86_400.0, 0)
    interval, lost = best_fixed(environment, table, 30 * 86_400.0)
    assert interval == pytest.approx(daly(5.0, 10_800.0), rel=0.25)
    assert lost / (400 * 30 * 86_400.0) == pytest.approx(np.sqrt(2 * 5.0 / 10_800.0), rel=0.1)
