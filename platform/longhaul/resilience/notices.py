"""Notices: a node of this run is about to be taken away, and says so. What is left to do is to save in time."""

from __future__ import annotations

from dataclasses import dataclass

_MARGIN_S = 5.0
_NO_DEADLINE_S = 120.0
"""How long Ray Train waits for a node that gave no deadline (`DEFAULT_PREEMPTION_DEADLINE_S`), and what AWS gives."""


@dataclass(frozen=True)
class Notice:
    """Nodes of this run are about to be taken away.

    Attributes:
        deadline_s: the earliest end of one of them, in seconds since 1970; None where nobody said.
        ranks: who runs on them.
    """

    deadline_s: float | None
    ranks: tuple[int, ...]


def saves_before(deadline_s: float | None, noticed_s: float, cost_s: float) -> tuple[float, ...]:
    """When to save for a notice: at once, and again as late as is safe, where a save fits in between.

    The late one begins two measured saves and five seconds before the deadline: one for the save itself, one because the
    storage is as slow as it likes. With less time than that there is one save, at once, in the hope that it is enough.

    Args:
        deadline_s: the end of the node, in seconds since 1970; None: as late as Ray Train waits for a node without one.
        noticed_s: when the notice was first seen.
        cost_s: what a save took so far, from its beginning until it counts.

    Returns:
        One or two moments, ascending, the first of them `noticed_s`.
    """
    end_s = noticed_s + _NO_DEADLINE_S if deadline_s is None else deadline_s
    late_s = end_s - (2 * cost_s + _MARGIN_S)
    return (noticed_s, late_s) if late_s > noticed_s + cost_s else (noticed_s,)
