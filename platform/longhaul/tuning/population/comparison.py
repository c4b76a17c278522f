"""Which members of a population go on from whose weights: Ray Tune's `PopulationBasedTraining`, in rounds.

All members train to the same epoch, wait there, and are compared (its `synch=True`): none is measured against one that has
trained for longer, and what is decided does not hang on which was quicker: a sweep that was killed decides the same again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator

from longhaul.errors import LonghaulError
from longhaul.recipe.sweep import PbtStopping
from longhaul.tuning.history import EPOCH, SCORE, Direction
from longhaul.tuning.population.member import AT_COMPARISON, CHECKPOINT, ORDER

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

log = logging.getLogger(__name__)


class Decisions(Protocol):
    """Who writes down what a comparison decides."""

    ending: str | None
    """Why no more trials begin; None while all goes on."""

    def branch(self, member: int, donor: int, checkpoint: str, score: float) -> None:
        """The member goes on from the donor's checkpoint."""
        ...

    def compared(self, epoch: float, scores: Mapping[int, float]) -> None:
        """The comparison at an epoch is over: the scores of those that were there."""
        ...

    def config(self, member: int) -> dict[str, Any]:
        """What Tune's `config` of a member is, as things stand."""
        ...


class Comparison(PopulationBasedTraining):
    """`ray.tune.schedulers.PopulationBasedTraining` with `synch=True`, and what a long sweep needs besides.

    - A member that ends (by an error, by early stopping) while the others wait for it does not leave them waiting for ever.
    - A member whose score is NaN, which Ray leaves alone for good, ranks last and is always replaced.
    - What is drawn at random hangs on the seed and the epoch alone.
    - It begins at the epoch of the last comparison of an earlier call.
    """

    def __init__(
        self, stopping: PbtStopping, direction: Direction, decisions: Decisions, *, members: int, parallel: int, seed: int,
        since: float,
    ) -> None:  # fmt: skip
        """A scheduler for `members` trials, `parallel` at once, whose last comparison was at epoch `since`."""
        super().__init__(
            time_attr=EPOCH,
            metric=SCORE,
            mode=direction,
            perturbation_interval=stopping.every_epochs,
            quantile_fraction=stopping.quantile,
            custom_explore_fn=_unchanged,
            log_config=False,
            synch=True,
        )
        self._decisions, self._members, self._parallel, self._seed = decisions, members, parallel, seed
        self._since = since
        self._next_perturbation_sync = since + stopping.every_epochs

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        """A member is there."""
        super().on_trial_add(tune_controller, trial)
        if len(self._trial_state) == 1:  # else Tune keeps no more than one of the processes that a comparison leaves idle
            cache = tune_controller._tune_controller._actor_cache  # type: ignore[attr-defined]  # behind `TrialRunnerWrapper`
            cache.increase_max(trial.placement_group_factory, by=self._parallel)
        self._trial_state[trial].last_train_time = self._since  # type: ignore[assignment]  # any number will do

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """A member that has not come to the comparison, if there is room for it; never one whose sweep ends.

        One that waits for its process comes last: Ray's own rule would name it again and again, and start none beside it.
        """
        if self._decisions.ending is not None:
            return None
        trials: list[Trial] = tune_controller.get_trials()
        waiting = [trial for trial in trials if trial.status == Trial.PENDING]
        running = sum(trial.status == Trial.RUNNING for trial in trials)
        paused = [
            trial
            for trial in trials
            if trial.status == Trial.PAUSED and self._trial_state[trial].last_train_time < self._next_perturbation_sync
        ]
        if paused and running + len(waiting) < self._parallel:
            return paused[0]
        return waiting[0] if waiting else None

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Nothing but a comparison counts: there the member waits for the others."""
        if not result.get(AT_COMPARISON):
            return str(TrialScheduler.CONTINUE)
        state = self._trial_state[trial]
        if result[EPOCH] <= state.last_train_time:  # it failed, was not replaced, since all had, and has failed again
            return str(TrialScheduler.STOP)
        self._save_trial_state(state, result[EPOCH], result, trial)
        self._compare(tune_controller)
        return str(TrialScheduler.NOOP if trial.status == Trial.PAUSED else TrialScheduler.PAUSE)

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        """The others need not wait for it any more."""
        self._compare(tune_controller, without=trial)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Nor for this one."""
        self._compare(tune_controller, without=trial)

    def on_trial_remove(self, tune_controller: TuneController, trial: Trial) -> None:
        """Nor for this one."""
        self._compare(tune_controller, without=trial)

    def _compare(self, controller: TuneController, without: Trial | None = None) -> None:
        epoch = self._next_perturbation_sync
        present = [trial for trial in self._trial_state if trial is not without and not trial.is_finished()]
        if self._decisions.ending is not None or len(self._trial_state) < self._members or not present:
            return
        if any(self._trial_state[trial].last_train_time < epoch for trial in present):
            return
        scores = {member_of(trial): self._told(trial)[SCORE] for trial in present}
        lower, upper = self._quantiles(without)
        between = [trial for trial in present if trial not in lower and trial not in upper]
        with _seeded(f"{self._seed}/{epoch:g}"):
            for trial in [*upper, *between, *lower]:  # the best first: their checkpoints are what the worst are given
                self._checkpoint_or_exploit(trial, controller, upper, lower)
        self._next_perturbation_sync = epoch + self._perturbation_interval
        self._decisions.compared(epoch, scores)
        for trial in present:
            trial.set_config(self._decisions.config(member_of(trial)))

    def _quantiles(self, without: Trial | None = None) -> tuple[list[Trial], list[Trial]]:
        present = [trial for trial in self._trial_state if trial is not without and not trial.is_finished()]
        worth = {trial: _worth(self._trial_state[trial].last_score) for trial in present}
        broken = [trial for trial in present if not math.isfinite(worth[trial])]
        sound = sorted((trial for trial in present if trial not in broken), key=lambda trial: worth[trial])
        if len(present) < 2 or not sound:
            return [], []
        share = min(math.ceil(len(present) * self._quantile_fraction), len(present) // 2)
        upper = sound[-share:]
        lower = [trial for trial in [*broken, *sound][: max(share, len(broken))] if trial not in upper]
        return lower, upper

    def _exploit(self, tune_controller: TuneController, trial: Trial, trial_to_clone: Trial) -> None:
        donor = self._told(trial_to_clone)
        try:
            self._decisions.branch(member_of(trial), member_of(trial_to_clone), donor[CHECKPOINT], donor[SCORE])
        except (LonghaulError, OSError) as error:  # a damaged checkpoint, storage that is away: it goes on as it is
            log.warning("member %d keeps its weights: %s", member_of(trial), error)
            return
        super()._exploit(tune_controller, trial, trial_to_clone)

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        return self._decisions.config(member_of(trial)), {}

    def _told(self, trial: Trial) -> dict[str, Any]:
        told: dict[str, Any] = self._trial_state[trial].last_result or {}
        return told

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the lineage has all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing either."""


class Members(BasicVariantGenerator):
    """`ray.tune.search.BasicVariantGenerator` that has not finished before its last trial has.

    Where the search is over, Tune ends the process of every trial that pauses or goes on from another's weights. And it begins
    all trials that it is given, as far as the cluster has room: so it is given no more than `parallel` at once.
    """

    def __init__(self, decisions: Decisions, parallel: int) -> None:
        """For the members of `decisions`, `parallel` at once."""
        super().__init__()
        self._decisions, self._parallel = decisions, parallel
        self._given: list[Trial] = []

    def next_trial(self) -> Trial | None:
        """One more member, if there is room for it."""
        busy = sum(trial.status in (Trial.PENDING, Trial.RUNNING) for trial in self._given)
        trial: Trial | None = None if busy >= self._parallel else super().next_trial()  # type: ignore[no-untyped-call]
        self._given += [] if trial is None else [trial]
        return trial

    def is_finished(self) -> bool:
        """Whether no trial is left."""
        return bool(self._finished) and (not self._live_trials or self._decisions.ending is not None)

    def save_to_dir(self, dirpath: str, session_str: str = "", **kwargs: Any) -> None:
        """Nothing: the lineage has all."""


def member_of(trial: Trial) -> int:
    """The number of a trial's member."""
    return int(trial.config[ORDER]["member"])


def _worth(score: float | None) -> float:
    return math.nan if score is None else score


def _unchanged(config: dict[str, Any]) -> dict[str, Any]:
    """Ray wants a rule; ours is `lineage.explore`, by way of `Decisions.branch`."""
    return config


@contextlib.contextmanager
def _seeded(text: str) -> Iterator[None]:
    """Ray draws the donor by the global generator of `random`."""
    before = random.getstate()
    random.seed(text)
    try:
        yield
    finally:
        random.setstate(before)
