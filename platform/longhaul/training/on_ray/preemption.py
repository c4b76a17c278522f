"""Preemption as Ray Train tells it: a node of this run is about to be taken away.

Ray learns of it by a drain of the node (`ray drain-node`, SIGTERM to a blocking `ray start`, the notice of a spot instance),
Ray Train tells the workers, lets them go on to the deadline and then restarts the group.
"""

from __future__ import annotations

import ray.train

from longhaul.resilience.notices import Notice


def notice() -> Notice | None:
    """The notice that stands, the same on all ranks; None while there is none.

    Wraps `ray.train.get_preemption_info`, which is a barrier: every rank must call it equally often. It takes some
    milliseconds, so it is asked every few seconds and not every step.
    """
    info = ray.train.get_preemption_info()
    if info is None:
        return None
    deadline_s = None if info.deadline_ms is None else info.deadline_ms / 1e3
    return Notice(deadline_s, tuple(info.preempted_ranks))
