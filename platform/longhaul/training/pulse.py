"""The pulse: every few seconds, at a step boundary, all ranks put together what has come from outside.

A request in the run directory, a notice of preemption, a save that is done behind: each is seen by some rank at some moment,
and acted on by all at the same step. One exchange of small values settles all of it, so a step costs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from longhaul.resilience.notices import Notice, saves_before
from longhaul.resilience.requests import Request
from longhaul.training.checkpoints.saving import Standing
from longhaul.training.ranks import Ranks
from longhaul.training.record.busy import Busy


@dataclass(frozen=True)
class News:
    """What all ranks know after a pulse, the same on each.

    Attributes:
        request: somebody's request that waits for its answer.
        notice: a node is about to be taken away.
        standings: of every rank's save.
        busy_s: every rank's own seconds a step.
        save: an ephemeral save is due (rank 0's clock and cadence say so), or the notice asks for one.
        urgent: the save must be complete before training goes on.
    """

    request: Request | None
    notice: Notice | None
    standings: list[Standing]
    busy_s: list[float]
    save: bool
    urgent: bool


@dataclass
class Pulse:
    """Decides when to look, the same on all ranks, and looks.

    Attributes:
        ranks: who exchange.
        every_s: about how far apart.
        notice: asks Ray Train for a preemption (it is a barrier); None where nothing runs under Ray Train.
    """

    ranks: Ranks
    every_s: float
    notice: Callable[[], Notice | None] | None = None
    passed_s: float = 0.0
    """Time between the last two looks."""
    _next_step: int = 0
    _last: tuple[int, float] | None = None
    _noticed_s: float | None = None
    _served: int = 0

    def due(self, step: int) -> bool:
        """Whether this is the step to look at."""
        rolled_back = self._last is not None and step < self._last[0]
        return step >= self._next_step or rolled_back

    def beat(self, step: int, standing: Standing, busy: Busy, request: Request | None, *, save: bool, cost_s: float) -> News:
        """Exchange.

        Args:
            step: steps done.
            standing: of this rank's save.
            busy: this rank's own time.
            request: what rank 0 has seen.
            save: rank 0: whether an ephemeral save is due.
            cost_s: what a save takes from begin to end.
        """
        notice = self.notice() if self.notice is not None else None
        save, urgent = self._asked_for(notice, save, cost_s)
        words = self.ranks.gather((standing, busy.take(), request, save, urgent, self._pace(step)))
        _, _, request, save, urgent, pace = words[0]  # rank 0's clock decides
        self._next_step = step + pace
        return News(request, notice, [word[0] for word in words], [word[1] for word in words], save, urgent)

    def _pace(self, step: int) -> int:
        """Steps until the next look, from the time that the last ones took."""
        now = time.monotonic()
        last, self._last = self._last, (step, now)
        self.passed_s = now - last[1] if last is not None else 0.0
        if last is None or step <= last[0]:
            return 1
        return max(1, min(int(self.every_s * (step - last[0]) / max(now - last[1], 1e-6)), 10_000))

    def _asked_for(self, notice: Notice | None, save: bool, cost_s: float) -> tuple[bool, bool]:
        """Save at the notice and once more close to the deadline; (whether to save, whether to wait for it)."""
        now = time.time()
        if notice is None:
            self._noticed_s, self._served = None, 0
            return save, False
        self._noticed_s = self._noticed_s or now
        moments = saves_before(notice.deadline_s, self._noticed_s, cost_s)  # the second moves with what a save takes
        if self._served < len(moments) and now >= moments[self._served]:
            self._served += 1
            return True, True
        return save, False
