"""A stretch of signal on its way to the detectors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SignalChunk:
    """Samples that become one chunk's tiles.

    Attributes:
        iq: complex64, (samples,), full scale 1.
        sample_rate_hz: complex samples a second.
        center_hz: the RF frequency in the band's middle, or None where nobody knows.
        index: which chunk of its request or stream, from 0.
        start_s: its first sample's time, from the first of the request or stream.
    """

    iq: Tensor
    sample_rate_hz: float
    center_hz: float | None = None
    index: int = 0
    start_s: float = 0.0

    @property
    def duration_s(self) -> float:
        """Its length in seconds."""
        return len(self.iq) / self.sample_rate_hz
