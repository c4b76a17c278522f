"""Budgets count a day's failures of one class; a run that fails again and again without getting on ends."""

from __future__ import annotations

import pytest

from longhaul.recipe.schema import RetryBudgets
from longhaul.resilience.incidents import FailureClass, Incident
from longhaul.resilience.retries import why_not

DAY = 86_400.0
NOW = 40 * DAY


def incident(ago_s: float, kind: FailureClass = "lost") -> Incident:
    return Incident(number=1, time_s=NOW - ago_s, segment=1, kind=kind, what="gone")


def decide(kind: FailureClass, *former: Incident, saved_ago_s: float = 0.0, **budgets: int) -> str | None:
    return why_not(kind, former, RetryBudgets.model_validate(budgets), now_s=NOW, saved_s=NOW - saved_ago_s)


def test_a_budget_is_spent_by_failures_of_its_own_class_within_a_day() -> None:
    assert decide("lost", incident(60), lost=2) is None
    assert "resilience.budgets.lost" in (decide("lost", incident(60), incident(3600), lost=2) or "")
    assert decide("lost", incident(60, "hang"), incident(60, "memory"), lost=1) is None


def test_failures_of_the_day_before_do_not_count() -> None:
    old = [incident(DAY + hour * 3600.0) for hour in range(500)]
    assert decide("lost", *old, lost=1) is None


def test_without_a_limit_any_number_of_preemptions_is_survived() -> None:
    assert decide("preemption", *[incident(60, "preemption")] * 500, saved_ago_s=DAY) is None


def test_a_budget_of_none_allows_no_restart() -> None:
    assert decide("hang", hang=0) is not None


def test_six_failures_without_a_checkpoint_between_them_end_the_run() -> None:
    five = [incident(60.0 * i, kind) for i, kind in enumerate(("lost", "hang", "memory", "lost", "hang"), 1)]
    assert "in a row" in (decide("lost", *five, saved_ago_s=3600) or "")
    assert decide("lost", *five[1:], saved_ago_s=3600) is None
    assert decide("lost", *five, saved_ago_s=90) is None  # one was saved since the second
    assert decide("preemption", *five, saved_ago_s=3600) is None


@pytest.mark.parametrize("kind", ["preemption", "rollback", "driver"])
def test_what_is_no_fault_of_the_run_does_not_count_as_a_crash_loop(kind: FailureClass) -> None:
    assert decide("lost", *[incident(60, kind)] * 10, saved_ago_s=3600) is None


def test_a_users_mistake_is_never_retried_and_a_rollback_always() -> None:
    assert decide("user") == "it is not cured by a restart"
    assert decide("rollback", *[incident(60)] * 50) is None


def test_what_has_ended_the_run_was_seen_to_and_does_not_count_again() -> None:
    """Six in a row, the end; three days later, cured and started again, one lost worker is one lost worker."""
    five = [incident(3 * DAY + 60.0 * i) for i in range(6, 1, -1)]
    last = incident(3 * DAY).model_copy(update={"retried": False})
    assert decide("lost", *five, last, saved_ago_s=4 * DAY) is None
