"""What a validation changes: the plateau schedule's factor, the end by early stopping."""

from __future__ import annotations

from longhaul.recipe import Recipe
from longhaul.recipe.schedules import PlateauSchedule
from longhaul.training.course import Course
from longhaul.training.progress import Progress
from longhaul.training.record.record import Recorder


def react(progress: Progress, metrics: dict[str, float], recipe: Recipe, course: Course, record: Recorder) -> None:
    """Take in the metrics of a validation, by name such as `val/top1`; changes `progress`, the same on all ranks."""
    progress.measured(metrics)
    schedule, early, goal = recipe.training.schedule, recipe.training.early_stopping, record.summary.goal
    if isinstance(schedule, PlateauSchedule) and progress.plateau and progress.plateau.update(metrics[goal]):
        progress.rate_factor *= schedule.gamma
        record.event("plateau", progress, f"learning rate times {schedule.gamma:g}: no better {goal} for {schedule.patience}")
    if early is None or progress.early is None or progress.cursor < course.samples(early.warmup):
        return
    watched = early.metric or goal
    if progress.early.update(metrics[watched]):
        progress.stopped_early = True
        best = progress.early.best
        record.event("early_stop", progress, f"stopped: no better {watched} than {best} for {early.patience} validations")
