"""Where a run stands: the small part of its state, saved as JSON in every checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

from longhaul.data.subset import excluded_indices
from longhaul.recipe import Recipe
from longhaul.recipe.schedules import PlateauSchedule
from longhaul.resilience.cadence import Cadence
from longhaul.resilience.divergence import LossMonitor, Remedies
from longhaul.training.patience import Patience, check_watched
from longhaul.workloads import Workload


class Progress(BaseModel):
    """What the loop needs to go on besides tensors.

    Attributes:
        fingerprint: of the data whose order the cursor counts in.
        cursor: global position behind the last step (`data.order`).
        step: optimizer steps done, in this phase and those before it.
        phase: number of the run's phase; the cursor counts in it alone.
        first_step, first_samples, first_epoch: what had been done when it began.
        left_out: ids of the samples that earlier phases found poisonous.
        extremes: the lowest and highest value in this phase of each metric of the validation split.
        segment: how many times the workers have been started; trackers' steps only go forward within one.
        excluded: samples to step over.
        rate_factor: what the plateau schedule has taken off the learning rate.
        plateau, early: bookkeeping of the plateau schedule and of early stopping.
        stopped_early: training has ended before its length.
        owes_validation: the validation at this position was broken off and comes first after a resume.
        monitor: statistics of the loss, which tell a spike.
        remedies: what has been done about spikes.
        cadence: what is known of the cost of saves and the distance of losses.
        tracker_runs: ids at the experiment trackers, by tracker.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    fingerprint: str = ""
    cursor: int = 0
    step: int = 0
    phase: int = 0
    first_step: int = 0
    first_samples: int = 0
    first_epoch: float = 0.0
    left_out: list[str] = []
    extremes: dict[str, tuple[float, float]] = {}
    segment: int = 0
    excluded: list[int] = []
    rate_factor: float = 1.0
    plateau: Patience | None = None
    early: Patience | None = None
    stopped_early: bool = False
    owes_validation: bool = False
    monitor: LossMonitor = LossMonitor()
    remedies: Remedies = Remedies()
    cadence: Cadence = Cadence()
    tracker_runs: dict[str, str] = {}

    @property
    def samples(self) -> int:
        """Samples gone through since the run began."""
        return self.first_samples + self.cursor

    def epoch(self, size: int) -> float:
        """Passes over the data since the run began, those of this phase over `size` samples."""
        return self.first_epoch + self.cursor / size

    def measured(self, metrics: dict[str, float]) -> None:
        """Remember the extremes of a validation's metrics."""
        for name, value in metrics.items():
            if not math.isnan(value):
                lowest, highest = self.extremes.get(name, (value, value))
                self.extremes[name] = (min(lowest, value), max(highest, value))

    def under(self, fresh: Progress) -> Progress:
        """The same place, under the settings of a recipe that may have changed since: those of its `fresh` beginning."""
        settings = {
            "monitor": self.monitor.model_copy(update={"sigma": fresh.monitor.sigma}),
            "cadence": self.cadence.model_copy(update={name: getattr(fresh.cadence, name) for name in ("least_s", "most_s")}),
            "plateau": _under(self.plateau, fresh.plateau),
            "early": _under(self.early, fresh.early),
        }
        return self.model_copy(update=settings)


def _under(former: Patience | None, fresh: Patience | None) -> Patience | None:
    if former is None or fresh is None or former.direction != fresh.direction:
        return fresh
    return fresh.model_copy(update={"best": former.best, "misses": former.misses})


def fresh_progress(recipe: Recipe, workload: Workload) -> Progress:
    """The beginning of a run."""
    train, direction = workload.splits.train, workload.goal.direction
    schedule, early = recipe.training.schedule, recipe.training.early_stopping
    progress = Progress(
        fingerprint=train.fingerprint,
        excluded=excluded_indices(train, recipe.data.excluded, part=recipe.data.share < 1),
        monitor=LossMonitor(sigma=recipe.resilience.spike_sigma),
        cadence=Cadence(least_s=recipe.checkpoints.ephemeral_min_s, most_s=recipe.checkpoints.ephemeral_max_s),
    )
    if isinstance(schedule, PlateauSchedule):
        progress.plateau = Patience(patience=schedule.patience, direction=direction, min_delta=schedule.min_delta)
    check_watched(early, workload)
    if early is not None:
        progress.early = Patience(patience=early.patience, direction=early.direction or direction, min_delta=early.min_delta)
    return progress


Observe = Callable[[Progress, float], None]
"""Is told the goal metric after each validation."""


def unobserved(progress: Progress, goal: float) -> None:
    """Nobody watches."""
