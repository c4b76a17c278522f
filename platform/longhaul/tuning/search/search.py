"""What to train next: configurations drawn from a space, at random or by what the trials before have shown.

Optuna's samplers (`optuna.samplers.RandomSampler`, `TPESampler`) draw; its study is built anew from the trials for every draw.
So a draw depends on nothing but the section, the trials so far and their order, and a sweep that was killed goes on with what it
would have drawn. Ray's `ray.tune.search.optuna.OptunaSearch`, which holds a study of its own, runs with Optuna 5.0 but cannot
take up trials that still run, repeats configurations, leaves a trial that ends with NaN open for ever, and takes one that was
stopped early for one that has finished.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.search import Searcher

from longhaul.recipe.sweep import SearchSection
from longhaul.tuning.history import EPOCH, SCORE, Direction, Ended, Past, identity
from longhaul.tuning.search.space import SearchSpace

log = logging.getLogger(__name__)

_ATTEMPTS = 20  # at a configuration that was not drawn before, until the next free one is taken
_STEPS_PER_EPOCH = 1000  # Optuna counts in whole steps


def make_searcher(search: SearchSection, direction: Direction, past: Sequence[Past]) -> SweepSearcher:
    """A searcher that knows the trials of earlier calls, in the order in which they were drawn.

    Args:
        search: kind, space, seed and number of trials, those of `past` included.
        direction: whether a high score is good or a low one.
        past: all trials so far; those that are `running` go by their key in place of a trial's id.
    """
    return SweepSearcher(search, direction, past)


class SweepSearcher(Searcher):
    """A searcher of Ray Tune (`ray.tune.search.Searcher`) that draws by `draw` and holds nothing but the trials."""

    def __init__(self, search: SearchSection, direction: Direction, past: Sequence[Past]) -> None:
        """See `make_searcher`."""
        super().__init__(metric=SCORE, mode=direction)
        self._search = search
        self._direction: Direction = direction
        self._trials = {trial.key: trial for trial in past}

    @property
    def trials(self) -> list[Past]:
        """All trials as far as they are known, in the order in which they were drawn."""
        return list(self._trials.values())

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]  # Ray's own has no FINISHED
        """Coordinates of one more trial, which goes by `trial_id` from now on; `Searcher.FINISHED` when there are enough."""
        coordinates = draw(self._search, self._direction, self.trials)
        if coordinates is None:
            return str(Searcher.FINISHED)
        self._trials[trial_id] = Past(coordinates, [], "running", trial_id)
        return coordinates

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Take note of a validation (`epoch`, `score`); one at an epoch that was reported before replaces that.

        Raises:
            KeyError: no trial goes by that id.
        """
        trial = self._trials[trial_id]
        if EPOCH in result and SCORE in result:
            scores = dict(trial.scores) | {float(result[EPOCH]): float(result[SCORE])}
            self._trials[trial_id] = dataclasses.replace(trial, scores=sorted(scores.items()))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial has ended: with an error, or as `result["ended"]` says (`history.Ended`), or, where it says nothing, finished.

        Raises:
            KeyError: no trial goes by that id.
        """
        self.on_trial_result(trial_id, result or {})
        ended: Ended = "failed" if error else (result or {}).get("ended", "finished")
        self._trials[trial_id] = dataclasses.replace(self._trials[trial_id], ended=ended)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's own state has all trials."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing either."""


def draw(search: SearchSection, direction: Direction, trials: Sequence[Past]) -> dict[str, Any] | None:
    """Coordinates that none of `trials` had; None if these are as many as `search` asks for, or all that there are.

    The same arguments always give the same draw. Trials outside the space, from before it was changed, count but teach nothing.
    """
    space = SearchSpace.of(search)
    known = [(parameters, trial) for trial in trials if (parameters := space.parameters(trial.coordinates)) is not None]
    taken = {identity(parameters) for parameters, _ in known}
    if len(trials) >= search.trials or (space.size is not None and len(taken) >= space.size):
        return None
    study = _study(space, direction, known)
    for attempt in range(_ATTEMPTS):
        study.sampler = _sampler(search, _seed(search.seed, len(trials), attempt))
        parameters = study.ask(space.distributions).params
        if identity(parameters) not in taken:
            return space.coordinates(parameters)
    return _next_free(space, taken, _seed(search.seed, len(trials), _ATTEMPTS))


def _study(space: SearchSpace, direction: Direction, known: Sequence[tuple[dict[str, Any], Past]]) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it announces every study
    study = optuna.create_study(direction="maximize" if direction == "max" else "minimize")
    distributions = space.distributions
    study.add_trials([_frozen(parameters, distributions, trial) for parameters, trial in known])
    return study


def _frozen(parameters: dict[str, Any], distributions: dict[str, Any], trial: Past) -> FrozenTrial:
    """A trial as Optuna knows it.

    One that was stopped is `PRUNED`: TPE ranks those below the finished ones, by how far they came. So is one that failed, or
    never had a finite score, but without a value, which is the worst of all: most likely its configuration is to blame, and the
    search should keep away. As `FAIL`, Optuna would forget it.
    """
    if trial.ended == "running":
        return create_trial(state=TrialState.RUNNING, params=parameters, distributions=distributions)
    if trial.ended == "finished" and trial.score is not None:
        return create_trial(state=TrialState.COMPLETE, value=trial.score, params=parameters, distributions=distributions)
    came_to = None if trial.ended == "failed" else trial.score
    reached = {} if came_to is None else {math.ceil(trial.reached * _STEPS_PER_EPOCH): came_to}
    return create_trial(state=TrialState.PRUNED, params=parameters, distributions=distributions, intermediate_values=reached)


def _sampler(search: SearchSection, seed: int) -> BaseSampler:
    if search.kind == "random":
        return RandomSampler(seed=seed)
    # Multivariate, since fields such as learning rate and weight decay act together (BOHB, Falkner et al., 2018). With the
    # constant liar, running trials count as bad ones, so that those that run at the same time do not crowd at one place.
    return TPESampler(seed=seed, n_startup_trials=search.startup, multivariate=True, constant_liar=True)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _next_free(space: SearchSpace, taken: set[str], seed: int) -> dict[str, Any] | None:
    """The first configuration of a finite space that is not taken, from a place that `seed` decides; None in an infinite one."""
    if space.size is None:
        return None
    for offset in range(len(taken) + 1):
        parameters = space.nth((seed + offset) % space.size)
        if identity(parameters) not in taken:
            return space.coordinates(parameters)
    return None
