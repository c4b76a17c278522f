"""What a run's events tell of the test split: a classifier's confusion matrix, a detector's precision over recall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from longhaul.recipe.section import NonNegative
from longhaul.resilience.run_directory import RunDirectory

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Confusion:
    """Counts on the test split: `matrix` (C, C), rows the truth, columns the answers."""

    classes: tuple[str, ...]
    matrix: Floats


@dataclass(frozen=True)
class PrecisionRecall:
    """A detector on the test split at IoU 0.5: `curves` (C, R), of each class the precision at R recalls from 0 to 1."""

    classes: tuple[str, ...]
    curves: Floats


@dataclass(frozen=True)
class OnTest:
    """The newest of each; None where the task has none, or it was not tested."""

    confusion: Confusion | None = None
    precision_recall: PrecisionRecall | None = None


class _Matrix(BaseModel):
    """What an event of kind `confusion` tells."""

    split: str = "test"
    classes: tuple[str, ...]
    matrix: list[list[NonNegative]]


class _Curves(BaseModel):
    """What an event of kind `pr_curves` tells."""

    split: str = "test"
    classes: tuple[str, ...]
    curves: list[list[NonNegative]]


def read_tested(run: RunDirectory) -> OnTest:
    """The newest matrix and the newest curves.

    Raises:
        IntegrityError: a stored part is damaged.
        ValueError: an event does not hold what its kind says.
    """
    confusion: Confusion | None = None
    curves: PrecisionRecall | None = None
    for event in reversed(run.events().to_pylist()):
        if event["kind"] == "confusion" and confusion is None:
            confusion = _confusion(_Matrix.model_validate_json(event["detail"]))
        elif event["kind"] == "pr_curves" and curves is None:
            curves = _precision_recall(_Curves.model_validate_json(event["detail"]))
    return OnTest(confusion, curves)


def _confusion(told: _Matrix) -> Confusion | None:
    if told.split != "test":
        return None
    matrix = np.asarray(told.matrix, dtype=np.float64)  # rows of several lengths are a ValueError
    if matrix.shape != (len(told.classes), len(told.classes)):
        raise ValueError(f"a confusion matrix of {matrix.shape} for {len(told.classes)} classes")
    return Confusion(told.classes, matrix)


def _precision_recall(told: _Curves) -> PrecisionRecall | None:
    if told.split != "test":
        return None
    curves = np.asarray(told.curves, dtype=np.float64)
    if curves.ndim != 2 or len(curves) != len(told.classes) or curves.shape[1] < 2:
        raise ValueError(f"precision-recall curves of {curves.shape} for {len(told.classes)} classes")
    return PrecisionRecall(told.classes, curves)
