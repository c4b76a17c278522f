"""What the ensemble answers: detections of one chunk, and what became of each model. The same over HTTP, as JSON."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Status(StrEnum):
    """What became of a model's part in an answer."""

    ON_TIME = "on_time"
    LATE = "late"
    """It had not answered when the deadline came; what it found is not in the answer."""
    SHED = "shed"
    """It was not asked: the controller has taken it out until the others keep the deadline again."""
    FAILED = "failed"


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class ModelStatus(_Answer):
    """One model's part in an answer.

    Attributes:
        seconds: from the tiles being there to its answer, waiting included; None unless it answered in time.
        detail: why it failed, or what makes its answer doubtful (a sample rate that it was not trained on).
    """

    model: str = Field(examples=["wifi_bluetooth"])
    version: str = Field(examples=["3"])
    status: Status = Field(examples=["on_time"])
    seconds: float | None = Field(None, examples=[0.021])
    detail: str | None = None


class Claim(_Answer):
    """Another model's word, or another label's, for an emission that is in the answer under a better one."""

    model: str = Field(examples=["lte_uplink"])
    label: str = Field(examples=["lte_uplink"])
    score: float = Field(ge=0, le=1, examples=[0.61])


class Detection(_Answer):
    """One emission.

    Attributes:
        tile: which of the chunk's tiles it was found on, from 0.
        box_px: x_min, y_min, x_max, y_max on that tile; x is time, y is frequency from the highest down.
        start_s, end_s: seconds from the first sample of the request or stream; None for a tile without a signal.
        low_hz, high_hz: its band; None for a tile without a signal. Absolute where the centre frequency is known.
        track: the track that it belongs to, where the chunks are followed; one that is seen only once is in no list of tracks.
        also: claims that were merged into this one, best first.
    """

    label: str = Field(examples=["wifi"])
    model: str = Field(examples=["wifi_bluetooth"])
    score: float = Field(ge=0, le=1, examples=[0.982])
    tile: int = Field(0, ge=0, examples=[0])
    box_px: tuple[float, float, float, float] = Field(examples=[(12.5, 40.0, 61.25, 118.0)])
    start_s: float | None = Field(None, examples=[0.00121])
    end_s: float | None = Field(None, examples=[0.00194])
    low_hz: float | None = Field(None, examples=[2_427e6])
    high_hz: float | None = Field(None, examples=[2_447e6])
    track: int | None = Field(None, examples=[4])
    also: tuple[Claim, ...] = ()

    @property
    def center_hz(self) -> float | None:
        """The middle of its band."""
        return None if self.low_hz is None or self.high_hz is None else (self.low_hz + self.high_hz) / 2

    @property
    def bandwidth_hz(self) -> float | None:
        """The width of its band."""
        return None if self.low_hz is None or self.high_hz is None else self.high_hz - self.low_hz


class ChunkAnswer(_Answer):
    """What was found in one chunk, by the deadline.

    Attributes:
        index: which chunk of the request or stream, from 0.
        start_s, duration_s: where it lies; 0 for a tile without a signal.
        degraded: a model is not in it, so something may be missing.
        seconds: from the chunk being there to the answer.
        models: every model that was wanted, by name.
        detections: by start, then frequency.
    """

    index: int = Field(0, ge=0, examples=[0])
    start_s: float = Field(0.0, examples=[0.0])
    duration_s: float = Field(0.0, examples=[0.2])
    degraded: bool = Field(examples=[False])
    seconds: float = Field(examples=[0.084])
    models: tuple[ModelStatus, ...]
    detections: tuple[Detection, ...]
