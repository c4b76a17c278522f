"""How long a rank itself is busy a step, without its waiting for others: what shows a straggler.

Collectives make all ranks end a step together, so step times are equal and say nothing. What differs is the time to read a
batch and to go forward through the network, before the first collective.
"""

from __future__ import annotations

import time
from statistics import median

import torch
from torch import Tensor, nn

from longhaul.data.samples import Batch
from longhaul.training.engine.engine import LossFunction

_SLOWER = 1.5  # times the median: past the noise of healthy machines
_LOOKS = 3


class Busy:
    """Measures this rank's own time; `loss` is what it wraps."""

    def __init__(self, loss: LossFunction) -> None:
        self._loss = loss
        self._host_s = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._steps = 0

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The wrapped loss, timed: by device events on a GPU, by the clock elsewhere."""
        if torch.cuda.is_available():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            value = self._loss(model, batch)
            end.record()
            self._events.append((begin, end))
            return value
        since = time.perf_counter()
        value = self._loss(model, batch)
        self._host_s += time.perf_counter() - since
        return value

    def add(self, seconds: float) -> None:
        """Time spent on reading this step's batch."""
        self._host_s += seconds
        self._steps += 1

    def take(self) -> float:
        """Seconds a step since the last call; 0 where there was none."""
        if self._events:
            self._events[-1][1].synchronize()
        device_s = sum(begin.elapsed_time(end) for begin, end in self._events) / 1e3
        mean = (self._host_s + device_s) / self._steps if self._steps else 0.0
        self._host_s, self._steps, self._events = 0.0, 0, []
        return mean


class Stragglers:
    """Names a rank that was much slower than the others at several looks in a row."""

    def __init__(self) -> None:
        self._looks: dict[int, int] = {}

    def look(self, seconds: list[float]) -> list[int]:
        """Given each rank's busy seconds a step: the ranks that have just become stragglers."""
        if len(seconds) < 2:
            return []
        found = []
        for rank, own in enumerate(seconds):
            usual = median(seconds[:rank] + seconds[rank + 1 :])
            self._looks[rank] = self._looks.get(rank, 0) + 1 if usual > 0 and own > _SLOWER * usual else 0
            if self._looks[rank] == _LOOKS:
                found.append(rank)
        return found
