"""What a trial of a sweep runs, as a function trainable of Ray Tune: it trains one cell, or one for each fold, and reports.

A cell of one worker trains in the trial's own process (`training.alone`); one of several is handed to Ray Train, inside the
trial (`training.launch.fit`). All that it leaves lies in the cell's run directory, from which it goes on at the next call: to
Tune it reports numbers alone, never a checkpoint.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict
from ray import tune

from longhaul.errors import LonghaulError
from longhaul.recipe import Recipe, parse
from longhaul.resilience.requests import Request, StopRequested, ask
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.storage import Storage
from longhaul.training.alone import can_train_alone, train_alone
from longhaul.training.launch import fit
from longhaul.training.loop import Trainer
from longhaul.training.progress import Progress
from longhaul.workloads import build

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_SAVE_S = "600"
_HELD = "is being trained by"


class CellOrder(BaseModel):
    """One cell to train: its recipe as YAML, and the address of its run directory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    recipe: str
    run: str


class TrialOrder(BaseModel):
    """What a trial is to do; travels as Tune's `config`.

    Attributes:
        key: of the trial: its first cell's.
        cells: one, or one for each fold.
        resources: what Ray reserves for the trial's own process, such as `{"CPU": 1.0, "GPU": 0.25}`.
        coordinates: recipe fields and values, without the fold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    cells: tuple[CellOrder, ...]
    resources: dict[str, float]
    coordinates: dict[str, Any]


def validations(run: RunDirectory, goal: str) -> list[tuple[int, float, float]]:
    """The goal on the validation split as the run stands, as (step, epoch, value): of a step that was repeated the last."""
    rows = run.metrics()
    rows = rows.filter(pc.equal(rows["name"], goal)).select(["segment", "step", "epoch", "value"]).to_pylist()
    newest = {row["step"]: row for row in sorted(rows, key=lambda row: row["segment"])}
    return [(step, newest[step]["epoch"], newest[step]["value"]) for step in sorted(newest)]


def train_trial(config: dict[str, Any], trainer: type[Trainer] = Trainer) -> None:
    """The trainable; `config` is a `TrialOrder`.

    Reports after each validation `epoch` (of several folds: epochs over all of them so far), `score` (the best so far; of
    several folds, the mean of their bests), and `key`, `cell_epoch`, `cell_score`, `steps` of the cell at hand.
    """
    order = TrialOrder.model_validate(config)
    # How long Tune waits for this function to save and end before it gives the process to the next trial.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = _SAVE_S
    logging.getLogger("longhaul").setLevel(logging.WARNING)
    bests: list[float] = []
    epochs = 0.0
    for cell in order.cells:
        recipe, run = parse(cell.recipe, source=cell.run), RunDirectory(Storage.open(cell.run))
        began_s = time.time()
        try:
            reporter = _Reporter(order, cell.key, build(recipe).goal.direction, bests, epochs)
            summary = run.summary()
            if summary.status != "finished":
                summary = _train(recipe, run, reporter, order, trainer)
        except Exception as error:  # noqa: BLE001 - its end stands in the run; Tune would only train it again
            _fail(run, error, began_s)
            return
        if reporter.stopped:
            raise SystemExit
        if summary.status != "finished":  # paused: the next call goes on from here
            break
        bests, epochs = [*bests, math.nan if summary.best is None else summary.best], epochs + summary.epoch
        if reporter.silent:
            reporter.report(summary.epoch, bests[-1], summary.step)


def _fail(run: RunDirectory, error: Exception, began_s: float) -> None:
    """Have the run say that it failed, where what has driven it has not."""
    log.warning("%s: %s", run.uri, error)
    summary = run.summary()
    if summary.status != "failed" or summary.updated_s < began_s:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        run.write_summary(summary.model_copy(update={"status": "failed", "error": text}))


def _train(recipe: Recipe, run: RunDirectory, reporter: _Reporter, order: TrialOrder, trainer: type[Trainer]) -> Summary:
    while True:
        try:
            if can_train_alone(recipe):
                return train_alone(
                    recipe, run, gpu=order.resources.get("GPU", 0) > 0, observe=reporter.observe(recipe, run), trainer=trainer
                )
            return _fit(recipe, run, reporter)
        except LonghaulError as error:
            if _HELD not in str(error):
                raise
            # Another sweep trains the same cell just now: what it comes to is ours as well.
            log.warning("%s; waiting for it", error)
            time.sleep(_LOOK_S * 5)
            if run.summary().status == "finished":
                return run.summary()


class _Reporter:
    """Tells Tune of validations; knows what the trial's former cells (folds) have come to."""

    def __init__(self, order: TrialOrder, key: str, direction: str, bests: list[float], epochs: float) -> None:
        self._order, self._key, self._bests, self._epochs = order, key, bests, epochs
        self._better: Callable[[float, float], float] = max if direction == "max" else min
        self._best: float | None = None
        self.silent = True
        self.stopped = False

    def report(self, epoch: float, value: float, steps: int) -> None:
        """One validation.

        Raises:
            SystemExit: Tune wants the trial to end here.
        """
        if not math.isnan(value):
            self._best = value if self._best is None else self._better(self._best, value)
        best = math.nan if self._best is None else self._best
        bests = [*self._bests, best]
        self.silent = False
        tune.report(
            {
                "epoch": self._epochs + epoch,
                "score": sum(bests) / len(bests),
                "key": self._key,
                "cell_epoch": epoch,
                "cell_score": value,
                "steps": steps,
            }
        )

    def observe(self, recipe: Recipe, run: RunDirectory) -> Callable[[Progress, float], None]:
        """For `train_alone`: reports each validation that the run did not have before; pauses the run where Tune ends it."""
        workload = build(recipe)
        size = len(workload.splits.train)
        self._remember(run, f"val/{workload.goal.metric}")
        known = {step for step, _, _ in validations(run, f"val/{workload.goal.metric}")}

        def observe(progress: Progress, goal: float) -> None:
            if progress.step in known:  # validated before the last save was complete, and told then
                return
            try:
                self.report(progress.epoch(size), goal, progress.step)
            except SystemExit:
                self.stopped = True
                raise StopRequested(Request(kind="pause", id="sweep", time_s=time.time())) from None

        return observe

    def _remember(self, run: RunDirectory, goal: str) -> None:
        for _, _, value in validations(run, goal):
            if not math.isnan(value):
                self._best = value if self._best is None else self._better(self._best, value)


def _fit(recipe: Recipe, run: RunDirectory, reporter: _Reporter) -> Summary:
    """Train by Ray Train in a thread of its own, while this one reports what it reads in the run directory."""
    goal = f"val/{build(recipe).goal.metric}"
    reporter._remember(run, goal)
    told = {step for step, _, _ in validations(run, goal)}
    failures: list[BaseException] = []

    def drive() -> None:
        try:
            fit(recipe, run)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for this one
            failures.append(error)

    driver = threading.Thread(target=drive, name="longhaul-fit", daemon=True)
    driver.start()
    try:
        while driver.is_alive():
            driver.join(_LOOK_S)
            for step, epoch, value in validations(run, goal):
                if step not in told:
                    told.add(step)
                    reporter.report(epoch, value, step)
    except SystemExit:
        while driver.is_alive():
            ask(run, "pause")
            driver.join(5 * _LOOK_S)
        raise
    if failures:
        raise failures[0]
    return run.summary()


def placement(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What Ray reserves for a trial, from its order: for `tune.with_resources`."""
    return tune.PlacementGroupFactory([dict(config["resources"])])
