"""`crossval.json`: what a cross-validation has found, beside the runs of its folds.

runs/<name>/crossval.json       this
runs/<name>_fold1 ... _foldK    a run directory each
"""

from __future__ import annotations

import statistics
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from longhaul.errors import IntegrityError
from longhaul.storage import Storage

FILE = "crossval.json"


class Fold(BaseModel):
    """One fold.

    Attributes:
        number: from 1; `run`: the name of its run, beside the report's folder.
        status: `finished`, or why not.
        best: the goal on its validation samples; `best_step` where.
        results: on the test samples, such as `test/f1`.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    number: int
    run: str
    status: str
    best: float | None = None
    best_step: int | None = None
    results: dict[str, float] = {}
    error: str | None = None


class FoldReport(BaseModel):
    """All folds, and the best of them by its validation samples: choosing by the test would spend it."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    name: str
    goal: str
    direction: Literal["max", "min"]
    folds: list[Fold]

    @property
    def best(self) -> Fold | None:
        """The fold with the best goal; None while none has finished."""
        done = [fold for fold in self.folds if fold.status == "finished" and fold.best is not None]
        sign = 1 if self.direction == "max" else -1
        return max(done, key=lambda fold: sign * (fold.best or 0.0), default=None)

    def goal_spread(self) -> tuple[float, float]:
        """Mean and standard deviation of the best goal over the folds: each on samples that it was not trained on."""
        return _spread([fold.best for fold in self.folds if fold.best is not None])

    def spread(self, metric: str) -> tuple[float, float]:
        """Mean and standard deviation of a result over the folds that have it: all on the same test samples."""
        return _spread([fold.results[metric] for fold in self.folds if metric in fold.results])


def _spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation (N - 1); of one value, 0 deviation."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def save_report(storage: Storage, report: FoldReport) -> None:
    """Write it whole."""
    storage.write_bytes(FILE, (report.model_dump_json(indent=1) + "\n").encode())


def load_report(storage: Storage) -> FoldReport | None:
    """The report in a folder; None where there is none.

    Raises:
        IntegrityError: it was cut short or changed.
    """
    try:
        data = storage.read_bytes(FILE)
    except FileNotFoundError:
        return None
    try:
        return FoldReport.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise IntegrityError(f"{storage.uri}/{FILE}: {first['msg']}. Run the same crossval again: it is written anew") from None
