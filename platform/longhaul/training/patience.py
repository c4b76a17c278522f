"""Counting validations without improvement: what early stopping and the plateau schedule share."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel

from longhaul.errors import UserError
from longhaul.recipe.schedules import EarlyStopping
from longhaul.workloads import Workload


class Patience(BaseModel):
    """Counts how often in a row a metric has not improved.

    Attributes:
        patience: how many misses are one too many.
        direction: which way is better.
        min_delta: the least change that counts.
        best: the best value so far.
        misses: validations since it.
    """

    patience: int
    direction: Literal["max", "min"]
    min_delta: float = 0.0
    best: float | None = None
    misses: int = 0

    def update(self, value: float) -> bool:
        """Take one more value (NaN is a miss); whether patience has now run out (the count then starts again)."""
        gain = math.inf if self.best is None else (value - self.best if self.direction == "max" else self.best - value)
        if gain > self.min_delta and not math.isnan(value):
            self.best, self.misses = value, 0
            return False
        self.misses += 1
        if self.misses < self.patience:
            return False
        self.misses = 0
        return True


def check_watched(early: EarlyStopping | None, workload: Workload) -> None:
    """Refuse early stopping on a metric that the workload does not measure.

    Raises:
        UserError: names those that it does.
    """
    measured = [f"val/{name}" for name in workload.metric_names]
    if early is not None and early.metric is not None and early.metric not in measured:
        raise UserError(f"training.early_stopping.metric {early.metric!r}: is not measured", f"Give one of {', '.join(measured)}")
