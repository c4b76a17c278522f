"""What a trial of a sweep runs, as a function trainable of Ray Tune: it trains one cell, or one for each fold, and reports.

A cell of one worker trains in the trial's own process (`training.alone`); one of several is handed to Ray Train, inside the
trial (`training.on_ray.launch.fit`). All that it leaves lies in the cell's run directory, from which it goes on at the next call:
to Tune it reports numbers alone, never a checkpoint.
"""

from __future__ import annotations

import contextlib
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

from longhaul.recipe import Recipe, parse
from longhaul.resilience.lease import HeldError, holder
from longhaul.resilience.requests import Request, StopRequested, answered, ask, asked
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.storage import Storage
from longhaul.training.alone import can_train_alone, train_alone
from longhaul.training.loop import Trainer
from longhaul.training.on_ray.launch import fit
from longhaul.training.progress import Progress
from longhaul.workloads import Workload, build

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_SAVE_S = "600"
_WAIT_S = 5.0


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
        epochs: length of the whole training, over all cells; None where nobody has said.
        charged: what each of a cell's workers takes; None where the trial's own process is the only one.
        sweep: address of the sweep's directory; on its behalf the runs are held, and what it is asked ends the trial.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    cells: tuple[CellOrder, ...]
    resources: dict[str, float]
    coordinates: dict[str, Any]
    epochs: float | None = None
    charged: dict[str, float] | None = None
    sweep: str | None = None


def validations(run: RunDirectory, goal: str) -> list[tuple[int, float, float]]:
    """The goal on the validation split as the run stands, as (step, epoch, value): of a step that was repeated the last."""
    rows = run.metrics()
    rows = rows.filter(pc.equal(rows["name"], goal)).select(["segment", "step", "epoch", "value"]).to_pylist()
    newest = {row["step"]: row for row in sorted(rows, key=lambda row: row["segment"])}
    return [(step, newest[step]["epoch"], newest[step]["value"]) for step in sorted(newest)]


