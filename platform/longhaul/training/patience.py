"""Counting validations without improvement: what early stopping and the plateau schedule share."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel


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
