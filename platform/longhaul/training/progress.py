"""Where a run stands: the small part of its state, saved as JSON in every checkpoint."""

from __future__ import annotations

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
        step: optimizer steps done.
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


def fresh_progress(recipe: Recipe, workload: Workload) -> Progress:
    """The beginning of a run."""
    train, direction = workload.splits.train, workload.goal.direction
    schedule, early = recipe.training.schedule, recipe.training.early_stopping
    progress = Progress(
        fingerprint=train.fingerprint,
        excluded=excluded_indices(train, recipe.data.excluded),
        monitor=LossMonitor(sigma=recipe.resilience.spike_sigma),
        cadence=Cadence(least_s=recipe.checkpoints.ephemeral_min_s, most_s=recipe.checkpoints.ephemeral_max_s),
    )
    if isinstance(schedule, PlateauSchedule):
        progress.plateau = Patience(patience=schedule.patience, direction=direction, min_delta=schedule.min_delta)
    check_watched(early, workload)
    if early is not None:
        progress.early = Patience(patience=early.patience, direction=early.direction or direction, min_delta=early.min_delta)
    return progress
