"""What `POST /v1/detect` answers, and the messages of `WS /v1/stream`; clients read the same models."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from longhaul.serving.detection.answers import ChunkAnswer
from longhaul.serving.detection.tracks import Track
from longhaul.serving.http.problems import Problem


class DetectAnswer(BaseModel):
    """What was found in one request's signal.

    Attributes:
        sample_rate_hz, center_hz: of the signal, as they were understood; None for a tile.
        frequencies: whether detections are at `absolute` frequencies or `relative` to an unknown centre; None for a tile.
        samples, duration_s: of the signal; 0 for a tile.
        left_out_s: the end of the signal, too short for a chunk of its own.
        degraded: a model is missing from a chunk's answer, so something may be missing.
        notes: what is odd about the signal but did not stop its use.
        chunks: one answer a chunk, in order of time.
        tracks: emissions over the chunks, if they were asked for.
    """

    model_config = ConfigDict(frozen=True)

    sample_rate_hz: float | None = Field(None, examples=[40e6])
    center_hz: float | None = Field(None, examples=[2.437e9])
    frequencies: Literal["absolute", "relative"] | None = Field(None, examples=["absolute"])
    samples: int = Field(0, ge=0, examples=[8_000_000])
    duration_s: float = Field(0.0, ge=0, examples=[0.2])
    left_out_s: float = Field(0.0, ge=0, examples=[0.0])
    degraded: bool = Field(examples=[False])
    notes: tuple[str, ...] = Field((), examples=[[]])
    chunks: tuple[ChunkAnswer, ...]
    tracks: tuple[Track, ...] | None = None


class ReadyMessage(BaseModel):
    """`WS /v1/stream`, server: the first message was understood; samples may come."""

    model_config = ConfigDict(frozen=True)

    type: Literal["ready"] = "ready"
    chunk_samples: int = Field(examples=[8_000_000])
    chunk_s: float = Field(examples=[0.2])


class ChunkMessage(BaseModel):
    """`WS /v1/stream`, server: what was found in a chunk, and the tracks that it changed."""

    model_config = ConfigDict(frozen=True)

    type: Literal["chunk"] = "chunk"
    answer: ChunkAnswer
    tracks: tuple[Track, ...]


class EndMessage(BaseModel):
    """`WS /v1/stream`, server: everything was answered; all tracks of the stream."""

    model_config = ConfigDict(frozen=True)

    type: Literal["end"] = "end"
    left_out_s: float = Field(0.0, ge=0, examples=[0.0])
    tracks: tuple[Track, ...]


class ErrorMessage(BaseModel):
    """`WS /v1/stream`, server: why it ends the stream."""

    model_config = ConfigDict(frozen=True)

    type: Literal["error"] = "error"
    problem: Problem
