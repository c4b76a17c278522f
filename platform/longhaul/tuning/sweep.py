"""A sweep, trained: a wrapper around `ray.tune.Tuner`.

Each call makes a new Tuner: nothing of Tune's own outlives it (no `Tuner.restore`), because all that counts lies in the sweep's
directory and in the cells' run directories. So a sweep that was killed, changed or extended is the same call again.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Sequence
from typing import Any

from ray import tune

from longhaul.errors import UserError
from longhaul.recipe import parse
from longhaul.recipe.sweep import PbtStopping
from longhaul.resilience.lease import Lease, lease
from longhaul.resilience.requests import answered
from longhaul.resilience.run_directory import RunDirectory
from longhaul.resilience.sweep_directory import CellRecord, SweepState
from longhaul.training.loop import Trainer
from longhaul.training.on_ray.capacity import obtainable
from longhaul.tuning.board import Board, Watch, sign
from longhaul.tuning.budget import Budget
from longhaul.tuning.cells.cells import FOLD
from longhaul.tuning.planners import GridPlan, SearchPlan, pasts, points, with_refused
from longhaul.tuning.population.population import run_population
from longhaul.tuning.results import results_table
from longhaul.tuning.search.search import make_searcher
from longhaul.tuning.search.stopping import make_scheduler
from longhaul.tuning.search.verdicts import Verdicts
from longhaul.tuning.shared_storage import check_shared
from longhaul.tuning.sizing.resources import charged_resources, parallel_trials, trial_resources
from longhaul.tuning.sweep_plan import SweepPlan
from longhaul.tuning.trial import CellOrder, TrialOrder, placement, train_trial
from longhaul.tuning.trial_source import Planner, TrialSource
from longhaul.tuning.tuner import STOPPED, folder, scratch, settings, stoppable

log = logging.getLogger(__name__)

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
        UserError: another call runs this sweep, or has run it since it was planned; or not all nodes see the storage.
        KeyboardInterrupt: after Ctrl-C, when all has ended in order.
    """
    with lease(RunDirectory(planned.directory.storage)) as held:
        _refuse_what_is_stale(planned)
        planned.directory.save(planned.sweep, planned.state)
        board = Board(planned.directory, planned.sweep, planned.state, watch)
        for label in planned.gone:
            board.note(f"{label}: is no cell of the sweep any more; its run stays where it is")
        by_population = isinstance(planned.sweep.stopping, PbtStopping)
        trains = by_population or planned.sweep.search is not None or any(record.open for record in board.state.cells)
        try:
            if trains:
                check_shared(planned.directory.storage)
            if by_population:
                run_population(planned, board, trainer)
            elif trains:
                _tune(planned, board, trainer, held)
        finally:
            board.close()
            planned.directory.save_table(results_table(planned.directory, board.state))
    return board.state


def _refuse_what_is_stale(planned: SweepPlan) -> None:
    """What another call has come to after this one was planned would be written over, and trained again."""
    directory = planned.directory
    now = directory.state().model_dump_json() if directory.exists else None
    if now != planned.read:
        problem = f"sweep {directory.storage.uri}: another call has changed it since this one looked at it"
        raise UserError(problem, "Run the same command again")


def _tune(planned: SweepPlan, board: Board, trainer: type[Trainer], held: Lease) -> None:
    sweep, state, directory = planned.sweep, board.state, planned.directory
    cluster = obtainable()
    groups = points(state.cells) if sweep.search is not None else [[record] for record in state.cells]
    known = pasts(groups, state.direction)
    planner: Planner
    if sweep.search is None:
        planner = GridPlan(board, sweep.pruning)
    else:
        searcher = make_searcher(sweep.search, state.direction, with_refused(known, state.refused))
        planner = SearchPlan(board, planned, searcher)
    folds = sweep.folds if sweep.search is not None and sweep.folds else 1
    forced = [record.key for record in state.cells if record.forced]
    scheduler = make_scheduler(
        sweep.stopping, state.direction, folds * planned.epochs, [one for one in known if one.scores], forced
    )
    order = functools.partial(_order, planned, cluster)
    answered(RunDirectory(directory.storage))  # what a killed call has asked of its trials
    source = TrialSource(board, planner, Budget(sweep.budget), order, f"stopped early by {sweep.stopping.kind}")
    source.look()
    if source.ending is not None:  # an earlier call has spent the budget
        return
    with settings(), stoppable(source), scratch(directory.storage) as name:
        try:
            tune.Tuner(
                tune.with_resources(functools.partial(train_trial, trainer=trainer), placement),
                tune_config=tune.TuneConfig(
                    search_alg=source,
                    scheduler=Verdicts(scheduler, source.condemn),
                    num_samples=_MOST_TRIALS,
                    reuse_actors=True,  # a new process takes seconds to import torch
                    trial_name_creator=folder,
                    trial_dirname_creator=folder,
                    max_concurrent_trials=min(parallel_trials(recipe, sweep.resources, cluster) for recipe in planned.recipes),
                ),
                run_config=tune.RunConfig(
                    name=name,
                    storage_path=directory.storage.root,
                    storage_filesystem=directory.storage.filesystem,
                    callbacks=[_Look(source, held)],
                    failure_config=tune.FailureConfig(max_failures=_ATTEMPTS),
                    verbose=0,
                ),
            ).fit()
        finally:
            _close(board, source)
    if source.ending == STOPPED:
        raise KeyboardInterrupt


def _close(board: Board, source: TrialSource) -> None:
    """Nothing trains any more."""
    source.settle()
    for record in board.state.cells:
        if record.standing == "running":
            try:
                board.ended(record, None, error=False)  # what has ended `fit` is not its fault
            except OSError as error:
                log.warning("cell %s: %s", record.key, error)
                record.standing = "planned"
    try:
        answered(RunDirectory(board.directory.storage))
    except OSError as error:  # the next call takes it away
        log.warning("%s: %s", board.directory.storage.uri, error)


def _order(planned: SweepPlan, cluster: dict[str, float], records: Sequence[CellRecord]) -> TrialOrder:
    directory = planned.directory
    for record in records:
        if record.key in planned.cells:
            with contextlib.suppress(OSError):  # of a cell without it nobody knows what has changed since; no more
                sign(directory, planned.cells[record.key])
    recipe = parse(records[0].recipe)
    return TrialOrder(
        key=records[0].key,
        cells=tuple(CellOrder(key=one.key, recipe=one.recipe, run=directory.run(one.key).uri) for one in records),
        resources=trial_resources(recipe, planned.sweep.resources, records[0].gpus, cluster),
        coordinates={path: value for path, value in records[0].coordinates.items() if len(records) == 1 or path != FOLD},
        epochs=sum(planned.epochs_of(record) for record in records),
        charged=charged_resources(recipe, cluster),
        sweep=directory.storage.uri,
    )


class _Look(tune.Callback):
    """Lets the source look at the budget, and at whether somebody wants an end, whatever the trials do."""

    def __init__(self, source: TrialSource, held: Lease) -> None:
        self._source, self._held = source, held

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune's hook, several times a second."""
        self._held.check()
        self._source.look()

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its callbacks into the experiment's folder, for a restore that is not wanted here."""
        return {}
