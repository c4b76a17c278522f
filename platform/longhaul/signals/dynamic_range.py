"""From power to grey: which level in dB is black and which is white.

By default every chunk has a range of its own. Receivers differ in gain and the gain of one changes with its band, so levels of
different recordings cannot be compared; the noise floor and the strongest signal of a chunk can always be found. Black is a low
quantile of the tile, which lies in the noise as long as signals leave a tenth of the band and time free, and which does not
follow a few dead bins as the minimum would. White is the maximum, so that nothing saturates. Two bounds: a chunk without a
signal would have its noise stretched to white, so the range is never under `least_span_db`; and a strong carrier or a stretch
of zeros would press all the rest together, and show what single precision cannot, so it is never over `most_span_db`, counted
down from the maximum.

A fixed range serves a receiver whose gain is known and constant: then grey is power, the same in all tiles.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

_SAMPLED = 256  # rows and columns of a tile that the quantile is taken over: 65,536 pixels are plenty, and quick to rank
_LEAST_POWER = 1e-20  # -200 dB: digital silence has no logarithm


def decibels(power: Tensor) -> Tensor:
    """Power in dB, where 0 is a tone at full scale; nothing is under -200."""
    return power.clamp(min=_LEAST_POWER).log10_().mul_(10.0)


class ChunkRange(BaseModel):
    """Each chunk's own range: from its noise floor to its maximum."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["chunk"] = "chunk"
    floor_quantile: float = Field(0.1, ge=0, le=0.5)
    """Share of the pixels that is black."""
    least_span_db: float = Field(30.0, gt=0, le=80)
    most_span_db: float = Field(80.0, gt=0, le=120)

    @model_validator(mode="after")
    def _spans_ascend(self) -> Self:
        if self.least_span_db > self.most_span_db:
            raise ValueError(f"least_span_db {self.least_span_db:g} is above most_span_db {self.most_span_db:g}")
        return self

    def limits(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Levels of black and white, in dB, of a chunk (rows, columns) in dB; on the same device, without waiting for it."""
        some = level[:: max(1, level.shape[0] // _SAMPLED), :: max(1, level.shape[1] // _SAMPLED)].reshape(-1)
        rank = max(1, math.ceil(self.floor_quantile * some.numel()))
        high = level.max()
        low = torch.maximum(some.kthvalue(rank).values, high - self.most_span_db)
        return low, torch.maximum(high, low + self.least_span_db)


class FixedRange(BaseModel):
    """One range for all chunks, in dB of full scale."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["fixed"] = "fixed"
    low_db: float
    high_db: float

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if self.low_db >= self.high_db:
            raise ValueError(f"low_db {self.low_db:g} is not under high_db {self.high_db:g}")
        return self

    def limits(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Levels of black and white, in dB."""
        return level.new_tensor(self.low_db), level.new_tensor(self.high_db)


DynamicRange = Annotated[ChunkRange | FixedRange, Field(discriminator="kind")]
