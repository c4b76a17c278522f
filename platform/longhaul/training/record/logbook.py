"""What a rank is doing, told to the flight recorder (every rank) and to the ledger (rank 0) in one word."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Iterator

from longhaul.resilience.flight import Doing, FlightRecorder, FlightState, forget_old_flights, recover_span, this_host
from longhaul.resilience.ledger import Stopwatch, TimeClass, ledger_writer, span_row
from longhaul.resilience.requests import Request, answered
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.ranks import Ranks

log = logging.getLogger(__name__)

_CLASS: dict[Doing, TimeClass] = {
    "startup": "startup",
    "data": "data",
    "validation": "validation",
    "saving": "checkpoint",
    "waiting": "waiting",
}
_FIRST_S, _LAST_S = 2.0, 60.0


class Logbook:
    """Use as a context around a rank's work.

    Args:
        run: the run.
        ranks: who this is.
        segment: number of this line of history: one more at each start of the workers, and at each rollback.
        attempt: its id; no two are the same, also where two drivers counted alike.
        hang_s: how long a rank may make no progress.
    """

    @classmethod
    def open(cls, run: RunDirectory, ranks: Ranks, hang_s: float) -> Logbook:
        """Begin a new line of history."""
        segment, attempt = ranks.from_first((run.summary().segment + 1, uuid.uuid4().hex[:8]))
        return cls(run, ranks, segment, attempt, hang_s)

    def __init__(self, run: RunDirectory, ranks: Ranks, segment: int, attempt: str, hang_s: float) -> None:
        self._run, self._first = run, ranks.is_first
        self.segment, self.attempt = segment, attempt
        high_water = recover_span(run) if ranks.is_first else 0
        self._clock = Stopwatch(segment, high_water, 0)
        state = FlightState(
            segment=segment, attempt=attempt, rank=ranks.rank, world_size=ranks.world_size, host=this_host(), pid=os.getpid()
        )
        self._flight = FlightRecorder(run, state, hang_s, self._clock.span if ranks.is_first else None)
        self._writer = ledger_writer(run)
        self._began_s = self._kept_s = time.monotonic()
        self._doing: Doing = "startup"
        self._step = 0

    @property
    def request(self) -> Request | None:
        """What somebody asks of the run, as rank 0's recorder saw it last."""
        return self._flight.request

    def at(self, doing: Doing, step: int | None = None) -> None:
        """From now on this rank is at `doing`; with `step`, that many steps are done."""
        self._step = self._step if step is None else step
        self._doing = doing
        self._flight.beat(doing, self._step)
        if doing == "step":
            self._clock.training(self._step)
        else:
            self._clock.switch(_CLASS[doing])

    def beat(self) -> None:
        """Still at it, and getting on."""
        self._flight.beat(self._doing)

    def stepped(self, step: int, samples: int) -> None:
        """Step number `step`, of `samples` samples, is done."""
        self._step = step
        self._clock.stepped(step, samples)

    @contextlib.contextmanager
    def during(self, doing: Doing) -> Iterator[None]:
        """Around something within a step."""
        former = self._doing
        self.at(doing)
        try:
            yield
        finally:
            self.at(former, self._step)

    def answer_and_hold(self, request: Request, seconds: int) -> None:
        """Say that `request` was done, and stand still for a while, on purpose."""
        if self._first:
            answered(self._run, request)
        with self.during("waiting"):
            for _ in range(seconds):
                time.sleep(1.0)
                self.beat()

    def rolled_back(self, segment: int, attempt: str, step: int) -> None:
        """History begins anew at `step`."""
        self.keep(now=True)
        self.segment, self.attempt = segment, attempt
        self._clock.segment, self._step = segment, step
        self._flight.new_segment(segment, attempt, step)

    def keep(self, *, now: bool = False) -> None:
        """Put the open span of the ledger on storage when its time has come (2 % of the run so far, 2 s to 60 s)."""
        at = time.monotonic()
        if self._first and (now or at - self._kept_s >= min(max(0.02 * (at - self._began_s), _FIRST_S), _LAST_S)):
            self._kept_s = at
            self._writer.append(**span_row(self._clock.cut()))
            self._writer.flush()

    def __enter__(self) -> Logbook:
        if self._first:
            forget_old_flights(self._run)
        self._flight.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not None and self._doing == "step":
            self._clock.give_up()  # the step that failed was none
        try:
            self.keep(now=True)
            self._writer.close()
        except OSError:
            log.exception("the ledger's last span could not be written")
        self._flight.__exit__(kind, error, trace)
