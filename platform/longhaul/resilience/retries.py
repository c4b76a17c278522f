"""Whether a run may be restarted once more: budgets by class of failure, and an end to crash loops.

A budget counts failures of its class within a day: a run of 40 days may lose dozens of nodes, one that loses ten a day has a
cause that restarts will not cure.

    preemption   a node was taken away with a notice
    capacity     workers could not be placed in time
    lost         a worker or node died, or raised an error that is not on purpose
    hang         no progress for `resilience.hang_s`
    memory       out of memory; the restart halves the micro-batch
    user         an error on purpose (`LonghaulError`): no restart cures it
"""

from __future__ import annotations

from collections.abc import Sequence

from longhaul.recipe.schema import RetryBudgets
from longhaul.resilience.incidents import FailureClass, Incident

_WINDOW_S = 86_400.0
_IN_A_ROW = 6
_BEYOND = ("preemption", "capacity", "rollback", "driver")  # not the program's doing: they never make a crash loop


def why_not(kind: FailureClass, former: Sequence[Incident], budgets: RetryBudgets, *, now_s: float, saved_s: float) -> str | None:
    """Why the run must end instead of being restarted; None where it may go on.

    Args:
        kind: of the failure at hand.
        former: the run's incidents, without this one.
        budgets: the recipe's.
        now_s: the present, in seconds since 1970.
        saved_s: when the newest complete checkpoint was written.
    """
    if kind == "user":
        return "it is not cured by a restart"
    if kind in ("driver", "rollback"):  # the run goes on by other means; nothing is retried here
        return None
    budget: int = getattr(budgets, kind)
    recent = sum(incident.kind == kind and now_s - incident.time_s < _WINDOW_S for incident in former)
    if 0 <= budget <= recent:
        return f"the budget of {budget} restarts a day for {kind!r} is spent (resilience.budgets.{kind})"
    ended = max((place for place, incident in enumerate(former, 1) if not incident.retried), default=0)
    since = former[ended:]  # what had ended the run was seen to, or nobody would have started it again
    fruitless = sum(incident.time_s > saved_s and incident.kind not in _BEYOND for incident in since)
    if kind not in _BEYOND and fruitless + 1 >= _IN_A_ROW:
        return f"{_IN_A_ROW} failures in a row without a complete checkpoint between them"
    return None
