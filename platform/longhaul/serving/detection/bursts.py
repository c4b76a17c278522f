"""Detections of a chunk as bursts: what the edge of a tile cut into pieces is one again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from longhaul.serving.detection.answers import Detection

_TOUCH = 0.1  # of the wider band: how far apart two bands may lie that a sweep or a tile's edge parted


@dataclass(frozen=True)
class Burst:
    """One emission in time and frequency.

    Attributes:
        label: the best claim.
        others: labels of the claims that were merged into it.
        model: who found it.
        score: of the best piece.
        start_s, end_s: in the stream.
        low_hz, high_hz: its band.
        slack_s, slack_hz: how far from the truth its ends and edges may be: a few pixels of its tile.
        detections: what it is made of, as indices of the answer's detections.
    """

    label: str
    others: frozenset[str]
    model: str
    score: float
    start_s: float
    end_s: float
    low_hz: float
    high_hz: float
    slack_s: float = 0.0
    slack_hz: float = 0.0
    detections: tuple[int, ...] = ()

    @property
    def duration_s(self) -> float:
        """Its length."""
        return self.end_s - self.start_s

    @property
    def center_hz(self) -> float:
        """The middle of its band."""
        return (self.low_hz + self.high_hz) / 2

    @property
    def bandwidth_hz(self) -> float:
        """The width of its band; at least 1 Hz, so that it can divide."""
        return max(self.high_hz - self.low_hz, 1.0)

    def shared_band(self, other: Burst) -> float:
        """The shared part of two bands over the narrower one; negative where they lie apart."""
        return (min(self.high_hz, other.high_hz) - max(self.low_hz, other.low_hz)) / min(self.bandwidth_hz, other.bandwidth_hz)

    def touches(self, other: Burst) -> bool:
        """Whether two bands overlap, or lie so close that a sweep may have gone from one to the other."""
        apart = max(self.low_hz, other.low_hz) - min(self.high_hz, other.high_hz)
        return apart <= _TOUCH * max(self.bandwidth_hz, other.bandwidth_hz)

    def with_part(self, part: Burst, *, sweeping: bool) -> Burst:
        """The burst with its continuation: a sweep covers both bands, anything else their mean by duration."""
        whole = self.duration_s + part.duration_s
        share = 0.5 if whole <= 0 else part.duration_s / whole
        low = self.low_hz + share * (part.low_hz - self.low_hz)
        high = self.high_hz + share * (part.high_hz - self.high_hz)
        if sweeping:
            low, high = min(self.low_hz, part.low_hz), max(self.high_hz, part.high_hz)
        return replace(
            self,
            others=(self.others | part.others) - {self.label},
            score=max(self.score, part.score),
            start_s=min(self.start_s, part.start_s),
            end_s=max(self.end_s, part.end_s),
            low_hz=low,
            high_hz=high,
            detections=(*self.detections, *part.detections),
        )


def bursts_of(detections: Iterable[Detection], *, edge_px: float, sweeping: frozenset[str]) -> list[Burst]:
    """A chunk's detections as bursts, by start; those of a tile without a signal have no time and are left out.

    Args:
        detections: of one answer.
        edge_px: how far from a tile's edge a piece that goes on behind it may end; also a box's accuracy in time.
        sweeping: labels whose frequency moves while they last.
    """
    pieces = [(one.tile, burst) for index, one in enumerate(detections) if (burst := _burst(one, index, edge_px)) is not None]
    pieces.sort(key=lambda piece: (piece[1].start_s, piece[1].low_hz, piece[1].label, piece[0]))
    joined: list[tuple[int, Burst]] = []
    for tile, burst in pieces:
        for place, (last_tile, earlier) in enumerate(joined):
            if last_tile == tile or earlier.label != burst.label or earlier.model != burst.model:
                continue
            sweeps = burst.label in sweeping
            if _goes_on(earlier, burst, sweeps):
                joined[place] = (tile, earlier.with_part(burst, sweeping=sweeps))
                break
            if _is_beside(earlier, burst):
                joined[place] = (tile, earlier.with_part(burst, sweeping=True))
                break
        else:
            joined.append((tile, burst))
    return [burst for _, burst in joined]


def _burst(detection: Detection, index: int, edge_px: float) -> Burst | None:
    start, end, low, high = detection.start_s, detection.end_s, detection.low_hz, detection.high_hz
    if start is None or end is None or low is None or high is None:
        return None
    others = frozenset(claim.label for claim in detection.also) - {detection.label}
    left, top, right, bottom = detection.box_px
    slack_s = edge_px * (end - start) / (right - left) if right > left else 0.0
    slack_hz = edge_px * (high - low) / (bottom - top) if bottom > top else 0.0
    return Burst(detection.label, others, detection.model, detection.score, start, end, low, high, slack_s, slack_hz, (index,))


def _goes_on(earlier: Burst, later: Burst, sweeps: bool) -> bool:
    """Cut by a tile's edge in time."""
    near = abs(later.start_s - earlier.end_s) <= later.slack_s + earlier.slack_s
    return near and (earlier.touches(later) if sweeps else earlier.shared_band(later) >= 0.5)


def _is_beside(one: Burst, other: Burst) -> bool:
    """Cut by a tile's edge in frequency: at the same time, with bands that meet and do not cover each other."""
    together = min(one.end_s, other.end_s) - max(one.start_s, other.start_s)
    spanned = max(one.end_s, other.end_s) - min(one.start_s, other.start_s)
    return together >= 0.7 * spanned and one.touches(other) and one.shared_band(other) <= 0.1
