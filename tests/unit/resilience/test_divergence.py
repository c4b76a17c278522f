"""Loss spikes: what is one and what is not, and every rung of the ladder."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest

from longhaul.resilience.divergence import Decision, LossMonitor, Remedies, Spike

NAN, INF = math.nan, math.inf


def feed(monitor: LossMonitor, losses: Iterable[float], first: int = 1) -> list[Spike]:
    spikes = (monitor.update(step, float(loss), None) for step, loss in enumerate(losses, first))
    return [spike for spike in spikes if spike is not None]


def noise(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size)


# ---- the monitor -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "norm"), [(NAN, None), (INF, 1.0), (2.0, NAN), (2.0, INF), (-INF, None)])
def test_what_is_not_finite_is_a_spike_from_the_first_step_on(loss: float, norm: float | None) -> None:
    spike = LossMonitor().update(1, loss, norm)
    assert spike is not None
    assert (spike.step, spike.kind, spike.sigmas) == (1, "nonfinite", None)


def test_a_leap_is_a_spike_once_enough_losses_are_known() -> None:
    usual = 2.0 + 0.05 * noise(32)
    assert feed(LossMonitor(), [*usual[:31], 20.0]) == []
    (spike,) = feed(LossMonitor(), [*usual, 20.0])
    assert (spike.step, spike.loss, spike.kind) == (33, 20.0, "sigma")
    assert spike.sigmas is not None
    assert spike.sigmas > 6
    assert str(spike).startswith("step 33: the training loss is 20, ")


def test_the_threshold_is_the_recipes() -> None:
    usual = 2.0 + 0.05 * noise(40)
    assert feed(LossMonitor(sigma=1000), [*usual, 20.0]) == []


def test_a_sudden_improvement_is_no_spike() -> None:
    assert feed(LossMonitor(), [*(2.0 + 0.01 * noise(64)), 0.01]) == []


def test_a_spikes_loss_does_not_enter_the_statistics() -> None:
    monitor = LossMonitor()
    feed(monitor, 2.0 + 0.05 * noise(40))
    before = monitor.model_copy(deep=True)
    assert len(feed(monitor, [30.0, NAN, INF])) == 3
    assert monitor == before
    assert len(feed(monitor, [30.0])) == 1


def test_a_new_level_that_is_reached_step_by_step_is_followed() -> None:
    """Only the last 64 count."""
    assert feed(LossMonitor(), np.linspace(1, 4, 2000) + 0.1 * noise(2000)) == []


def test_losses_that_are_all_but_equal_give_no_alarm_for_a_hair() -> None:
    assert feed(LossMonitor(), [*[2.302585] * 64, 2.302586]) == []
    assert feed(LossMonitor(), [*[0.0] * 64, 1e-9, 0.0]) == []
    assert len(feed(LossMonitor(), [*[0.0] * 64, 1.0])) == 1
    assert len(feed(LossMonitor(), [*[2.302585] * 64, 3.0])) == 1


def test_a_loss_of_exactly_zero_now_and_then_does_not_make_a_hard_batch_a_spike() -> None:
    losses = np.where(np.arange(64) % 4 == 0, 0.0, np.exp(noise(64) - 7))
    assert feed(LossMonitor(), [*losses, 0.3]) == []


def test_negative_losses_are_judged_in_linear_scale() -> None:
    usual = -5 + 0.1 * noise(64)
    assert feed(LossMonitor(), [*usual, -4.6]) == []
    assert len(feed(LossMonitor(), [*usual, 1.0])) == 1


STEPS = 300_000


@pytest.mark.parametrize(
    ("curve", "spread"),
    [("flat", 0.5), ("flat", 2.0), ("decaying", 1.0), ("stairs", 0.5)],
)
def test_noise_gives_no_false_alarm_in_three_hundred_thousand_steps(curve: str, spread: float) -> None:
    """No alarm in 300,000 steps bounds the rate below 1 in 100,000 at 95 % (the rule of three)."""
    level = {
        "flat": np.ones(STEPS),
        "decaying": 0.01 + 7 * np.exp(-np.arange(STEPS) % 30_000 / 2_000),
        "stairs": 10.0 ** -(np.arange(STEPS) % 30_000 // 10_000),
    }[curve]
    losses = level * np.exp(spread * noise(STEPS, seed=3))
    monitor, alarms = LossMonitor(), 0
    for step in range(STEPS):
        if step % 30_000 == 0:  # a new run, high again
            monitor = LossMonitor()
        alarms += monitor.update(step, float(losses[step]), None) is not None
    assert alarms == 0


def test_in_linear_scale_alone_the_same_noise_gives_many_false_alarms() -> None:
    """The negative control: what the log scale is for."""
    losses = np.exp(noise(20_000, seed=3))
    assert len(feed(LossMonitor(), -100 + losses)) > 20  # below zero there is no log scale


def test_in_noise_of_every_width_a_leap_beyond_it_is_seen() -> None:
    for spread in (0.1, 0.5, 1.0):
        losses = np.exp(spread * noise(64, seed=5))
        assert len(feed(LossMonitor(), [*losses, float(np.exp(9 * spread))])) == 1


def test_monitor_and_remedies_come_back_from_a_checkpoint_as_they_were() -> None:
    monitor = LossMonitor(sigma=5)
    feed(monitor, 2.0 + 0.05 * noise(40))
    assert LossMonitor.model_validate_json(monitor.model_dump_json()) == monitor
    remedies = Remedies()
    remedies.decide(nonfinite(7), clip_norm=0.5, limit=8)
    again = Remedies.model_validate_json(remedies.model_dump_json())
    assert again.spike is not None
    assert math.isnan(again.spike.loss)
    assert again.decision == remedies.decision


# ---- the ladder ------------------------------------------------------------------------------------------------------


def nonfinite(step: int, grad_norm: float | None = NAN) -> Spike:
    return Spike(step=step, loss=NAN, kind="nonfinite", grad_norm=grad_norm)


def leap(step: int) -> Spike:
    return Spike(step=step, loss=40.0, kind="sigma", sigmas=9.0)


def climb(remedies: Remedies, spikes: Iterable[Spike], *, clip_norm: float | None = 0.5, limit: int = 8) -> list[Decision]:
    return [remedies.decide(spike, clip_norm=clip_norm, limit=limit) for spike in spikes]


def test_first_the_samples_are_tried_of_a_nan_also_those_of_the_step_before() -> None:
    assert climb(Remedies(), [leap(9)])[0].probe == (9,)
    (decision,) = climb(Remedies(), [nonfinite(9)])
    assert (decision.probe, decision.exclude_batch, decision.give_up) == ((8, 9), False, False)
    assert decision.reason == "step 9: the training loss is nan: its samples are tried one by one"


def test_each_step_is_tried_once() -> None:
    remedies = Remedies()
    climb(remedies, [nonfinite(9)])
    assert [remedies.probes(step) for step in (7, 8, 8, 9, 9, 10)] == [False, True, False, True, False, False]


def test_the_same_step_again_costs_its_batch_and_then_the_remedies_come_in_turn() -> None:
    first, second, third, fourth, fifth = climb(Remedies(), [leap(9)] * 5)
    assert (first.probe, first.exclude_batch) == ((9,), False)
    assert (second.probe, second.exclude_batch) == ((9,), True)
    assert third.clip_norm == pytest.approx(0.3)
    assert (third.probe, third.rate_factor) == ((), 1.0)
    assert (fourth.clip_norm, fourth.rate_factor) == (None, 0.5)
    assert fifth.give_up
    assert fifth.reason.endswith("samples were left out, gradient norm and rate lowered, and it came again")


def test_a_nan_that_moves_by_a_step_is_the_same_one() -> None:
    assert [d.exclude_batch for d in climb(Remedies(), [nonfinite(9), nonfinite(10)])] == [False, True]


def test_where_the_gradients_norm_is_not_known_the_batch_before_is_left_out_as_well() -> None:
    """The loss of a step is NaN because of its own batch, or because of the gradient of the one before."""
    decisions = climb(Remedies(), [nonfinite(9, grad_norm=None)] * 4)
    assert [(d.probe, d.exclude_batch) for d in decisions[1:3]] == [((9,), True), ((8,), True)]
    assert decisions[3].clip_norm == pytest.approx(0.3)


def test_without_a_norm_in_the_recipe_it_is_clipped_at_one() -> None:
    assert climb(Remedies(), [leap(9)] * 3, clip_norm=None)[2].clip_norm == 1.0


def test_another_step_begins_anew() -> None:
    assert [d.exclude_batch for d in climb(Remedies(), [leap(9), leap(50), leap(9)])] == [False, False, False]


def test_after_samples_were_found_the_same_step_begins_anew() -> None:
    remedies = Remedies()
    climb(remedies, [leap(9)])
    remedies.found()
    assert climb(remedies, [leap(9)])[0].probe == (9,)


def test_after_so_many_rollbacks_that_found_nothing_the_remedies_come_at_once() -> None:
    decisions = climb(Remedies(), [leap(100 * n) for n in range(1, 7)], limit=3)
    assert [bool(d.probe) for d in decisions] == [True, True, True, False, False, False]
    assert decisions[3].clip_norm is not None
    assert decisions[5].give_up


def test_rollbacks_that_find_samples_do_not_count_against_the_bound() -> None:
    remedies = Remedies()
    for n in range(1, 25):
        (decision,) = climb(remedies, [nonfinite(100 * n)], limit=3)
        assert decision.probe == (100 * n - 1, 100 * n)
        remedies.found()
        remedies.found()  # in both steps
    assert (remedies.rollbacks, remedies.unexplained) == (24, 0)


def test_data_that_are_broken_throughout_end_the_run() -> None:
    remedies = Remedies()
    for n in range(1, 31):
        assert not climb(remedies, [nonfinite(100 * n)], limit=3)[0].give_up
        remedies.found()
    (decision,) = climb(remedies, [nonfinite(3100)], limit=3)
    assert decision.give_up
    assert "the data are not in order" in decision.reason


def test_a_bound_of_zero_lowers_at_once() -> None:
    decisions = climb(Remedies(), [leap(9), leap(90), leap(900)], limit=0)
    assert [d.give_up for d in decisions] == [False, False, True]


def test_a_gradient_that_is_not_finite_says_so() -> None:
    assert str(Spike(step=3, loss=2.0, kind="nonfinite", grad_norm=INF)) == "step 3: the gradient's norm is inf"


def test_a_spike_long_after_the_others_begins_the_ladder_anew() -> None:
    """In 40 days there are some; they must not add up to the end of the run."""
    decisions = climb(Remedies(), [leap(2000 * number) for number in range(1, 30)], limit=2)
    assert not any(decision.give_up or decision.clip_norm for decision in decisions)
