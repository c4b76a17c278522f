"""Adding up the ledger: every nanosecond from a run's first mark to its last in exactly one class.

Spans of rank 0 bring their own shares. What lies between them is classed by the driver's marks:

    after the last sign of a worker     `hung`: nothing moved and nobody had noticed, until the driver's next mark
    after a mark                        the mark's state, until the next mark or span
    before a driver that began anew     `waiting`, where the driver before it left without a mark
    before an orderly end               `startup`, as which taking the workers down counts too
    after `ended`                       not counted: nobody wanted anything of the run

The sum is exact because every interval begins where the one before it ended, and all of it is whole nanoseconds.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from longhaul.resilience.ledger import CLASSES, TimeClass

_S = 1e9
_STATES: dict[str, TimeClass | None] = {
    "began": "startup",
    "startup": "startup",
    "waiting": "waiting",
    "paused": "paused",
    "hung": "hung",
    "ended": None,
}
_UNTIL = {"began": "waiting", "paused": "startup", "ended": "startup"}


@dataclass(frozen=True)
class Interval:
    """Time between two moments, in nanoseconds since 1970, with its shares; `shares` sum to the length."""

    start_ns: int
    end_ns: int
    shares: dict[TimeClass, int]


@dataclass(frozen=True)
class Account:
    """Where the time of a run went.

    Attributes:
        classes: nanoseconds by class; they sum to `total_ns`.
        samples: trained, each counted once.
        steps: the furthest step.
        segments: how many times the workers were started or rolled back.
        intervals: in order, without gap or overlap, but for the time in which the run had ended.
    """

    classes: dict[TimeClass, int]
    samples: int = 0
    steps: int = 0
    segments: int = 0
    intervals: list[Interval] = field(default_factory=list)

    @property
    def total_ns(self) -> int:
        """Wall time, without what lies between an end and a later start."""
        return sum(self.classes.values())

    @property
    def goodput(self) -> float:
        """Share of the wall time that was productive; 0 for an empty ledger."""
        return self.classes["productive"] / self.total_ns if self.total_ns else 0.0

    @property
    def samples_per_s(self) -> float | None:
        """Samples (images, tokens: what the workload counts) a productive second."""
        productive_s = self.classes["productive"] / _S
        return self.samples / productive_s if productive_s else None


def account(rows: pa.Table, until_ns: int | None = None) -> Account:
    """Add up the rows of a ledger (`ledger.LEDGER`).

    Args:
        rows: in any order; spans may overlap (clocks of two nodes, a rank 0 that did not know it was replaced): no nanosecond
            counts twice, the one that began first keeps it.
        until_ns: count up to here, for a run that still goes, or is paused.
    """
    table = sorted(rows.to_pylist(), key=lambda row: (row["start_ns"], row["end_ns"]))
    spans = [row for row in table if row["source"] == "worker"]
    intervals = list(_intervals(spans, [row for row in table if row["source"] == "driver"], until_ns))
    classes: dict[TimeClass, int] = dict.fromkeys(CLASSES, 0)
    for interval in intervals:
        for name, share in interval.shares.items():
            classes[name] += share
    return Account(
        classes,
        samples=sum(span["samples"] for span in spans),
        steps=max((row["step"] for row in table), default=0),
        segments=len({span["segment"] for span in spans}),
        intervals=intervals,
    )


def _intervals(spans: list[dict[str, Any]], marks: list[dict[str, Any]], until_ns: int | None) -> Iterator[Interval]:
    """All of the time, from the first row to the last or to `until_ns`."""
    firsts = [row["start_ns"] for row in (*spans[:1], *marks[:1])]
    if not firsts:
        return
    moments = [mark["start_ns"] for mark in marks]
    at = min(firsts)
    state = "waiting"
    for span in spans:
        if span["start_ns"] > at:
            yield from _between(at, span["start_ns"], state, marks, moments)
            at = span["start_ns"]
        if span["end_ns"] > at:
            yield Interval(at, span["end_ns"], _clipped(span, span["end_ns"] - at))
            at = span["end_ns"]
            # A mark inside a span: the driver knew of the end before rank 0, whose last words came late or whose clock is ahead.
            last = bisect.bisect_left(moments, at) - 1
            state = marks[last]["state"] if last >= 0 and moments[last] > span["start_ns"] else "hung"
    end = max([at, *moments[-1:], *([until_ns] if until_ns is not None else [])])
    yield from _between(at, end, state, marks, moments)


def _between(start: int, end: int, state: str, marks: list[dict[str, Any]], moments: list[int]) -> Iterator[Interval]:
    """The time from `start`, when `state` is in force, to `end`, in which no rank 0 lived: cut at the marks."""
    at = start
    for mark in marks[bisect.bisect_left(moments, start) : bisect.bisect_right(moments, end)]:
        # What the time after the last sign of a worker was, only the next mark tells.
        before = _UNTIL.get(mark["state"], state) if state == "hung" else state
        yield from _interval(at, mark["start_ns"], before)
        at, state = mark["start_ns"], mark["state"]
    yield from _interval(at, end, state)


def _interval(start: int, end: int, state: str) -> Iterator[Interval]:
    name = _STATES[state]
    if end > start and name is not None:
        yield Interval(start, end, {name: end - start})


def _clipped(span: dict[str, Any], length: int) -> dict[TimeClass, int]:
    """The span's shares, scaled down to `length` where its beginning is another's."""
    shares: dict[TimeClass, int] = {name: span[f"{name}_ns"] for name in CLASSES}
    whole = sum(shares.values())
    if whole == length:
        return shares
    scaled: dict[TimeClass, int] = {name: share * length // whole if whole else 0 for name, share in shares.items()}
    largest = max(scaled, key=lambda name: scaled[name])
    scaled[largest] += length - sum(scaled.values())
    return scaled
