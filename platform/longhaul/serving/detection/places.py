"""Where emissions are: from pixels of a chunk's tiles to seconds and hertz."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from longhaul.serving.detection.answers import Detection
from longhaul.serving.detection.chunk import SignalChunk
from longhaul.serving.detection.merging import Emission
from longhaul.signals.front_end import FrontEnd
from longhaul.signals.geometry import TileGeometry


@dataclass(frozen=True)
class Places:
    """How a chunk's tiles lie in time and frequency.

    Attributes:
        geometries: by tile; empty for a tile without a signal.
        start_s: the chunk's first sample, from the first of the request or stream.
        center_hz: added to frequencies; 0 where the centre is not known.
    """

    geometries: tuple[TileGeometry, ...] = ()
    start_s: float = 0.0
    center_hz: float = 0.0

    @classmethod
    def of(cls, chunk: SignalChunk, front_end: FrontEnd) -> Self:
        """Those of a chunk."""
        samples, rate = len(chunk.iq), chunk.sample_rate_hz
        geometries = tuple(front_end.geometry(samples, rate, piece) for piece in range(front_end.pieces))
        return cls(geometries, chunk.start_s, chunk.center_hz or 0.0)

    def detections(self, emissions: Iterable[Emission]) -> tuple[Detection, ...]:
        """Emissions with their times and bands, by start, then frequency; on a tile without a signal by x, then from below."""
        return tuple(sorted(map(self._detection, emissions), key=_place))

    def _detection(self, one: Emission) -> Detection:
        start_s = end_s = low_hz = high_hz = None
        if self.geometries:
            region = self.geometries[one.tile].region(one.box)
            start_s, end_s = region.start_s + self.start_s, region.end_s + self.start_s
            low_hz, high_hz = region.low_hz + self.center_hz, region.high_hz + self.center_hz
        return Detection(
            label=one.label,
            model=one.model,
            score=one.score,
            tile=one.tile,
            box_px=one.box,
            start_s=start_s,
            end_s=end_s,
            low_hz=low_hz,
            high_hz=high_hz,
            also=one.also,
        )


def _place(one: Detection) -> tuple[float, float, int, str, str]:
    left, _, _, bottom = one.box_px
    start = left if one.start_s is None else one.start_s
    low = -bottom if one.low_hz is None else one.low_hz
    return start, low, one.tile, one.model, one.label
