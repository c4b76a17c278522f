"""For what share of the time something was at work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class BusyTime:
    """Counts overlapping work once. Used from one thread.

    Args:
        clock: seconds; only goes forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at_work = 0
        self._busy_s = 0.0
        self._counted = self._since = clock()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While this lasts, it is busy."""
        self._count()
        self._at_work += 1
        try:
            yield
        finally:
            self._count()
            self._at_work -= 1

    def take(self) -> float:
        """The busy share of the time since this was last asked, 0..1."""
        self._count()
        span = self._counted - self._since
        share = self._busy_s / span if span > 0 else float(self._at_work > 0)
        self._busy_s, self._since = 0.0, self._counted
        return share

    def _count(self) -> None:
        now = self._clock()
        if self._at_work:
            self._busy_s += now - self._counted
        self._counted = now
