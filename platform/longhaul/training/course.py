"""How far a run goes and what is due where: pure functions of its position in the data, the same on every rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from longhaul.recipe import Duration, Recipe
from longhaul.training.progress import Progress
from longhaul.training.schedule import build_schedule


@dataclass(frozen=True)
class Course:
    """The lengths of a recipe on a data set of `epoch_samples` samples."""

    recipe: Recipe
    epoch_samples: int

    @cached_property
    def total_samples(self) -> int:
        """Length of the run."""
        return self.samples(self.recipe.training.length)

    @cached_property
    def total_steps(self) -> int:
        """Length of the run in optimizer steps."""
        return self.steps(self.recipe.training.length)

    @cached_property
    def rate_at(self) -> Callable[[int], float]:
        """The learning rate at each step, without what plateaus and remedies take off it."""
        training = self.recipe.training
        return build_schedule(
            training.schedule,
            lr=training.optimizer.lr,
            total_steps=self.total_steps,
            steps_per_epoch=self.epoch_samples / training.global_batch,
            steps=self.steps,
        )

    def over(self, progress: Progress) -> bool:
        """Whether training is at its end."""
        return progress.stopped_early or progress.cursor >= self.total_samples

    def due(self, every: Duration | None, before: int, progress: Progress, *, end: bool = True) -> bool:
        """Whether a multiple of `every` lies in (before, cursor], or (with `end`) the run has just ended."""
        if every is None:
            return False
        interval = max(self.samples(every), 1)
        return (end and self.over(progress)) or progress.cursor // interval > before // interval

    def samples(self, duration: Duration) -> int:
        """A duration in samples."""
        return duration.samples(global_batch=self.recipe.training.global_batch, epoch_samples=self.epoch_samples)

    def steps(self, duration: Duration) -> int:
        """A duration in optimizer steps."""
        return duration.steps(global_batch=self.recipe.training.global_batch, epoch_samples=self.epoch_samples)
