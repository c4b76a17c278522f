"""Which trials end before their time: Ray Tune's rules, with a memory of the trials of earlier calls."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.schedulers.async_hyperband import _Bracket

from longhaul.errors import UserError
from longhaul.recipe.sweep import AshaStopping, MedianStopping, NoStopping, PbtStopping, StoppingSection
from longhaul.tuning.history import EPOCH, EPOCHS, KEY, SCORE, Direction, Past

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

_DIGITS = 6  # of an epoch; what is computed from steps is 0.3 for one trial and 0.30000000000000004 for another
_HAIR = 1e-6  # epochs; a rung at 0.1 * 3 lies above 0.3
_TIE = 1e-6  # of a cutoff; shares of right answers come in single precision, and a mean of two of them is another number
_FAR = 10**6  # epochs; up to there are rungs: where a trial ends is its own, and one that ends at a rung still counts there


def make_scheduler(
    stopping: StoppingSection, direction: Direction, epochs: float, past: Sequence[Past], forced: Collection[str] = ()
) -> TrialScheduler:
    """The scheduler that Ray Tune asks after every validation; a trial's config names its cell as `KEY`.

    Args:
        stopping: the rule.
        direction: whether a high score is good or a low one.
        epochs: what the longest trial trains at most; one whose config says `epochs` ends at those.
        past: all trials so far, with their scores; those among them that go on are not judged again for what they reported.
        forced: keys of cells that are never stopped; the others are measured against them all the same.

    Raises:
        UserError: the first comparison would come after the training's end.
        ValueError: the rule is population based training, which is no scheduler here.
    """
    if isinstance(stopping, NoStopping):
        return FIFOScheduler()
    if isinstance(stopping, PbtStopping):
        raise ValueError("population based training stops nobody: `tuning.population.population` drives it")
    if stopping.least_epochs > epochs:
        problem = f"stopping.least_epochs {stopping.least_epochs:g}: trials train for {epochs:g} epochs"
        raise UserError(problem, f"Set stopping.least_epochs below {epochs:g}, or stopping.kind to none")
    scheduler = EarlyStopping(_rule(stopping, direction), stopping, epochs, forced)
    scheduler.remember(past)
    return scheduler


def _rule(stopping: AshaStopping | MedianStopping, direction: Direction) -> FIFOScheduler:
    if isinstance(stopping, MedianStopping):
        return MedianStoppingRule(
            time_attr=EPOCH,
            metric=SCORE,
            mode=direction,
            grace_period=stopping.least_epochs,
            min_samples_required=stopping.least_trials,
            min_time_slice=math.inf,  # type: ignore[arg-type]  # else it pauses trials to let others catch up
        )
    rule = AsyncHyperBandScheduler(
        time_attr=EPOCH,
        metric=SCORE,
        mode=direction,
        max_t=_FAR,
        grace_period=stopping.least_epochs,  # type: ignore[arg-type]
        reduction_factor=stopping.reduction,
        # Otherwise a trial that jumps over a rung is judged there later, by scores from different epochs.
        stop_last_trials=False,
    )
    rule._brackets = [_Rungs(stopping.least_epochs, _FAR, stopping.reduction, 0, stop_last_trials=False)]  # type: ignore[arg-type]
    return rule


class _Rungs(_Bracket):
    """Ray's rungs, at which a score that ties with the cutoff goes on: rounding alone stops nobody."""

    def cutoff(self, recorded: Mapping[str, float]) -> float | None:
        """The score below which a trial ends (more is better); None where nobody has been."""
        found = super().cutoff(recorded)
        if found is None:
            return None
        cutoff = float(found)  # type: ignore[arg-type]  # scores are real
        return cutoff - _TIE * abs(cutoff)


@dataclass(frozen=True)
class _Seat:
    """What the rule knows a trial by: its cell's key, which stays when Ray Tune gives it a new id."""

    trial_id: str