def train_trial(config: dict[str, Any], trainer: type[Trainer] = Trainer) -> None:
    """The trainable; `config` is a `TrialOrder`.

    Reports after each validation `epoch` (of several folds: epochs over all of them so far), `score` (the best so far; of
    several folds, the mean of their bests), and `key`, `cell_epoch`, `cell_score`, `steps`, `workers` of the cell at hand.

    It ends early where a pause is asked of the run of the cell at hand: at the validation that it has just told of, where the
    request stands before Tune lets it go on. Tune itself never ends it: it would not wait for the save.
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
            reporter = _Reporter(order, cell.key, run, build(recipe), bests, epochs)
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
        if reporter.silent and reporter.replay(summary):
            break


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
                gpu, observe = order.resources.get("GPU", 0) > 0, reporter.observe()
                return train_alone(recipe, run, gpu=gpu, observe=observe, trainer=trainer, owner=order.sweep)
            return _fit(recipe, run, reporter, order.sweep)
        except HeldError as error:
            # Another sweep trains the same cell just now (or what a killed driver has left, for a moment): what it comes to is
            # ours as well.
            log.warning("%s; waiting for it", error)
        if _ends_while_waiting(order) or run.summary().status == "finished":
            return run.summary()


def _ends_while_waiting(order: TrialOrder) -> bool:
    """Wait a while for whoever holds the cell; whether the sweep ends meanwhile."""
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        with contextlib.suppress(OSError):
            if order.sweep is not None and asked(RunDirectory(Storage.open(order.sweep))) is not None:
                return True
    return False


class _Reporter:
    """Tells Tune of validations; knows what the trial's former cells (folds) have come to."""

    def __init__(
        self, order: TrialOrder, key: str, run: RunDirectory, workload: Workload, bests: list[float], epochs: float
    ) -> None:
        self._order, self._key, self._run, self._bests, self._epochs = order, key, run, bests, epochs
        self._samples, self._goal = len(workload.splits.train), f"val/{workload.goal.metric}"
        self._better: Callable[[float, float], float] = max if workload.goal.direction == "max" else min
        self._best: float | None = None
        self.silent = True
        self.stopped = False

    def report(self, epoch: float, value: float, steps: int, workers: int = 1) -> None:
        """One validation, of a run of so many workers.

        Raises:
            SystemExit: Tune wants the trial to end here.
        """
        self._take(value)
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
                "workers": workers,
            }
        )

    def replay(self, summary: Summary) -> bool:
        """Tell of a run that is finished and had nothing new to tell; whether the trial shall end here.

        Its last validation, as the sweep knows it by its epoch; its best counts for the trial's score.
        """
        answered(self._run)  # nobody else reads what is asked of a finished run
        if summary.best is not None:
            self._best = summary.best
        best = math.nan if self._best is None else self._best
        told = validations(self._run, summary.goal) if summary.goal else []
        step, epoch, value = told[-1] if told else (summary.step, summary.epoch, best)
        self.report(epoch, value, step)
        request = self._asked()
        answered(self._run)
        return request is not None

    def _asked(self) -> Request | None:
        """Whether somebody wants the run to end: the sweep, by what it has just been told, or a person."""
        try:
            request = asked(self._run)
        except OSError as error:  # the training itself looks every few seconds
            log.warning("%s: %s", self._run.uri, error)
            return None
        return None if request is None or request.kind == "save" else request

    def observe(self) -> Callable[[Progress, float], None]:
        """For `train_alone`: reports each validation that the run did not have before; ends the run where somebody wants it."""
        known = self.known()

        def observe(progress: Progress, goal: float) -> None:
            if progress.step in known:  # validated before the last save was complete, and told then
                return
            try:
                self.report(progress.epoch(self._samples), goal, progress.step)
            except SystemExit:
                self.stopped = True
                raise StopRequested(Request(kind="pause", id="sweep", time_s=time.time())) from None
            if (request := self._asked()) is not None:
                raise StopRequested(request)

        return observe

    def known(self) -> set[int]:
        """The steps of the validations that the run has already, which Tune has been told of; the best of them counts."""
        there = self.validations()
        for _, _, value in there:
            self._take(value)
        return {step for step, _, _ in there}

    def validations(self) -> list[tuple[int, float, float]]:
        """See `validations`."""
        return validations(self._run, self._goal)

    def _take(self, value: float) -> None:
        if not math.isnan(value):
            self._best = value if self._best is None else self._better(self._best, value)


def _fit(recipe: Recipe, run: RunDirectory, reporter: _Reporter, owner: str | None) -> Summary:
    """Train by Ray Train in a thread of its own, while this one reports what it reads in the run directory."""
    told = reporter.known()
    failures: list[BaseException] = []

    def drive() -> None:
        try:
            fit(recipe, run, owner=owner)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for this one
            failures.append(error)

    driver = threading.Thread(target=drive, name="longhaul-fit", daemon=True)
    driver.start()
    holds = False
    try:
        while driver.is_alive():
            driver.join(_LOOK_S)
            holds = _still_holds(run, holds)
            with contextlib.suppress(OSError):  # storage that is away for a moment: the next look sees it all
                workers = run.summary().workers
                for step, epoch, value in reporter.validations():
                    if step not in told:
                        told.add(step)
                        reporter.report(epoch, value, step, workers)
    except SystemExit:
        while driver.is_alive():
            ask(run, "pause")
            driver.join(5 * _LOOK_S)
        raise
    if failures:
        raise failures[0]
    return run.summary()


def _still_holds(run: RunDirectory, held: bool) -> bool:
    """Whether this process holds the run, as it did before if `held`; where another has taken it over, the process ends.

    Ray Train's workers cannot be called back from here; they end with the process that has started them. Tune begins the trial
    again, which then waits for the run's new holder.
    """
    try:
        now = holder(run)
    except OSError:
        return held
    if held and now is not None and not now.is_this_process:
        log.error("%s: process %d on %s has taken it over", run.uri, now.pid, now.host)
        os._exit(1)
    return held or (now is not None and now.is_this_process)


def placement(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What Ray reserves for a trial, from its order: for `tune.with_resources`."""
    return tune.PlacementGroupFactory([dict(config["resources"])])
