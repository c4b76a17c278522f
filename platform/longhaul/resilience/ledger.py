"""The ledger: every nanosecond of a run falls into one class, across restarts.

Rank 0 runs a stopwatch that is always in one class and writes closed spans: from, to, and how it was shared out, exact in
integers. The driver writes marks: what is going on while no rank 0 lives. `accounting` adds both up. The clock of a span is
the monotonic one, laid on the wall's once a segment, so that a step of the wall clock tears no hole.
"""

from __future__ import annotations

import threading
import time
from typing import Literal, get_args

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from longhaul.resilience.run_directory import RunDirectory
from longhaul.resilience.series import SeriesWriter, read_series

TimeClass = Literal["productive", "recomputed", "checkpoint", "data", "startup", "waiting", "validation", "hung", "paused"]
CLASSES: tuple[TimeClass, ...] = get_args(TimeClass)
State = Literal["began", "startup", "waiting", "paused", "ended"]
LEDGER = pa.schema(
    [
        ("segment", pa.int32()),
        ("source", pa.string()),  # worker: a closed span of rank 0; driver: a mark
        ("state", pa.string()),  # a mark's: what is in force from then on; empty for a span
        ("start_ns", pa.int64()),  # since 1970
        ("end_ns", pa.int64()),
        ("step", pa.int64()),  # steps done at the span's end
        ("samples", pa.int64()),  # samples trained in the span, recomputed ones not counted
        *((f"{name}_ns", pa.int64()) for name in CLASSES),
        ("time_s", pa.float64()),  # as all series; equals end_ns
    ]
)
_FOLDER = "ledger"


class Span(BaseModel):
    """Time of rank 0 from `start_ns` to `end_ns`, shared out to classes; the shares sum to the length."""

    model_config = ConfigDict(extra="forbid")

    segment: int
    start_ns: int
    end_ns: int
    step: int
    samples: int
    shares: dict[TimeClass, int]


class Stopwatch:
    """Always in exactly one class; the flight recorder's thread reads it while the training's thread turns it.

    Args:
        segment: of the run.
        high_water: the furthest step that was ever reached; steps up to it are recomputed.
        step: where the run stands.
    """

    def __init__(self, segment: int, high_water: int, step: int) -> None:
        self.segment, self.high_water = segment, high_water
        self._offset = time.time_ns() - time.monotonic_ns()
        self._now: TimeClass = "startup"
        self._since = self._start = self._clock()
        self._shares: dict[TimeClass, int] = {}
        self._step, self._samples = step, 0
        self._lock = threading.Lock()

    def switch(self, to: TimeClass) -> TimeClass:
        """End the present class, begin another; returns the former."""
        with self._lock:
            return self._turn(to)

    def _turn(self, to: TimeClass) -> TimeClass:
        former, at = self._now, self._clock()
        self._shares[former] = self._shares.get(former, 0) + at - self._since
        self._now, self._since = to, at
        return former

    def training(self, step: int) -> None:
        """The step after `step` begins: productive, or recomputed where it was done before."""
        self.switch("productive" if step >= self.high_water else "recomputed")

    def stepped(self, step: int, samples: int) -> None:
        """Step number `step` is done; it had `samples` samples."""
        self._step = step
        if step > self.high_water:
            self.high_water, self._samples = step, self._samples + samples

    def give_up(self) -> None:
        """What is being done will never be finished: the time since it began was `hung`."""
        with self._lock:
            self._now = "hung"
            self._turn("hung")

    def span(self) -> Span:
        """The open span as it stands; the class in force comes last."""
        with self._lock:
            at, shares = self._clock(), dict(self._shares)
            shares[self._now] = shares.pop(self._now, 0) + at - self._since
            return self._closed_at(at, shares)

    def cut(self) -> Span:
        """Close the open span and begin the next."""
        with self._lock:
            self._turn(self._now)
            closed = self._closed_at(self._since, self._shares)
            self._start, self._shares, self._samples = self._since, {}, 0
            return closed

    def _closed_at(self, end_ns: int, shares: dict[TimeClass, int]) -> Span:
        return Span(
            segment=self.segment, start_ns=self._start, end_ns=end_ns, step=self._step, samples=self._samples, shares=shares
        )

    def _clock(self) -> int:
        return time.monotonic_ns() + self._offset


def ledger_writer(run: RunDirectory) -> SeriesWriter:
    """A writer of ledger rows; close it."""
    return SeriesWriter(run.storage.child(_FOLDER), LEDGER)


def read_ledger(run: RunDirectory) -> pa.Table:
    """All rows (`LEDGER`), by segment, step and time."""
    return read_series(run.storage.child(_FOLDER), LEDGER)


def span_row(span: Span) -> dict[str, object]:
    """A span as a row."""
    return {
        "segment": span.segment, "source": "worker", "state": "", "start_ns": span.start_ns, "end_ns": span.end_ns,
        "step": span.step, "samples": span.samples, "time_s": span.end_ns / 1e9,
        **{f"{name}_ns": span.shares.get(name, 0) for name in CLASSES},
    }  # fmt: skip


def mark(run: RunDirectory, state: State, *, segment: int, step: int = 0) -> None:
    """The driver's word on what is going on from now on."""
    now = time.time_ns()
    with ledger_writer(run) as writer:
        writer.append(
            segment=segment, source="driver", state=state, start_ns=now, end_ns=now, step=step, samples=0, time_s=now / 1e9,
            **{f"{name}_ns": 0 for name in CLASSES},
        )  # fmt: skip
