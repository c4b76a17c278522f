"""A sweep, trained: a wrapper around `ray.tune.Tuner`.

Each call makes a new Tuner: nothing of Tune's own outlives it (no `Tuner.restore`), because all that counts lies in the sweep's
directory and in the cells' run directories. So a sweep that was killed, changed or extended is the same call again.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import ray
from ray import tune

from longhaul.recipe import parse
from longhaul.recipe.sweep import NoStopping, PbtStopping
from longhaul.resilience.lease import lease
from longhaul.resilience.run_directory import RunDirectory
from longhaul.resilience.sweep_directory import CellRecord, SweepState
from longhaul.training.loop import Trainer
from longhaul.tuning.board import Board, Watch, sign
from longhaul.tuning.budget import Budget
from longhaul.tuning.cells import FOLD
from longhaul.tuning.planners import GridPlan, SearchPlan, pasts, points
from longhaul.tuning.population import run_population
from longhaul.tuning.resources import parallel_trials, trial_resources
from longhaul.tuning.results import results_table
from longhaul.tuning.search import make_searcher
from longhaul.tuning.stopping import make_scheduler
from longhaul.tuning.sweep_plan import SweepPlan
from longhaul.tuning.trial import CellOrder, TrialOrder, placement, train_trial
from longhaul.tuning.trial_source import Planner, TrialSource
from longhaul.tuning.tuner import STOPPED, folder, scratch, settings, stoppable

_MOST_TRIALS = 10**6
_ATTEMPTS = 3  # of a trial whose process dies, such as on a node that is taken away


def run(planned: SweepPlan, watch: Watch = lambda state: None, trainer: type[Trainer] = Trainer) -> SweepState:
    """Train what is open, on the connected Ray cluster; returns where the sweep stands then.

    On Ctrl-C, or when the budget is spent, no more cells begin, and those that train save and end; the same call goes on with
    them.

    Args:
        planned: from `sweep_plan.plan`.
        watch: see `board.Watch`.
        trainer: tests write down what theirs does.

    Raises:
        UserError: another call runs this sweep.
        KeyboardInterrupt: after Ctrl-C, when all has ended in order.
    """
    with lease(RunDirectory(planned.directory.storage)):
        planned.directory.save(planned.sweep, planned.state)
        board = Board(planned.directory, planned.sweep, planned.state, watch)
        for label in planned.gone:
            board.note(f"{label}: is no cell of the sweep any more; its run stays where it is")
        try:
            if isinstance(planned.sweep.stopping, PbtStopping):
                run_population(planned, board, trainer)
            elif any(record.open for record in board.state.cells) or planned.sweep.search is not None:
                _tune(planned, board, trainer)
        finally:
            board.changed(now=True)
            planned.directory.save_table(results_table(planned.directory, board.state))
    return board.state


def _tune(planned: SweepPlan, board: Board, trainer: type[Trainer]) -> None:
    sweep, state, directory = planned.sweep, board.state, planned.directory
    cluster = ray.cluster_resources()
    groups = points(state.cells) if sweep.search is not None else [[record] for record in state.cells]
    known = pasts(groups, state.direction)
    planner: Planner
    if sweep.search is None:
        planner = GridPlan(board, sweep.pruning)
    else:
        searcher = make_searcher(sweep.search, state.direction, known)
        planner = SearchPlan(board, planned, searcher)
    folds = sweep.folds if sweep.search is not None and sweep.folds else 1
    forced = [record.key for record in state.cells if record.forced]
    scheduler = make_scheduler(
        sweep.stopping, state.direction, folds * planned.epochs, [one for one in known if one.scores], forced
    )
    order = functools.partial(_order, planned, cluster)
    why = f"stopped early by {sweep.stopping.kind}"
    if isinstance(sweep.stopping, NoStopping):
        why = "paused by request; the same command goes on with it"
    source = TrialSource(board, planner, Budget(sweep.budget), order, why)
    source.look()
    if source.ending is not None:  # an earlier call has spent the budget
        return
    with settings(), stoppable(source), scratch(directory.storage) as name:
        try:
            tune.Tuner(
                tune.with_resources(functools.partial(train_trial, trainer=trainer), placement),
                tune_config=tune.TuneConfig(
                    search_alg=source,
                    scheduler=scheduler,
                    num_samples=_MOST_TRIALS,
                    reuse_actors=True,  # a new process takes seconds to import torch
                    trial_name_creator=folder,
                    trial_dirname_creator=folder,
                    max_concurrent_trials=parallel_trials(planned.example, sweep.resources, cluster),
                ),
                run_config=tune.RunConfig(
                    name=name,
                    storage_path=directory.storage.root,
                    storage_filesystem=directory.storage.filesystem,
                    callbacks=[_Look(source)],
                    failure_config=tune.FailureConfig(max_failures=_ATTEMPTS),
                    verbose=0,
                ),
            ).fit()
        finally:
            for record in state.cells:
                if record.standing == "running":
                    board.ended(record, None, error=True)
    if source.ending == STOPPED:
        raise KeyboardInterrupt


def _order(planned: SweepPlan, cluster: dict[str, float], records: Sequence[CellRecord]) -> TrialOrder:
    directory = planned.directory
    for record in records:
        if record.key in planned.cells:
            sign(directory, planned.cells[record.key])
    return TrialOrder(
        key=records[0].key,
        cells=tuple(CellOrder(key=one.key, recipe=one.recipe, run=directory.run(one.key).uri) for one in records),
        resources=trial_resources(parse(records[0].recipe), planned.sweep.resources, records[0].gpus, cluster),
        coordinates={path: value for path, value in records[0].coordinates.items() if len(records) == 1 or path != FOLD},
    )


class _Look(tune.Callback):
    """Lets the source look at the budget, and at whether somebody wants an end, whatever the trials do."""

    def __init__(self, source: TrialSource) -> None:
        self._source = source

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune's hook, several times a second."""
        self._source.look()
