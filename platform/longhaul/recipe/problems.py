"""What a recipe says of the problem: one section a workload."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from longhaul.recipe.section import Number, Section, Share


class ClassificationSection(Section):
    """One class out of several for each image."""

    kind: Literal["classification"] = "classification"
    label_smoothing: Share = 0.0
    """Share of the target spread evenly over all classes."""


class DetectionSection(Section):
    """Boxes with a class and a score on each spectrogram tile."""

    kind: Literal["detection"]
    score: Annotated[float, Field(gt=0, lt=1), Number] = 0.5
    """The least score of a detection that counts in precision, recall and F1."""
    iou: Annotated[float, Field(gt=0, lt=1), Number] = 0.5
    """The least overlap (intersection over union) of a detection with the truth to count as found."""
    goal: Literal["f1", "map50", "map"] = "map50"
    """What decides which checkpoint is best: F1 at `score`, or average precision, which needs no threshold."""


def _classification_unless_said(value: Any) -> Any:
    return {"kind": "classification", **value} if isinstance(value, dict) else value


ProblemSection = Annotated[
    ClassificationSection | DetectionSection, Field(discriminator="kind"), BeforeValidator(_classification_unless_said)
]
