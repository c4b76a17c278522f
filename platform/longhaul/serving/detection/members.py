"""A member of the ensemble: a detector's name, its classes, and what runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from longhaul.engines.inference import Array
from longhaul.serving.detection.answers import ChunkAnswer, Detection

_SAME_RATE = 1e-6  # relative; rates are often written with few digits


class Runner(Protocol):
    """What a member needs of `longhaul.serving.queueing.batching.Batcher`, which fulfils it."""

    async def infer(self, samples: Tensor, *, deadline: float | None) -> dict[str, Array]: ...

    def expected_s(self, samples: int) -> float: ...

    @property
    def seconds_per_sample(self) -> float: ...


@dataclass(frozen=True)
class Member:
    """One detector of an ensemble.

    Attributes:
        name: the model's, in the registry.
        version: which one.
        classes: labels by the network's number minus one (0 is padding).
        runner: gives `boxes` (N, D, 4) in pixels, `scores` (N, D), `labels` (N, D) for tiles (N, 1, T, T).
        sample_rates_hz: what it was trained on; empty where nobody knows.
    """

    name: str
    version: str
    classes: tuple[str, ...]
    runner: Runner
    sample_rates_hz: tuple[float, ...] = ()

    def doubt(self, sample_rate_hz: float | None) -> str | None:
        """Why its answer at this sample rate may be wrong; None if nothing speaks against it."""
        if sample_rate_hz is None or not self.sample_rates_hz:
            return None
        if any(abs(sample_rate_hz - known) <= _SAME_RATE * known for known in self.sample_rates_hz):
            return None
        known = ", ".join(f"{rate / 1e6:g}" for rate in self.sample_rates_hz)
        return f"trained at {known} MHz, not at {sample_rate_hz / 1e6:g} MHz: its pixels meant other bands and times"


@dataclass(frozen=True)
class MemberState:
    """How a member does.

    Attributes:
        name, version: of the model.
        shed: whether it is left out for the time being.
        misses: share of the recent answers in which it was late, 0..1.
        seconds_per_sample: what a tile costs on its engine.
    """

    name: str
    version: str
    shed: bool
    misses: float
    seconds_per_sample: float


Observer = Callable[[Tensor, Mapping[str, tuple[Detection, ...]], ChunkAnswer], None]
"""Called with the tiles (N, 1, T, T) as the engines saw them, each on-time model's own detections (before models are merged), and
the answer. It is called after the answer has gone out, on the event loop: long work belongs into a task of its own."""
