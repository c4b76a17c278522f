"""How the ensemble answers: its deadline, what counts as a detection, what counts as the same emission."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from longhaul.serving.detection.shedding import SheddingSettings


class EnsembleSettings(BaseModel):
    """What does not depend on which models there are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    deadline_s: float = Field(0.4, gt=0)
    """Seconds from a chunk being there to its answer, unless a request says otherwise."""
    score: float = Field(0.5, ge=0, lt=1)
    """A detection's score is above it."""
    iou: float = Field(0.5, gt=0, lt=1)
    """Of two boxes whose intersection over union is above it, the better stays: of one model and class, and between models."""
    values: Mapping[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    """What a model's part in an answer is worth, by name; 1 where nothing is said. Under overload, cost for worth decides."""
    coexist: tuple[tuple[str, str], ...] = ()
    """Pairs of labels that may share time and frequency: two models that say them both stay. Each pair counts in both orders."""
    shedding: SheddingSettings = SheddingSettings()
