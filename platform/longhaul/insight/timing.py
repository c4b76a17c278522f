"""How long a call takes: warm-up until it has settled, percentiles of enough calls or none, events on a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

P99_CALLS = 100
"""Fewer calls have no 99th percentile: it would be their slowest one."""

WINDOW = 5
"""Calls whose median is one reading of the warm-up."""

SETTLED = 0.05
"""Two readings in a row that differ by no more than this share of the first end the warm-up."""

_LEAST, _MOST = 3, 1000  # timed calls

Call = Callable[[], object]


class Watch(Protocol):
    """What measures a call."""

    @property
    def queues(self) -> bool:
        """Whether calls return before their work is done, so that a row of them is quicker than its calls one by one."""
        ...

    def now(self) -> float:
        """Wall time in seconds, from any beginning."""
        ...

    def one(self, call: Call) -> float:
        """Seconds of one call, from its start on an idle device to its end."""
        ...

    def row(self, call: Call, times: int) -> float:
        """Seconds of so many calls back to back, to the end of the last."""
        ...


class CpuWatch:
    """`time.perf_counter` around calls that have done their work when they return."""

    queues = False

    def now(self) -> float:
        """Seconds of `time.perf_counter`."""
        return time.perf_counter()

    def one(self, call: Call) -> float:
        """Seconds of one call."""
        return self.row(call, 1)

    def row(self, call: Call, times: int) -> float:
        """Seconds of so many calls."""
        begin = time.perf_counter()
        for _ in range(times):
            call()
        return time.perf_counter() - begin


class CudaWatch:
    """CUDA events (`torch.cuda.Event`) on the current stream.

    One call begins when the device is idle, so that the time holds what launching costs where the device has to wait for it;
    calls in a row are queued without waiting, so that launching hides behind the work.
    """

    queues = True

    def now(self) -> float:
        """Seconds of `time.perf_counter`."""
        return time.perf_counter()

    def one(self, call: Call) -> float:
        """Seconds between events around one call."""
        return self.row(call, 1)

    def row(self, call: Call, times: int) -> float:
        """Seconds between events around so many calls."""
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for _ in range(times):
            call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


class Timing(BaseModel):
    """How long one batch takes.

    Attributes:
        batch: samples a call.
        calls: timed ones; `warm_up` came before them and count for nothing.
        settled: whether the warm-up ended because the times had settled, and not because its time was over.
        p50_ms, p99_ms: percentiles of one call on an idle device; no p99 of fewer than `P99_CALLS` calls.
        samples_per_s: of calls back to back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: int
    calls: int
    warm_up: int
    settled: bool
    p50_ms: float
    p99_ms: float | None
    samples_per_s: float


def measure(call: Call, batch: int, *, watch: Watch, budget_s: float) -> Timing:
    """Time a call on `batch` samples.

    The first calls are slow: memory is fetched, kernels are chosen, clocks rise. They are repeated until the median of
    `WINDOW` calls differs from that of the `WINDOW` before by at most `SETTLED`, for a third of the budget at most, but
    once at least. Then calls are timed one by one for the rest of the budget: at least 3, at most 1000. On a device that
    queues, half as many are then timed in a row for the throughput; elsewhere it is that of the calls one by one.

    Args:
        call: runs the network once.
        batch: its samples.
        watch: what measures; one of the device that the call runs on.
        budget_s: about how long all this may take; dear calls overrun it.
    """
    begin = watch.now()
    warm_up, settled = _warm_up(call, watch, begin + budget_s / 3)
    times: list[float] = []
    while len(times) < _LEAST or (len(times) < _MOST and watch.now() - begin < budget_s):
        times.append(watch.one(call))
    together = -(-len(times) // 2) if watch.queues else len(times)
    in_a_row_s = watch.row(call, together) if watch.queues else sum(times)
    p50, p99 = np.percentile(times, (50, 99)) * 1e3
    return Timing(
        batch=batch,
        calls=len(times),
        warm_up=warm_up,
        settled=settled,
        p50_ms=float(p50),
        p99_ms=float(p99) if len(times) >= P99_CALLS else None,
        samples_per_s=batch * together / in_a_row_s,
    )


def _warm_up(call: Call, watch: Watch, until_s: float) -> tuple[int, bool]:
    """Calls made, and whether their times have settled."""
    times: list[float] = []
    reading: float | None = None
    while not times or watch.now() < until_s:
        times.append(watch.one(call))
        if len(times) % WINDOW == 0:
            last, reading = reading, statistics.median(times[-WINDOW:])
            if last is not None and abs(reading - last) <= SETTLED * last:
                return len(times), True
    return len(times), False
