"""Cross-validation: a run for each fold, several at a time where the cluster has room, each as resilient as any run.

Every fold is driven by a Ray task of its own (`ray.remote`), which trains by `training.on_ray.launch.fit`; nothing here trains.
The same command again goes on with what is not finished.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ray
from ray.exceptions import RayTaskError

from longhaul.errors import LonghaulError, UserError
from longhaul.recipe import Recipe, dump, parse
from longhaul.resilience.fold_report import Fold, FoldReport, load_report, save_report
from longhaul.resilience.requests import ask, asked
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.storage import Storage
from longhaul.training.on_ray.launch import check
from longhaul.workloads import build

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_PATIENCE_S = 60.0  # for folds to save and end


@dataclass(frozen=True)
class FoldRun:
    """One fold: its run, and the recipe that it trains."""

    number: int
    run: RunDirectory
    recipe: Recipe


Watch = Callable[[Sequence[tuple[FoldRun, Summary]]], None]
"""Is shown how the folds stand, about once a second."""


def prepare(recipe: Recipe, storage: str, name: str) -> list[FoldRun]:
    """A run `<name>_fold1`, `<name>_fold2` ... for each of the recipe's folds, checked; of no folds, one. Nothing is written.

    Raises:
        UserError: the recipe's data are not in order, or a fold of that name has another recipe.
    """
    count = max(recipe.data.folds, 1)
    before = load_report(_place(storage, name))
    if before is not None and len(before.folds) != count:
        problem = f"crossval {name!r}: has {len(before.folds)} folds, and this one asks for {count}"
        raise UserError(problem, "Give another --name, or the same recipe and --set as before")
    folds = []
    for number in range(1, count + 1):
        of_fold = recipe.model_copy(update={"data": recipe.data.model_copy(update={"fold": number - 1})})
        try:
            run = RunDirectory.prepare(storage, f"{name}_fold{number}", of_fold)
        except UserError as error:
            fix = "Give another --name, or the same recipe, --auto-tune and --set as before"
            raise UserError(f"crossval {name!r}: {error.problem}", fix) from None
        folds.append(FoldRun(number, run, of_fold))
    check(folds[0].recipe)  # data and model are the same in all of them
    return folds


def parallel_folds(recipe: Recipe, resources: dict[str, float]) -> int:
    """How many folds at once fit a cluster with `resources` (`ray.cluster_resources`), at least one."""
    scaling = recipe.scaling
    rooms = [resources.get("CPU", 0) / (scaling.least * scaling.cpus_per_worker)]
    if scaling.gpu is True or (scaling.gpu == "auto" and resources.get("GPU", 0) >= scaling.least):
        rooms.append(resources.get("GPU", 0) / scaling.least)
    return max(int(min(rooms)), 1)


def crossvalidate(folds: Sequence[FoldRun], storage: str, name: str, watch: Watch = lambda standing: None) -> FoldReport:
    """Train all folds on the connected Ray cluster; a fold that fails leaves the others alone.

    Interrupted, it asks the folds to save and end; the same call later goes on with them.

    Args:
        folds: from `prepare`.
        storage: where runs lie.
        name: of the whole; the report is `<storage>/<name>/crossval.json`.
        watch: see `Watch`.
    """
    goal = build(folds[0].recipe).goal
    errors: dict[int, str] = {}

    def report() -> FoldReport:
        standing = [_fold(fold, errors.get(fold.number)) for fold in folds]
        found = FoldReport(name=name, goal=f"val/{goal.metric}", direction=goal.direction, folds=standing)
        save_report(_place(storage, name), found)
        return found

    report()  # from the start on, so that whoever looks finds the runs
    waiting = [fold for fold in folds if _status(fold) != "finished"]
    at_once = parallel_folds(folds[0].recipe, ray.cluster_resources())
    going: dict[ray.ObjectRef[str | None], FoldRun] = {}
    train = ray.remote(num_cpus=0, max_retries=0)(_train)
    try:
        while waiting or going:
            while waiting and len(going) < at_once:
                fold = waiting.pop(0)
                going[train.remote(dump(fold.recipe), storage, fold.run.name)] = fold
            done, _ = ray.wait(list(going), timeout=_LOOK_S)
            for reference in done:
                fold = going.pop(reference)
                error = _outcome(reference)
                if error is not None:
                    errors[fold.number] = error
                    log.warning("fold %d failed: %s", fold.number, error)
                report()
            watch([(fold, fold.run.summary()) for fold in folds])
    except KeyboardInterrupt:
        _stop(going)
        report()
        raise
    return report()


def _stop(going: dict[ray.ObjectRef[str | None], FoldRun]) -> None:
    """Ask the folds to save and end; what has not heard after a while is cancelled, and goes on from an older checkpoint."""
    until = time.monotonic() + _PATIENCE_S
    left = list(going)
    try:
        while left and time.monotonic() < until:
            for reference in left:
                if asked(going[reference].run) is None:  # a fold that is just starting forgets what was asked before
                    ask(going[reference].run, "pause")
            _, left = ray.wait(left, num_returns=len(left), timeout=_LOOK_S)
    finally:
        for reference in left:
            ray.cancel(reference)


def _train(recipe: str, storage: str, name: str) -> str | None:
    """In a task of its own: train one fold; the error of one that failed for a reason that it knows."""
    from longhaul.training.on_ray.launch import fit

    resolved = parse(recipe, source=name)
    try:
        fit(resolved, RunDirectory.prepare(storage, name, resolved))
    except LonghaulError as error:
        return str(error)
    return None


def _outcome(reference: ray.ObjectRef[str | None]) -> str | None:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        return str(error.cause).splitlines()[0] if str(error.cause) else type(error.cause).__name__
    except ray.exceptions.RayError as error:
        return f"{type(error).__name__}: its driver was lost; the same command goes on with it"


def _place(storage: str, name: str) -> Storage:
    return Storage.open(f"{storage.rstrip('/')}/{name}")


def _status(fold: FoldRun) -> str:
    return fold.run.summary().status if fold.run.storage.exists("summary.json") else "pending"


def _fold(fold: FoldRun, error: str | None) -> Fold:
    summary = fold.run.summary()
    return Fold(
        number=fold.number,
        run=fold.run.name,
        status=_status(fold) if error is None else "failed",
        best=summary.best,
        best_step=summary.best_step,
        results=summary.results,
        error=error or summary.error,
    )
