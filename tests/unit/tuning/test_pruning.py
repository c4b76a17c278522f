"""The chance of a cell to win: against closed forms, by drawing at random, and on grids whose winner is known."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
import pytest
from scipy import stats

from longhaul.tuning.grid.pruning import Evidence, Measured, chance_above_all, fit, lower_bound, normal_scores

Rows = dict[Hashable, dict[int, Measured]]
Table = Sequence[Sequence[float | None]]


def _evidence(scores: Table, least_common: int = 3) -> Evidence:
    rows: dict[Hashable, dict[int, Measured]] = {
        m: {v: Measured(s) for v, s in enumerate(row) if s is not None} for m, row in enumerate(scores)
    }
    return Evidence(rows, [f"{32 * (v + 1)} px" for v in range(len(scores[0]))], least_common)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9, 0.988])
def test_the_chance_against_one_rival_is_the_closed_form(correlation: float) -> None:
    for lead in (-3.0, -1.0, 0.0, 2.0):
        closed = stats.norm.cdf(correlation * lead / math.sqrt(2 * (1 - correlation**2)))
        assert chance_above_all(lead, [0.0], correlation) == pytest.approx(closed, abs=1e-6)


def test_the_chance_against_several_rivals_is_what_drawing_at_random_gives() -> None:
    generator = np.random.default_rng(0)
    rivals, correlation = [1.3, 0.4, -0.2], 0.8
    drawn = correlation * np.array([0.1, *rivals]) + math.sqrt(1 - correlation**2) * generator.normal(size=(400_000, 4))
    won = (drawn.argmax(axis=1) == 0).mean()
    assert chance_above_all(0.1, rivals, correlation) == pytest.approx(won, abs=0.003)


def test_without_correlation_all_are_equally_likely_to_win() -> None:
    assert chance_above_all(-2.0, [1.0, 0.5, 2.0, -1.0], 0.0) == pytest.approx(1 / 5, abs=1e-9)


def test_normal_scores_are_blom_s_and_equal_values_share_theirs() -> None:
    assert normal_scores([3.0, 1.0, 2.0]) == pytest.approx(stats.norm.ppf(np.array([2.625, 0.625, 1.625]) / 3.25))
    tied = normal_scores([1.0, 1.0, 5.0])
    assert tied[0] == tied[1] < tied[2]


def test_the_lower_bound_is_fisher_s_and_covers_nine_times_in_ten() -> None:
    by_hand = math.tanh(math.atanh(0.6) - stats.norm.ppf(0.9) * math.sqrt(1.06 / 7))
    assert lower_bound(0.6, 10) == pytest.approx(by_hand)
    generator = np.random.default_rng(1)
    true = 0.7
    of_ranks = 6 / math.pi * math.asin(true / 2)  # Spearman's of a bivariate normal
    for count in (5, 8, 13):
        covered = 0
        for _ in range(400):
            x = generator.normal(size=count)
            y = true * x + math.sqrt(1 - true**2) * generator.normal(size=count)
            covered += lower_bound(float(stats.spearmanr(x, y).statistic), count) <= of_ranks
        assert covered / 400 > 0.86


def test_a_perfect_order_of_few_is_no_certainty() -> None:
    assert lower_bound(1.0, 3) == -1.0
    assert lower_bound(1.0, 4) < 0
    assert 0 < lower_bound(1.0, 5) < lower_bound(1.0, 6) < lower_bound(1.0, 13) < 1


def test_a_prediction_is_the_least_squares_line_with_student_s_interval() -> None:
    generator = np.random.default_rng(2)
    x = generator.normal(size=6)
    y = 2 + 0.7 * x + 0.3 * generator.normal(size=6)
    found = fit(list(zip(x, y, strict=True)))
    assert found is not None
    line = stats.linregress(x, y)
    residual = y - line.intercept - line.slope * x
    by_hand = math.sqrt((residual**2).sum() / 4 * (1 + 1 / 6 + (0.4 - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()))
    assert found.at(0.4) == pytest.approx((line.intercept + 0.4 * line.slope, by_hand))
    assert fit([(1.0, 2.0), (1.0, 3.0), (1.0, 4.0)]) is None
    assert fit([(1.0, 2.0), (2.0, 3.0)]) is None


def test_points_that_meet_a_line_by_chance_are_no_certainty() -> None:
    found = fit([(1.0, 2.0), (2.0, 3.0), (3.0, 4.0)])
    assert found is not None
    assert found.at(2.5)[1] > 0


def test_a_model_far_below_in_step_with_the_others_has_no_chance_and_the_evidence_says_why() -> None:
    scores: Table = [[90.0, 92.1], [85.0, 87.0], [80.0, 81.9], [75.0, 77.1], [70.0, 72.0], [60.0, None]]
    chance = _evidence(scores).chance(5, 1)
    assert chance.value < 0.001
    assert chance.evidence is not None
    assert "32 px -> 64 px (n=5)" in chance.evidence
    assert "best so far 92.1" in chance.evidence


def test_a_value_at_which_everybody_falls_has_no_chance_for_the_one_that_was_best_before() -> None:
    falling: Table = [[90.0, 80.2], [88.0, 77.9], [86.0, 76.1], [84.0, 74.0], [89.0, None]]
    assert _evidence(falling).chance(4, 1).value < 0.05
    rising: Table = [[90.0, 92.2], [88.0, 89.9], [86.0, 88.1], [84.0, 86.0], [91.0, None]]
    assert _evidence(rising).chance(4, 1).value > 0.5


def test_ranks_alone_decide_where_trainings_were_stopped_early() -> None:
    rows: dict[Hashable, dict[int, Measured]] = {
        m: {0: Measured(100.0 - m, whole=False), 1: Measured(50.0 - m, whole=False)} for m in range(9)
    }
    rows[9] = {0: Measured(10.0, whole=False)}
    chance = Evidence(rows, ["32 px", "64 px"], 3).chance(9, 1)
    assert chance.value < 0.05
    assert chance.evidence is not None
    assert chance.evidence.startswith("rank 10 of 10 at 32 px, rank correlation 32 px -> 64 px at least 0.9")


def test_half_a_training_is_not_held_against_a_model_by_the_trend() -> None:
    rows: Rows = {m: {0: Measured(90.0 - m), 1: Measured(92.0 - m + 0.01 * (m % 2))} for m in range(4)}
    rows[4] = {0: Measured(40.0)}
    assert Evidence(rows, ["32 px", "64 px"], 3).chance(4, 1).value < 0.01
    rows[4] = {0: Measured(40.0, whole=False)}
    assert Evidence(rows, ["32 px", "64 px"], 3).chance(4, 1).value > 0.05


def test_with_too_few_in_common_or_nothing_cheaper_nothing_is_said() -> None:
    few = _evidence([[90.0, 92.0], [80.0, 82.0], [10.0, None]])
    assert few.chance(2, 1).value == 1.0
    assert few.chance(2, 1).evidence is None
    assert few.chance(2, 0).value == 1.0
    wary = _evidence([[9.0, 9.0], [8.0, 8.0], [7.0, 7.1], [6.0, 6.0], [1.0, None]], least_common=5)
    assert wary.chance(4, 1).value == 1.0


def test_the_step_below_stands_in_for_one_that_nobody_has_taken() -> None:
    scores: list[list[float | None]] = [[90.0 - 5 * m, 92.0 - 5 * m + 0.1 * (m % 2), None] for m in range(6)]
    found = _evidence(scores).chance(5, 2)
    assert found.value < 0.01
    assert found.evidence is not None
    assert "32 px -> 64 px" in found.evidence
    assert _evidence(scores).chance(0, 2).value > 0.5


def test_a_score_that_is_better_when_lower_is_told_as_it_is() -> None:
    rows: dict[Hashable, dict[int, Measured]] = {
        m: {0: Measured(-1.0 - m), 1: Measured(-0.9 - m + 0.01 * (m % 2))} for m in range(5)
    }
    rows[5] = {0: Measured(-9.0)}
    evidence = Evidence(rows, ["32 px", "64 px"], 3, lower_is_better=True).chance(5, 1).evidence
    assert evidence is not None
    assert "best so far 0.9" in evidence


def test_a_model_that_was_left_out_in_between_is_judged_step_by_step() -> None:
    scores: list[list[float | None]] = [[90.0 - 4 * m, 91.5 - 4 * m + 0.1 * (m % 2), None] for m in range(6)]
    scores[5][1] = None
    scores[0][2] = 93.0
    found = _evidence(scores).chance(5, 2)
    assert found.value < 0.01
    assert found.evidence is not None
    assert found.evidence.startswith("73.")
    assert "32 px -> 64 px (n=5), best" in found.evidence
