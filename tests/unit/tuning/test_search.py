"""Searching: what is drawn depends on the trials so far alone, never repeats, and learns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.search import Searcher

from longhaul.recipe.sweep import SearchSection
from longhaul.tuning.history import Direction, Past
from longhaul.tuning.search.search import SweepSearcher, draw, make_searcher

FINISHED = Searcher.FINISHED
PLANE = {"lr": {"log_uniform": [1e-5, 1.0]}, "decay": {"uniform": [0.0, 1.0]}}
NETS = {"net": {"choice": ["a", "b", "c"]}, "width": {"integer": [1, 4]}}


def section(kind: str, trials: int, space: dict[str, Any] = PLANE, seed: int = 0, startup: int = 5) -> SearchSection:
    return SearchSection.model_validate({"kind": kind, "trials": trials, "space": space, "seed": seed, "startup": startup})


def valley(point: dict[str, Any]) -> float:
    """Best, 0, at lr = 0.003 and decay = 0.3."""
    return -((math.log10(point["lr"] / 0.003)) ** 2) - 4 * (point["decay"] - 0.3) ** 2


def complete(searcher: SweepSearcher, name: str, score: float, ended: str = "finished") -> None:
    searcher.on_trial_complete(name, {"epoch": 1.0, "score": score, "ended": ended})


def run(searcher: SweepSearcher, objective: Callable[[dict[str, Any]], float], first: int = 0) -> list[dict[str, Any]]:
    """One trial after the other, until there are no more."""
    points: list[dict[str, Any]] = []
    while (point := searcher.suggest(f"t{first + len(points)}")) != FINISHED:
        assert isinstance(point, dict)
        complete(searcher, f"t{first + len(points)}", objective(point))
        points.append(point)
    return points


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_the_same_seed_draws_the_same_and_another_seed_draws_others(kind: str) -> None:
    first = run(make_searcher(section(kind, 12), "max", []), valley)
    assert first == run(make_searcher(section(kind, 12), "max", []), valley)
    others = run(make_searcher(section(kind, 12, seed=1), "max", []), valley)
    assert all(point not in others for point in first)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["random", "tpe"]),
    space=st.sampled_from([PLANE, NETS]),
    seed=st.integers(0, 99),
    kill=st.integers(0, 11),
    parallel=st.integers(1, 4),
)
def test_a_search_that_was_killed_and_called_again_draws_what_it_would_have_drawn(
    kind: str, space: dict[str, Any], seed: int, kill: int, parallel: int
) -> None:
    asked = section(kind, 12, space, seed, startup=3)

    def objective(point: dict[str, Any]) -> float:
        return math.sin(len(repr(point))) if space is NETS else valley(point)

    def search(killed_at: int | None) -> list[dict[str, Any]]:
        searcher = make_searcher(asked, "max", [])
        points: list[dict[str, Any]] = []
        running: list[str] = []
        while True:
            if len(points) == killed_at:
                searcher, killed_at = make_searcher(asked, "max", searcher.trials), None
            if len(running) == parallel or len(points) == 12:
                name = running.pop(0)
                complete(searcher, name, objective(points[int(name)]), ["finished", "stopped"][int(name) % 2])
            elif (point := searcher.suggest(str(len(points)))) == FINISHED:
                return points
            else:
                running.append(str(len(points)))
                points.append(point)  # type: ignore[arg-type]
            if len(points) == 12 and not running:
                return points

    assert search(killed_at=kill) == search(killed_at=None)


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_a_finite_space_is_drawn_to_its_end_without_a_repeat(kind: str) -> None:
    searcher = make_searcher(section(kind, 100, NETS), "max", [])
    points = run(searcher, lambda point: point["width"] + (point["net"] == "b"))
    assert len(points) == len({(point["net"], point["width"]) for point in points}) == 12
    assert searcher.suggest("one more") == FINISHED


def test_what_runs_is_not_drawn_a_second_time_either() -> None:
    searcher = make_searcher(section("tpe", 100, NETS), "max", [Past({"net": "a", "width": 1}, [], "running", "old")])
    points = [searcher.suggest(str(number)) for number in range(12)]
    assert points[11] == FINISHED
    assert {"net": "a", "width": 1} not in points
    assert len({repr(point) for point in points}) == 12


def test_the_trials_of_earlier_calls_count() -> None:
    past = [Past({"lr": 0.1, "decay": 0.5}, [(1.0, 0.5)], "finished", f"old{place}") for place in range(3)]
    assert len(run(make_searcher(section("random", 5), "max", past), valley)) == 2
    assert make_searcher(section("random", 3), "max", past).suggest("t") == FINISHED


def test_trials_outside_the_space_count_but_do_not_teach() -> None:
    elsewhere = [Past({"lr": 7.0, "decay": 0.5}, [(1.0, 9.0)], "finished", str(place)) for place in range(5)]
    elsewhere += [Past({"net": "a"}, [(1.0, 9.0)], "finished", f"net{place}") for place in range(5)]
    asked = section("tpe", 12, startup=5)
    assert len(run(make_searcher(asked, "max", elsewhere), valley)) == 2
    hopeless = [Past(trial.coordinates, [(1.0, -9.0)], "finished", trial.key) for trial in elsewhere]
    assert draw(asked, "max", elsewhere) == draw(asked, "max", hopeless)


@pytest.mark.parametrize("direction", ["max", "min"])
def test_tpe_comes_closer_to_the_optimum_than_random_draws_in_the_median_of_seeds(direction: Direction) -> None:
    sign = 1 if direction == "max" else -1

    def best(kind: str, seed: int) -> float:
        points = run(make_searcher(section(kind, 40, seed=seed, startup=10), direction, []), lambda p: sign * valley(p))
        return max(valley(point) for point in points)

    seeds = range(9)
    assert statistics.median(best("tpe", seed) for seed in seeds) > statistics.median(best("random", seed) for seed in seeds)


def test_tpe_goes_on_learning_after_a_restart() -> None:
    def around_the_optimum(past: list[Past], seed: int) -> float:
        return statistics.median(
            valley(point) for point in run(make_searcher(section("tpe", 50, seed=seed), "max", past), valley)[:10]
        )

    knowing, ignorant = [], []
    for seed in range(5):
        before = make_searcher(section("random", 40, seed=100 + seed), "max", [])
        run(before, valley)
        knowing.append(around_the_optimum(before.trials, seed))
        ignorant.append(around_the_optimum([], seed))
    assert statistics.median(knowing) > statistics.median(ignorant)


LINE = {"x": {"uniform": [0.0, 1.0]}}


@pytest.mark.parametrize(
    ("ended", "score", "others"),
    [
        ("failed", 1.0, "stopped"),
        ("finished", math.nan, "finished"),
        ("finished", math.inf, "finished"),
        ("stopped", 1.0, "finished"),
        ("stopped", None, "finished"),
    ],
)
def test_tpe_keeps_away_from_where_trials_failed_diverged_or_were_stopped(ended: Any, score: float | None, others: Any) -> None:
    """Trials all over the space are equally good, but for those about 0.65."""
    bad = [] if score is None else [(1.0, score)]
    past = [Past({"x": 0.6 + place / 100}, bad, ended, f"bad{place}") for place in range(12)]
    past += [Past({"x": (place + 0.5) / 24}, [(1.0, 0.2)], others, f"fair{place}") for place in range(24)]
    drawn = [draw(section("tpe", 1000, LINE, seed, 5), "max", past) for seed in range(60)]
    assert sum(0.6 < point["x"] < 0.71 for point in drawn if point) <= 1  # by chance: 7


def test_what_a_trial_had_come_to_before_it_failed_does_not_count() -> None:
    fair = [Past({"x": (place + 0.5) / 24}, [(1.0, 0.2)], "stopped", f"fair{place}") for place in range(24)]
    failed = [Past({"x": 0.6}, scores, "failed", "failed") for scores in ([], [(5.0, 0.9)])]
    drawn = [[draw(section("tpe", 1000, LINE, seed, 5), "max", [*fair, one]) for seed in range(9)] for one in failed]
    assert drawn[0] == drawn[1]


def test_tpe_keeps_away_from_where_trials_run_just_now() -> None:
    past = [Past({"x": place / 20}, [(1.0, -abs(place - 10.0))], "finished", str(place)) for place in range(21)]
    running = [Past({"x": 0.5 + place / 1000}, [(1.0, 5.0)], "running", f"running{place}") for place in range(-10, 10)]

    def distance(trials: list[Past]) -> float:
        drawn = [draw(section("tpe", 1000, LINE, seed, 5), "max", trials) for seed in range(20)]
        return statistics.median(abs(point["x"] - 0.5) for point in drawn if point)

    assert distance(past + running) > 2 * distance(past)


def test_tpe_draws_at_random_until_enough_trials_have_ended() -> None:
    past = [Past({"x": place / 100}, [(1.0, 1.0)], "running", str(place)) for place in range(8)]
    ended = [Past(trial.coordinates, trial.scores, "finished", trial.key) for trial in past]

    def draws(kind: str, trials: list[Past]) -> dict[str, Any] | None:
        return draw(section(kind, 100, LINE, startup=5), "max", trials)

    assert draws("tpe", past) == draws("random", past)
    assert draws("tpe", ended[:4] + past[4:]) == draws("random", past)
    assert draws("tpe", ended) != draws("random", past)


def test_random_draws_come_to_no_end_in_an_infinite_space() -> None:
    points = run(make_searcher(section("random", 80, LINE), "max", []), lambda point: 0.0)
    assert len({point["x"] for point in points}) == 80
    assert statistics.fmean(point["x"] for point in points) == pytest.approx(0.5, abs=0.1)


def test_a_validation_that_is_reported_again_replaces_the_first_report() -> None:
    searcher = make_searcher(section("random", 5), "max", [Past({"lr": 0.1, "decay": 0.5}, [(1.0, 0.2)], "running", "cell")])
    for epoch, score in ((2.0, 0.3), (1.0, 0.25), (0.5, 0.1), (3.0, math.nan)):
        searcher.on_trial_result("cell", {"epoch": epoch, "score": score, "training_iteration": 1})
    searcher.on_trial_complete("cell", {"epoch": 4.0, "score": 0.5, "ended": "stopped"})
    (trial,) = searcher.trials
    assert [score for score in trial.scores if not math.isnan(score[1])] == [(0.5, 0.1), (1.0, 0.25), (2.0, 0.3), (4.0, 0.5)]
    assert (trial.ended, trial.score, trial.reached) == ("stopped", 0.5, 4.0)


def test_a_trial_that_ends_with_an_error_has_failed_and_one_that_nobody_drew_is_a_mistake() -> None:
    searcher = make_searcher(section("random", 5), "max", [])
    searcher.suggest("t")
    searcher.on_trial_complete("t", None, error=True)
    assert searcher.trials[0].ended == "failed"
    with pytest.raises(KeyError):
        searcher.on_trial_result("another", {"epoch": 1.0, "score": 1.0})