class EarlyStopping(TrialScheduler):
    """A rule of Ray Tune (`AsyncHyperBandScheduler`, `MedianStoppingRule`) that hears every validation of a trial once.

    - The trials of earlier calls are told to the rule at the start (`remember`), so that its rungs and means are what they were.
    - A report at an epoch that a trial has reported before, in an earlier call or before it was restarted, is a replay: the trial
      has passed there, and goes on.
    - At its own last epoch (`EPOCHS` of its config) a trial is never stopped: it still has to save and to test.
    - A score that is NaN or infinite is worse than all others and is not told to the rule: from `least_epochs` on the trial ends,
      if any other has come that far with a finite one.
    - Ray tells a trial's last result up to three times; the rule hears it once.
    """

    def __init__(
        self, rule: FIFOScheduler, stopping: AshaStopping | MedianStopping, epochs: float, forced: Collection[str]
    ) -> None:
        """See `make_scheduler`; knows no trial yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._metric = SCORE
        self._rule = rule
        self._least = round(stopping.least_epochs, _DIGITS)
        self._last = round(epochs, _DIGITS)
        self._forced = frozenset(forced)
        self._reached: dict[_Seat, float] = {}
        self._finite: set[_Seat] = set()  # had a finite score at `least_epochs` or later

    def remember(self, past: Sequence[Past]) -> None:
        """Tell the rule what the trials of earlier calls have reported."""
        for trial in past:
            for epoch, score in trial.scores:
                self._hear(self._seat(trial.key), epoch, score)

    def on_trial_add(self, tune_controller: TuneController | None, trial: Trial) -> None:
        """A trial is there, new or one of the past."""
        self._seat(_key(trial))

    def on_trial_result(self, tune_controller: TuneController | None, trial: Trial, result: dict[str, Any]) -> str:
        """Whether a trial goes on after a validation: `TrialScheduler.CONTINUE` or `STOP`."""
        if EPOCH not in result or SCORE not in result:
            return TrialScheduler.CONTINUE
        verdict = self._hear(self._seat(_key(trial)), result[EPOCH], result[SCORE])
        last = trial.config.get(EPOCHS)
        ends_anyway = round(result[EPOCH], _DIGITS) >= (self._last if last is None else round(last, _DIGITS))
        return TrialScheduler.CONTINUE if ends_anyway or _key(trial) in self._forced else verdict

    def on_trial_complete(self, tune_controller: TuneController | None, trial: Trial, result: dict[str, Any]) -> None:
        """A trial has ended; its last result is new where something else than the rule has ended it."""
        self.on_trial_result(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: TuneController | None, trial: Trial) -> None:
        """Nothing: what it has reported still counts."""

    def on_trial_remove(self, tune_controller: TuneController | None, trial: Trial) -> None:
        """Nothing, as for an error."""

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """First come, first served (`FIFOScheduler`)."""
        return self._rule.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        """The rule's own words."""
        return str(self._rule.debug_string())

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's own state has all that trials have reported."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing either."""

    def _seat(self, key: str) -> _Seat:
        seat = _Seat(key)
        if seat not in self._reached:
            self._reached[seat] = -math.inf
            self._rule.on_trial_add(None, seat)  # type: ignore[arg-type]  # the rule looks at nothing else of a trial
        return seat

    def _hear(self, seat: _Seat, epoch: float, score: float) -> str:
        time = round(epoch, _DIGITS)
        if time <= self._reached[seat]:
            return TrialScheduler.CONTINUE
        self._reached[seat] = time
        if not math.isfinite(score):
            return TrialScheduler.STOP if time >= self._least and self._finite - {seat} else TrialScheduler.CONTINUE
        if time >= self._least:
            self._finite.add(seat)
        verdict = self._rule.on_trial_result(None, seat, {EPOCH: time + _HAIR, SCORE: score})  # type: ignore[arg-type]
        if isinstance(self._rule, MedianStoppingRule):
            self._rule._stopped_trials.discard(seat)  # it refuses to hear again of one that it would have stopped
        return verdict


def _key(trial: Trial) -> str:
    return str(trial.config.get(KEY, trial.trial_id))
