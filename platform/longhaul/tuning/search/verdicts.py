"""A rule of early stopping that asks instead of ending: what it has decided reaches the run as a request to pause.

Ray Tune does not wait for a function that it stops: the process may be killed while it saves. So Tune hears that every trial
goes on, and the trial itself finds the request in its run's directory before it trains another step, saves, and ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

Condemn = Callable[[str, dict[str, Any]], None]
"""Told the id of a trial that shall end, and its last result."""


class Verdicts(TrialScheduler):
    """`rule`, whose word to stop a trial goes to `condemn` instead of to Tune."""

    def __init__(self, rule: TrialScheduler, condemn: Condemn) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._metric = "score"
        self._rule, self._condemn = rule, condemn

    def on_trial_add(self, tune_controller: TuneController | None, trial: Trial) -> None:
        """The rule's."""
        self._rule.on_trial_add(tune_controller, trial)  # type: ignore[arg-type]

    def on_trial_result(self, tune_controller: TuneController | None, trial: Trial, result: dict[str, Any]) -> str:
        """Always `CONTINUE`; see the module."""
        if self._rule.on_trial_result(tune_controller, trial, result) == TrialScheduler.STOP:  # type: ignore[arg-type]
            self._condemn(trial.trial_id, result)
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: TuneController | None, trial: Trial, result: dict[str, Any]) -> None:
        """The rule's."""
        self._rule.on_trial_complete(tune_controller, trial, result)  # type: ignore[arg-type]

    def on_trial_error(self, tune_controller: TuneController | None, trial: Trial) -> None:
        """The rule's."""
        self._rule.on_trial_error(tune_controller, trial)  # type: ignore[arg-type]

    def on_trial_remove(self, tune_controller: TuneController | None, trial: Trial) -> None:
        """The rule's."""
        self._rule.on_trial_remove(tune_controller, trial)  # type: ignore[arg-type]

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """The rule's."""
        return self._rule.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        """The rule's."""
        return str(self._rule.debug_string())

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's own state has all that trials have reported."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing either."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its scheduler into the experiment's folder, for a restore that is not wanted here."""
        return {}
