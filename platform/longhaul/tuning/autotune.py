"""Auto-tune: length, folds, batch, learning rate and patience from the number of labelled samples alone.

The rule is the detection team's; it was found on detectors that start from published weights. A network that starts from random
ones wants a higher learning rate: `--set training.optimizer.lr=...` overrides the rule, as it does field by field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from longhaul.errors import UserError

Stairs = Sequence[tuple[float, float]]
"""(n below which the value holds, value), rising; the last one holds for every n."""

_ALWAYS = float("inf")
_EPOCHS: Stairs = ((50, 100), (200, 75), (500, 50), (2000, 30), (_ALWAYS, 20))
_FOLDS: Stairs = ((30, 0), (100, 3), (300, 5), (1000, 7), (_ALWAYS, 10))
_BATCH: Stairs = ((100, 4), (500, 8), (_ALWAYS, 16))
_RATE: Stairs = ((100, 1e-4), (_ALWAYS, 3e-4))
_PATIENCE = (5, 15)  # of n // 20


@dataclass(frozen=True)
class Tuned:
    """What the rule says for `samples` labelled samples.

    Attributes:
        folds: 0 for one training and validation split.
        patience: validations without improvement before a run stops.
    """

    samples: int
    epochs: int
    folds: int
    batch: int
    lr: float
    patience: int

    def fields(self) -> dict[str, object]:
        """The recipe's fields that it decides, by path."""
        return {
            "training.epochs": self.epochs,
            "data.folds": self.folds,
            "training.global_batch": self.batch,
            "training.optimizer.lr": self.lr,
            "training.early_stopping.patience": self.patience,
        }

    def overrides(self, given: Sequence[str], micro_batch: int) -> list[str]:
        """The rule as overrides for `recipe.load`, before those `given`, which win.

        Args:
            given: such as `training.epochs=20`; any length of the run takes the place of the rule's epochs.
            micro_batch: of the recipe: it cannot exceed the batch, and shrinks with it.
        """
        named = {text.partition("=")[0].strip() for text in given}
        lengths = {"training.epochs", "training.steps", "training.samples"}
        mine = {path: value for path, value in self.fields().items() if path not in named}
        if named & lengths:
            mine.pop("training.epochs", None)
        elif "training.epochs" in mine:
            mine |= {"training.steps": "null", "training.samples": "null"}
        if "training.global_batch" in mine and self.batch < micro_batch and "training.micro_batch" not in named:
            mine["training.micro_batch"] = self.batch
        return [*(f"{path}={value}" for path, value in mine.items()), *given]


def autotune(samples: int) -> Tuned:
    """The rule for a number of labelled samples.

    Raises:
        UserError: there are none.
    """
    if samples < 1:
        raise UserError(f"auto-tune: {samples} labelled samples", "Label at least one")
    low, high = _PATIENCE
    return Tuned(
        samples=samples,
        epochs=int(_at(_EPOCHS, samples)),
        folds=int(_at(_FOLDS, samples)),
        batch=int(_at(_BATCH, samples)),
        lr=_at(_RATE, samples),
        patience=min(max(samples // 20, low), high),
    )


def _at(stairs: Stairs, samples: int) -> float:
    assert all(below < above for (below, _), (above, _) in pairwise(stairs))
    return next(value for below, value in stairs if samples < below)
