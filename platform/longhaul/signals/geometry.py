"""Where in a chunk a tile's pixels lie: boxes in time and frequency to boxes in pixels, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

LEAST_SIDE_PX = 1.0
LEAST_SHARE = 0.1
PLAIN_SIDE_PX = 4.0


class Corners(NamedTuple):
    """A box in pixels: x is time, left to right, y is frequency, the highest at 0; half open."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


class Region(NamedTuple):
    """A box in a chunk: seconds from the chunk's first sample, and Hz from the capture's centre."""

    start_s: float
    end_s: float
    low_hz: float
    high_hz: float


@dataclass(frozen=True)
class TileGeometry:
    """How the pixels of one tile lie over time and frequency; `FrontEnd.geometry` makes it.

    A frame of the transform stands for the `hop` samples around its centre, a bin for the band half-way to its neighbours. So
    the tile begins `(nfft - hop) / 2` samples into the chunk, and its upper edge is half a bin under half the sample rate.

    Attributes:
        side: width and height in pixels.
        sample_rate_hz: of the recording.
        first_sample: where in the chunk x = 0 is.
        samples_per_pixel: along x.
        top_hz: frequency at y = 0, from the capture's centre.
        hz_per_pixel: along y, downwards.
    """

    side: int
    sample_rate_hz: float
    first_sample: float
    samples_per_pixel: float
    top_hz: float
    hz_per_pixel: float

    def corners(self, start: float, count: float, low_hz: float, high_hz: float) -> Corners:
        """A box in pixels as it is, also where it is outside the tile.

        Args:
            start: its first sample, counted from the chunk's; negative where it begins before the chunk.
            count: its length in samples.
            low_hz: its lower edge, from the capture's centre.
            high_hz: its upper edge.
        """
        left = start - self.first_sample
        return Corners(
            left / self.samples_per_pixel,
            (self.top_hz - high_hz) / self.hz_per_pixel,
            (left + count) / self.samples_per_pixel,
            (self.top_hz - low_hz) / self.hz_per_pixel,
        )

    def box(
        self,
        start: float,
        count: float,
        low_hz: float,
        high_hz: float,
        *,
        least_side_px: float = LEAST_SIDE_PX,
        least_share: float = LEAST_SHARE,
    ) -> Corners | None:
        """A box in pixels, clipped to the tile; arguments as for `corners`. None for one outside the tile, and for a sliver.

        A sliver is thinner than `least_side_px`; or thinner than `PLAIN_SIDE_PX` and so little of the box that it says nothing
        of the signal: under `least_share` of what the tile could show of it. What is plain to see has a box, however small a
        part it is: without one a detector would be taught that nothing is there.
        """
        whole = self.corners(start, count, low_hz, high_hz)
        seen = Corners(*(min(max(edge, 0.0), float(self.side)) for edge in whole))
        width, height = seen.x_max - seen.x_min, seen.y_max - seen.y_min
        if width <= 0 or height <= 0 or min(width, height) < least_side_px:
            return None
        share = width / min(whole.x_max - whole.x_min, self.side) * height / min(whole.y_max - whole.y_min, self.side)
        return seen if share >= least_share or min(width, height) >= PLAIN_SIDE_PX else None

    def meets(self, start: float, count: float, low_hz: float, high_hz: float) -> bool:
        """Whether any part of a box is on the tile; arguments as for `corners`."""
        whole = self.corners(start, count, low_hz, high_hz)
        return whole.x_max > 0 and whole.x_min < self.side and whole.y_max > 0 and whole.y_min < self.side

    def region(self, box: Corners) -> Region:
        """What of the chunk a box in pixels covers: the way back from `box`."""
        samples = self.first_sample + box.x_min * self.samples_per_pixel, self.first_sample + box.x_max * self.samples_per_pixel
        return Region(
            samples[0] / self.sample_rate_hz,
            samples[1] / self.sample_rate_hz,
            self.top_hz - box.y_max * self.hz_per_pixel,
            self.top_hz - box.y_min * self.hz_per_pixel,
        )
