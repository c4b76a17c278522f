"""What a trial of a population runs, as a function trainable of Ray Tune: one member, up to its next comparison.

At a comparison the member's run is paused, which leaves a complete checkpoint of just that step, and the trial reports it. What
Tune keeps as the trial's checkpoint is a small JSON file that names the run and its checkpoint; the weights stay where they are.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import tune

from longhaul.errors import LonghaulError, UserError
from longhaul.recipe import Recipe, parse
from longhaul.resilience.checkpoint import CheckpointStore
from longhaul.resilience.requests import Request, StopRequested
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.storage import Storage
from longhaul.training.alone import train_alone
from longhaul.training.course import Course
from longhaul.training.loop import Trainer
from longhaul.training.progress import Progress
from longhaul.tuning.history import EPOCH, SCORE
from longhaul.tuning.trial import validations
from longhaul.workloads import build

log = logging.getLogger(__name__)

ORDER = "order"
"""Where Tune's `config` has a trial's `MemberOrder`."""
AT_COMPARISON = "at_comparison"
"""Whether a report is one at a comparison: its epoch is then the comparison's own."""
CHECKPOINT, TRAINED, STEPS, FAILED = "checkpoint", "trained_epochs", "steps", "failed"
_HAIR = 1e-6
_WAIT_S = 2.0
_HELD = "is being trained by"


class MemberOrder(BaseModel):
    """What a trial is to do; travels in Tune's `config`.

    Attributes:
        member, generation: which.
        recipe: as YAML.
        run: address of the generation's run directory.
        due: epoch of the next comparison.
        gpu: whether it trains on one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    member: int
    generation: int
    recipe: str
    run: str
    due: float
    gpu: bool


@dataclass(frozen=True)
class Point:
    """A validated checkpoint: its step, epoch, goal and name."""

    step: int
    epoch: float
    value: float
    checkpoint: str


def newest_point(run: RunDirectory, goal: str) -> Point | None:
    """The run's newest checkpoint, if this run validated it; None before the first, and between two validations."""
    entries = CheckpointStore(run).entries()
    if not entries:
        return None
    newest = entries[-1]
    found = [(epoch, value) for step, epoch, value in validations(run, goal) if step == newest.step]
    return Point(newest.step, found[0][0], found[0][1], newest.name) if found else None


def train_member(config: dict[str, Any], trainer: type[Trainer] = Trainer) -> None:
    """The trainable; `config` has a `MemberOrder`.

    Reports each validation (`epoch`, `score`, `steps`), and at a comparison the goal with the checkpoint that holds it. A
    member that cannot train on (its loss diverged) reports a NaN there: it ranks last, and goes on from a better one's weights.
    """
    order = MemberOrder.model_validate(config[ORDER])
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "600"  # how long Tune lets it save before it takes the process away
    logging.getLogger("longhaul").setLevel(logging.WARNING)
    recipe, run = parse(order.recipe, source=order.run), RunDirectory(Storage.open(order.run))
    goal = f"val/{build(recipe).goal.metric}"
    if not _is_due(newest_point(run, goal), order):  # else its driver died before it heard of it
        try:
            summary = _train(recipe, run, order, trainer)
        except UserError:
            raise
        except LonghaulError as error:
            log.warning("member %d: %s", order.member, error)
            told = run.summary()
            tune.report(
                {
                    EPOCH: order.due,
                    SCORE: math.nan,
                    TRAINED: told.epoch,
                    STEPS: told.step,
                    AT_COMPARISON: True,
                    FAILED: str(error),
                }
            )
            return
        if summary.status == "finished":
            return
    point = newest_point(run, goal)
    if point is not None and _is_due(point, order):
        _report(point, order)


def _is_due(point: Point | None, order: MemberOrder) -> bool:
    return point is not None and point.epoch >= order.due - _HAIR


def _report(point: Point, order: MemberOrder) -> None:
    told = {EPOCH: order.due, SCORE: point.value, TRAINED: point.epoch, STEPS: point.step, AT_COMPARISON: True}
    with tempfile.TemporaryDirectory(prefix="longhaul-member-") as folder:
        text = json.dumps({"run": order.run, "checkpoint": point.checkpoint})
        (Path(folder) / "member.json").write_text(text)
        tune.report({**told, CHECKPOINT: point.checkpoint}, checkpoint=tune.Checkpoint.from_directory(folder))


def _train(recipe: Recipe, run: RunDirectory, order: MemberOrder, trainer: type[Trainer]) -> Summary:
    observe = _observer(recipe, order)
    while True:
        try:
            return train_alone(recipe, run, gpu=order.gpu, observe=observe, trainer=trainer)
        except UserError as error:
            if _HELD not in str(error):
                raise
            log.warning("%s; waiting for it", error)  # the process of a driver that was killed may take a moment to end
            time.sleep(_WAIT_S)


def _observer(recipe: Recipe, order: MemberOrder) -> Callable[[Progress, float], None]:
    course = Course(recipe, len(build(recipe).splits.train))

    def observe(progress: Progress, goal: float) -> None:
        epoch = progress.epoch(course.epoch_samples)
        if course.over(progress):  # nothing comes after it that weights could be copied for
            return
        if epoch >= order.due - _HAIR:
            raise StopRequested(_pause())
        try:
            tune.report({EPOCH: epoch, SCORE: goal, TRAINED: epoch, STEPS: progress.step, AT_COMPARISON: False})
        except SystemExit:
            raise StopRequested(_pause()) from None

    return observe


def _pause() -> Request:
    return Request(kind="pause", id="sweep", time_s=time.time())
