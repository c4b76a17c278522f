"""Adding up the ledger: every nanosecond from a run's first mark to its last in exactly one class.

Spans of rank 0 bring their own shares. What lies between them is classed by the driver's marks: after the last sign of a
worker nothing moved and nobody had noticed (`hung`) until the driver's next mark; from a mark on its state is in force; where
a driver began anew without a word from the one before, the time until then is `waiting`. The sum is exact because every
interval begins where the one before it ended, and all of it is whole nanoseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from longhaul.resilience.ledger import CLASSES, TimeClass

_S = 1e9


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
        until_ns: count up to here, for a run that still goes.
    """
    table = sorted(rows.to_pylist(), key=lambda row: (row["start_ns"], row["end_ns"]))
    spans = [row for row in table if row["source"] == "worker"]
    marks = [row for row in table if row["source"] == "driver"]
    intervals: list[Interval] = []
    at = table[0]["start_ns"] if table else 0
    for span in spans:
        if span["start_ns"] > at:
            intervals += _between(at, span["start_ns"], marks, after_span=bool(intervals))
            at = span["start_ns"]
        if span["end_ns"] > at:
            intervals.append(Interval(at, span["end_ns"], _clipped(span, span["end_ns"] - at)))
            at = span["end_ns"]
    end = max([at, *(mark["start_ns"] for mark in marks), *([until_ns] if until_ns is not None else [])])
    if end > at:
        intervals += _between(at, end, marks, after_span=bool(spans))
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


def _between(start: int, end: int, marks: list[dict[str, Any]], *, after_span: bool) -> Iterator[Interval]:
    """The time from `start` to `end`, in which no rank 0 lived, cut at the marks."""
    former = [mark["state"] for mark in marks if mark["start_ns"] <= start]
    inside = [mark for mark in marks if start < mark["start_ns"] < end] + [mark for mark in marks if mark["start_ns"] == end]
    at = start
    state: str = "hung" if after_span else former[-1] if former else "waiting"
    for mark in inside:
        # A driver that begins where no mark has closed the former's time: that one died, and nobody was there.
        unnoticed = state == "hung" and mark["state"] == "began"
        yield from _interval(at, mark["start_ns"], "waiting" if unnoticed else state)
        at, state = mark["start_ns"], mark["state"]
    yield from _interval(at, end, state)


def _interval(start: int, end: int, state: str) -> Iterator[Interval]:
    name: TimeClass | None = "startup" if state == "began" else None if state == "ended" else state  # type: ignore[assignment]
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
