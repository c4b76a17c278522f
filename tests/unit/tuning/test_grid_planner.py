"""The order of a grid, and that pruning leaves out what cannot win and hardly ever what would have won."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pytest

from longhaul.recipe.sweep import PruningSection
from longhaul.tuning.grid.grid_planner import Done, GridCell, GridPlanner, Skip, Standing, Start, Wait

SIDES = (32, 64, 96, 128)
PRUNING = PruningSection()
Scores = Mapping[tuple[int, int], float]


def _cells(models: int, sides: tuple[int, ...] = SIDES) -> list[GridCell]:
    """In the order of a grid whose last field varies fastest."""
    return [
        GridCell(f"{m}-{s}", {"model.name": f"m{m}", "data.resolution": s}, float(s * s)) for m in range(models) for s in sides
    ]


def _run(
    cells: list[GridCell],
    score: Mapping[str, float],
    pruning: PruningSection | None = PRUNING,
    direction: Literal["max", "min"] = "max",
    *,
    parallel: int = 1,
    standings: dict[str, Standing] | None = None,
) -> tuple[list[str], dict[str, str]]:
    """The cells started, in order, and those left out with the reason; the oldest of what runs always ends first."""
    planner, table, started, left_out = GridPlanner(cells, pruning, direction), dict(standings or {}), [], {}
    running: list[str] = []
    for _ in range(10 * len(cells)):
        answer = planner.next(table) if len(running) < parallel else Wait()
        if isinstance(answer, Start):
            started.append(answer.key)
            running.append(answer.key)
            table[answer.key] = Standing("running", forced=table.get(answer.key, Standing()).forced)
        elif isinstance(answer, Skip):
            left_out[answer.key] = answer.reason
            table[answer.key] = Standing("skipped")
        elif running:
            key = running.pop(0)
            table[key] = Standing("finished", score[key])
        else:
            assert isinstance(answer, Done), "it waits while nothing runs"
            return started, left_out
    raise AssertionError("no end")


def _in_step(models: int, gap: float = 5.0) -> dict[str, float]:
    """Models that keep their order and distance; every step of the resolution gives two points."""
    return {f"{m}-{s}": 90 - gap * m + 2 * i + 0.1 * ((m + i) % 3) for m in range(models) for i, s in enumerate(SIDES)}


def test_without_pruning_the_cheap_come_first_and_none_is_left_out() -> None:
    started, left_out = _run(_cells(3), _in_step(3), None, parallel=2)
    assert started == [f"{m}-{s}" for s in SIDES for m in range(3)]
    assert not left_out


def test_models_that_are_far_behind_are_left_out_at_dear_values_with_numbers_in_the_reason() -> None:
    started, left_out = _run(_cells(8), _in_step(8))
    assert started[:8] == [f"{m}-32" for m in range(8)]
    assert "0-128" in started
    assert {"5-96", "6-96", "7-96", "7-128"} <= set(left_out)
    assert "chance to win 0." in left_out["7-128"]
    assert "< 5.0%" in left_out["7-128"]  # at the dearest value, all of the risk may be used up


def test_at_a_dear_value_those_that_did_best_before_come_first() -> None:
    score = {f"{m}-{s}": float([3, 9, 1, 7][m]) for m in range(4) for s in SIDES}
    started, _ = _run(_cells(4), score)
    assert started[4:7] == ["1-64", "3-64", "0-64"]


def test_a_score_where_less_is_better_is_pruned_alike() -> None:
    losses = {key: 100 - value for key, value in _in_step(8).items()}
    assert _run(_cells(8), losses, direction="min")[0] == _run(_cells(8), _in_step(8))[0]


def test_a_value_at_which_all_get_worse_is_left_out_once_that_is_plain() -> None:
    score = {f"{m}-{s}": 90 - m - 10 * i + 0.05 * ((m * 7 + i) % 3) for m in range(8) for i, s in enumerate(SIDES)}
    started, left_out = _run(_cells(8), score)
    assert all(f"{m}-128" in left_out for m in range(8))
    assert len([key for key in started if key.endswith("-64")]) < 8


def test_a_forced_cell_is_trained_whatever_pruning_says_and_first() -> None:
    assert "7-128" in _run(_cells(8), _in_step(8))[1]
    started, left_out = _run(_cells(8), _in_step(8), standings={"7-128": Standing(forced=True)})
    assert started[0] == "7-128"
    assert "7-128" not in left_out


@pytest.mark.parametrize("parallel", [1, 2, 5, 100])
def test_it_comes_to_an_end_and_never_waits_for_nothing(parallel: int) -> None:
    started, left_out = _run(_cells(8), _in_step(8), parallel=parallel)
    assert len(started) + len(left_out) == 32
    assert "0-128" in started
    assert "7-128" in left_out


def test_several_at_a_time_leave_out_nearly_as_much_as_one() -> None:
    one, several = (len(_run(_cells(8), _in_step(8), parallel=parallel)[1]) for parallel in (1, 4))
    assert several >= 0.75 * one  # what is under way when the evidence comes is trained


def test_a_planner_that_is_made_anew_for_every_question_decides_the_same() -> None:
    cells, score = _cells(8), _in_step(8)
    table: dict[str, Standing] = {}
    started = []
    while not isinstance(answer := GridPlanner(cells, PRUNING, "max").next(table), Done):
        assert isinstance(answer, Start | Skip)
        if isinstance(answer, Start):
            started.append(answer.key)
        table[answer.key] = Standing("finished", score[answer.key]) if isinstance(answer, Start) else Standing("skipped")
        table = dict(random.Random(len(table)).sample(list(table.items()), len(table)))
    assert started == _run(cells, score)[0]


def test_what_failed_counts_for_nothing_and_does_not_hold_up_the_rest() -> None:
    cells, score = _cells(6), _in_step(6)
    started, _ = _run(cells, score, standings={"0-32": Standing("failed"), "1-32": Standing("failed", 99.0)})
    assert "0-64" in started
    assert "0-32" not in started


def test_folds_of_a_cell_are_trained_or_left_out_together_and_count_by_their_mean() -> None:
    cells = [
        GridCell(f"{m}-{s}-{f}", {"model.name": f"m{m}", "data.resolution": s, "data.fold": f}, float(s * s))
        for m in range(8)
        for s in SIDES
        for f in range(2)
    ]
    score = {f"{key}-{fold}": value + (3 if fold else -3) for key, value in _in_step(8).items() for fold in range(2)}
    started, left_out = _run(cells, score)
    assert left_out
    assert {key[:-1] for key in started}.isdisjoint(key[:-1] for key in left_out)
    assert [key[:-2] for key in started[::2]] == _run(_cells(8), _in_step(8))[0]


def test_cells_that_were_stopped_early_still_rank_the_models() -> None:
    cells = _cells(13)
    table = {f"{m}-{s}": Standing("stopped", 50.0 - m + i) for m in range(13) for i, s in enumerate(SIDES[:2])}
    table["0-96"] = Standing("finished", 95.0)
    answer = GridPlanner(cells, PRUNING, "max").next(
        {**table, **{f"{m}-96": Standing("finished", 94.0 - m) for m in range(1, 9)}}
    )
    skips = 0
    while isinstance(answer, Skip):
        assert answer.reason.startswith("rank ")
        skips += 1
        table[answer.key] = Standing("skipped")
        answer = GridPlanner(cells, PRUNING, "max").next(table)
    assert skips


@pytest.mark.parametrize("kind", ["rising", "noisy", "falling", "random"])
def test_the_true_winner_is_left_out_no_oftener_than_the_risk_says(kind: str) -> None:
    generator = np.random.default_rng(3)
    wrong = left_out = 0
    grids = 75
    for _ in range(grids):
        quality = generator.normal(0, 3, (6, 1))
        step = np.arange(4) * {"rising": 1.0, "noisy": 1.0, "falling": -1.5, "random": 0.0}[kind]
        spread = {"rising": 0.4, "noisy": 2.0, "falling": 0.4, "random": 1.0}[kind]
        truth = (0.0 if kind == "random" else 1.0) * quality + step + generator.normal(0, spread, (6, 4))
        score = {f"{m}-{s}": float(truth[m, i]) for m in range(6) for i, s in enumerate(SIDES)}
        _, skipped = _run(_cells(6), score)
        wrong += max(score, key=lambda key: score[key]) in skipped
        left_out += len(skipped)
    assert wrong / grids <= 0.05 + 1.96 * (0.05 * 0.95 / grids) ** 0.5
    share = left_out / (24 * grids)
    assert share < 0.1 if kind == "random" else share > {"rising": 0.2, "noisy": 0.0, "falling": 0.2}[kind]
