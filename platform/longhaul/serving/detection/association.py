"""Which burst belongs to which track: costs, and the assignment that has the lowest sum of them.

Symbol wrapped: `scipy.optimize.linear_sum_assignment`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import linear_sum_assignment

from longhaul.serving.detection.bursts import Burst

_NEVER = 1e6  # dearer than any sum of real costs
_SHARED = 0.25  # of the narrower band: a Bluetooth channel may be four pixels high, and a box's edges are wrong by one
Row = TypeVar("Row")


class AssociationSettings(BaseModel):
    """What a burst may differ in from the track that it belongs to, and what a difference costs.

    Attributes:
        drift: the farthest that a centre may move and count as staying, in bandwidths; costs up to 1.
        bandwidth_ratio: the most that two bandwidths may differ; costs up to 1.
        hopping: labels whose emitters change their frequency from burst to burst.
        sweeping: labels whose frequency moves while a burst lasts.
        hop_cost: of another frequency; above 2, so that of two tracks of one age the one that stays is cheaper.
        silence_cost: of a track that is about to time out.
        doubt_cost: of a track with a single burst, less with the root of their number: false alarms make young tracks, and a
            hopping label's would take the old one's bursts.
        label_cost: of a track with another label, where the burst has a claim merged into it that fits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    drift: float = Field(0.5, gt=0)
    bandwidth_ratio: float = Field(2.0, gt=1)
    hopping: frozenset[str] = frozenset({"bluetooth"})
    sweeping: frozenset[str] = frozenset({"creamy_chicken"})
    hop_cost: float = Field(3.0, gt=2)
    silence_cost: float = Field(0.5, ge=0)
    doubt_cost: float = Field(4.0, ge=0)
    label_cost: float = Field(1.0, ge=0)


def is_hop(burst: Burst, center_hz: float, bandwidth_hz: float, settings: AssociationSettings) -> bool:
    """Whether a burst is on another frequency than a track was."""
    return abs(burst.center_hz - center_hz) > settings.drift * max(burst.bandwidth_hz, bandwidth_hz)


def shape_cost(burst: Burst, center_hz: float, bandwidth_hz: float, settings: AssociationSettings) -> float | None:
    """What the difference in frequency and bandwidth costs; None where it is too much."""
    # of a narrow band a pixel is a large part
    ratio = abs(math.log((burst.bandwidth_hz + burst.slack_hz) / (bandwidth_hz + burst.slack_hz)))
    ratio /= math.log(settings.bandwidth_ratio)
    if ratio > 1:
        return None
    if is_hop(burst, center_hz, bandwidth_hz, settings):
        return settings.hop_cost + ratio if burst.label in settings.hopping else None
    apart = abs(burst.center_hz - center_hz) / max(burst.bandwidth_hz, bandwidth_hz)
    return apart / settings.drift + ratio


def continuation_cost(earlier: Burst, later: Burst, settings: AssociationSettings) -> float | None:
    """What it costs to take a burst at a chunk's start for the rest of one that ran over the end of the chunk before."""
    if earlier.label != later.label:
        return None
    if later.label in settings.sweeping:
        return 1 - min(1.0, earlier.shared_band(later)) if earlier.touches(later) else None
    shared = earlier.shared_band(later)
    return 1 - shared if shared >= _SHARED else None


def assign(
    rows: Sequence[Row], bursts: Sequence[Burst], cost: Callable[[Row, Burst], float | None]
) -> tuple[list[tuple[Row, Burst]], list[Burst]]:
    """Pairs of rows and bursts, as many as may be and at the lowest cost, and the bursts that are left over.

    Args:
        rows: tracks, or what stands for them.
        bursts: each is given to one row at most, and each row gets one at most.
        cost: of a pair; None where it cannot be.
    """
    if not rows or not bursts:
        return [], list(bursts)
    table = np.array([[_NEVER if (price := cost(row, burst)) is None else price for burst in bursts] for row in rows])
    chosen = [(int(i), int(j)) for i, j in zip(*linear_sum_assignment(table), strict=True) if table[i, j] < _NEVER]
    taken = {j for _, j in chosen}
    return [(rows[i], bursts[j]) for i, j in chosen], [burst for j, burst in enumerate(bursts) if j not in taken]


def rounds(bursts: Sequence[Burst]) -> Iterator[list[Burst]]:
    """Bursts in order of time, those that are on the air at the same moment together: one emitter sent one of them at most."""
    waiting = sorted(bursts, key=lambda burst: (burst.start_s, burst.low_hz, burst.label))
    while waiting:
        ends = waiting[0].end_s
        together: list[Burst] = []
        for burst in waiting:
            if burst.start_s >= ends - burst.slack_s and together:
                break
            together.append(burst)
            ends = min(ends, burst.end_s)
        yield together
        waiting = waiting[len(together) :]
