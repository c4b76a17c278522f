"""What a sweep knows of its trials: plain data, from which search and stopping learn again after a restart."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

KEY = "key"
"""Where a trial's config, in Ray Tune, names it: by the key of its cell, of several folds of the first."""
EPOCHS = "epochs"
"""Where it says for how many epochs the trial trains, over all its cells; left out, as long as the longest."""
EPOCH = "epoch"
"""Where a trial's report to Ray Tune says how far it is, in epochs; fractions where it validates within one."""
SCORE = "score"
"""Where it gives the goal's value."""

Direction = Literal["max", "min"]
Ended = Literal["finished", "stopped", "failed", "running"]


@dataclass(frozen=True)
class Past:
    """One trial, of an earlier call or of this one: a configuration, with all its folds.

    Attributes:
        coordinates: dotted recipe fields and the values that it was given.
        scores: (epoch, score) of every validation, by epoch, as they were reported to Ray Tune: each the best up to there, NaN
            before there is one.
        ended: `finished` its training, was `stopped` before its time, `failed`, or is `running`: it goes on, or has yet to begin.
        key: its cell's key.
    """

    coordinates: dict[str, Any]
    scores: Sequence[tuple[float, float]]
    ended: Ended
    key: str

    @property
    def reached(self) -> float:
        """Epoch of its last validation; 0.0 before the first."""
        return max((epoch for epoch, _ in self.scores), default=0.0)

    @property
    def score(self) -> float | None:
        """What it has come to: its last finite score; None without one."""
        return next((score for _, score in reversed(self.scores) if math.isfinite(score)), None)


def identity(value: Any) -> str:
    """Text that is the same for the same value: what JSON keeps of it, so that a list and a tuple agree, 1 and 1.0 not."""
    return json.dumps(value, sort_keys=True, default=str)
