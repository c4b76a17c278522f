"""What a stream's first message asks for, checked: how long a chunk is, how it is read, by when it is answered."""

from __future__ import annotations

from typing import Annotated, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longhaul.serving.detection.chunk import SignalChunk
from longhaul.serving.http.detectors import Detectors
from longhaul.serving.http.intake.iq import sample_format
from longhaul.serving.http.intake.signals import MOST_HZ, check_frequencies, check_level
from longhaul.serving.http.settings import Limits
from longhaul.serving.refusals import BodyTooLarge, BrokenSignal, InvalidParameter

STREAM = "the stream"
MOST_MODELS, LONGEST_NAME = 64, 128
_ModelName = Annotated[str, Field(max_length=LONGEST_NAME)]
_Message = TypeVar("_Message", bound=BaseModel)


class StreamStart(BaseModel):
    """The first message: what the samples are, and who asks.

    Attributes:
        token: for clients that cannot set headers, such as browsers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample_rate_hz: float = Field(gt=0, allow_inf_nan=False, examples=[40e6])
    center_hz: float | None = Field(None, ge=-MOST_HZ, le=MOST_HZ, allow_inf_nan=False, examples=[2.437e9])
    datatype: str = Field(max_length=16, examples=["ci16_le"])
    deadline_ms: float | None = Field(None, gt=0, allow_inf_nan=False, examples=[400])
    models: tuple[_ModelName, ...] | None = Field(None, max_length=MOST_MODELS, examples=[["wifi_bluetooth"]])
    token: str | None = Field(None, max_length=256, repr=False)


class StreamPlan:
    """A stream's chunks.

    Args:
        start: the first message.
        detectors: who is to look at them.
        limits: bounds on a chunk.

    Attributes:
        chunk_samples: samples of a chunk.
        chunk_s: its length in seconds.
        chunk_bytes: its length as it is sent.
        deadline_s: for each of them.
        models: that are wanted; None for all.

    Raises:
        Refusal: the stream cannot be.
    """

    def __init__(self, start: StreamStart, detectors: Detectors, limits: Limits) -> None:
        self._form = sample_format(start.datatype)
        check_frequencies(STREAM, start.sample_rate_hz, start.center_hz, limits)
        self._rate_hz, self._center_hz = start.sample_rate_hz, start.center_hz
        self._tiles = detectors.tiles
        self.chunk_samples = self._tiles.chunk_samples(start.sample_rate_hz)
        self.chunk_s = self.chunk_samples / start.sample_rate_hz
        self.chunk_bytes = self.chunk_samples * self._form.sample_bytes
        self.deadline_s = detectors.deadline_s(start.deadline_ms)
        self.models = detectors.choose(start.models)
        if self.chunk_samples < self._tiles.front_end.nfft:
            raise BrokenSignal(
                f"a chunk of {self._tiles.chunk_s:g} s has {self.chunk_samples} samples at {start.sample_rate_hz:g} Hz, under "
                f"the {self._tiles.front_end.nfft} of a frame",
                "Send a signal of a higher sample rate",
            )
        if self.chunk_samples > limits.samples or self.chunk_bytes > limits.body_bytes:
            raise BodyTooLarge(
                f"a chunk of {self._tiles.chunk_s:g} s has {self.chunk_samples:,} samples at {start.sample_rate_hz:g} Hz",
                f"The limits are {limits.samples:,} samples and {limits.body_bytes:,} bytes",
            )

    def read(self, raw: bytes | bytearray, index: int) -> SignalChunk:
        """Chunk `index` from its bytes.

        Raises:
            BrokenSignal: a sample is NaN, infinite or absurdly large.
        """
        samples = self._form.decode(np.frombuffer(raw, dtype=self._form.component))
        first = index * self.chunk_samples
        if self._form.is_float:
            check_level(STREAM, samples, first)
        return SignalChunk(torch.from_numpy(samples), self._rate_hz, self._center_hz, index, first / self._rate_hz)

    def remainder(self, raw: bytes | bytearray) -> float:
        """How long the end of a stream is in seconds, where it is too short for a chunk of its own; else 0.

        Raises:
            BrokenSignal: it ends within a sample.
        """
        samples, rest = divmod(len(raw), self._form.sample_bytes)
        if rest:
            raise BrokenSignal(
                f"{STREAM} ends within a sample: its last {rest} bytes are no {self._form.name} sample", "Send whole samples"
            )
        return 0.0 if self._tiles.keeps_end(samples, self._rate_hz) else samples / self._rate_hz


def parsed(model: type[_Message], text: str) -> _Message:
    """A text message as a model.

    Raises:
        InvalidParameter: it is none; names the field.
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        expected = ", ".join(model.model_fields)
        raise InvalidParameter(f"message: {where + ': ' if where else ''}{first['msg']}", f"Send JSON of {expected}") from None
