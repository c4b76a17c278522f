"""Cross-validation: a run for each fold, several at a time where the cluster has room, each as resilient as any run.

Every fold is driven by a Ray task of its own (`ray.remote`), which trains by `training.launch.fit`; nothing here trains. The
same command again goes on with what is not finished.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ray
from ray.exceptions import RayTaskError

from longhaul.errors import LonghaulError, UserError
from longhaul.recipe import Recipe, dump, parse
from longhaul.resilience.fold_report import Fold, FoldReport, load_report, save_report
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.storage import Storage
from longhaul.training.launch import check
from longhaul.workloads import Goal, build

log = logging.getLogger(__name__)

_LOOK_S = 1.0


@dataclass(frozen=True)
class FoldRun:
    """One fold: its run, and the recipe that it trains."""

    number: int
    run: RunDirectory
    recipe: Recipe


Watch = Callable[[Sequence[tuple[FoldRun, Summary]]], None]
"""Is shown how the folds stand, about once a second."""


def fold_runs(recipe: Recipe, storage: str, name: str) -> list[FoldRun]:
    """A run `<name>_fold1`, `<name>_fold2` ... for each of the recipe's folds; of no folds, one run.

    Raises:
        UserError: the recipe's data have no folds, or a run of that name has another recipe.
    """
    if recipe.data.kind != "spectrograms":
        raise UserError(
            f"data.kind {recipe.data.kind}: has no recordings to deal into folds", "Give a recipe of tiles (spectrograms)"
        )
    runs = []
    for fold in range(max(recipe.data.folds, 1)):
        data = recipe.data.model_copy(update={"fold": fold})
        of_fold = recipe.model_copy(update={"data": data})
        runs.append(FoldRun(fold + 1, RunDirectory.prepare(storage, f"{name}_fold{fold + 1}", of_fold), of_fold))
    return runs


def parallel_folds(recipe: Recipe, resources: dict[str, float]) -> int:
    """How many folds at once fit a cluster with `resources` (`ray.cluster_resources`), at least one."""
    scaling = recipe.scaling
    rooms = [resources.get("CPU", 0) / (scaling.least * scaling.cpus_per_worker)]
    if scaling.gpu is True or (scaling.gpu == "auto" and resources.get("GPU", 0) >= scaling.least):
        rooms.append(resources.get("GPU", 0) / scaling.least)
    return max(int(min(rooms)), 1)


def crossvalidate(recipe: Recipe, storage: str, name: str, watch: Watch = lambda standing: None) -> FoldReport:
    """Train all folds on the connected Ray cluster; a fold that fails leaves the others alone.

    Args:
        recipe: with `data.folds`.
        storage: where runs lie.
        name: of the whole; the report is `<storage>/<name>/crossval.json`.
        watch: see `Watch`.

    Raises:
        UserError: data or recipe are not in order: found before anything starts.
    """
    place = Storage.open(f"{storage.rstrip('/')}/{name}")
    _check_folds(place, name, recipe)
    folds = fold_runs(recipe, storage, name)
    for fold in folds:
        check(fold.recipe)
    goal = build(folds[0].recipe).goal
    _note_folds(place, name, goal, folds)
    waiting = [fold for fold in folds if fold.run.summary().status != "finished"]
    at_once = parallel_folds(recipe, ray.cluster_resources())
    going: dict[ray.ObjectRef[str | None], FoldRun] = {}
    errors: dict[int, str] = {}
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
            watch([(fold, fold.run.summary()) for fold in folds])
    finally:
        for reference in going:
            ray.cancel(reference)  # raises KeyboardInterrupt in the task, which closes its run
        if going:
            ray.wait(list(going), num_returns=len(going), timeout=30)
    report = FoldReport(
        name=name,
        goal=f"val/{goal.metric}",
        direction=goal.direction,
        folds=[_fold(fold, errors.get(fold.number)) for fold in folds],
    )
    save_report(place, report)
    return report


def _train(recipe: str, storage: str, name: str) -> str | None:
    """In a task of its own: train one fold; the error of one that failed for a reason that it knows."""
    from longhaul.training.launch import fit

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


def _fold(fold: FoldRun, error: str | None) -> Fold:
    summary = fold.run.summary()
    return Fold(
        number=fold.number,
        run=fold.run.name,
        status=summary.status if error is None else "failed",
        best=summary.best,
        best_step=summary.best_step,
        results=summary.results,
        error=error or summary.error,
    )


def _check_folds(place: Storage, name: str, recipe: Recipe) -> None:
    before, asked = load_report(place), max(getattr(recipe.data, "folds", 0), 1)
    if before is not None and len(before.folds) != asked:
        problem = f"crossval {name!r}: has {len(before.folds)} folds, and the recipe asks for {asked}"
        raise UserError(problem, "Give another --name, or data.folds as it was")


def _note_folds(place: Storage, name: str, goal: Goal, folds: Sequence[FoldRun]) -> None:
    """The report from the start on, so that whoever looks finds the runs."""
    if load_report(place) is None:
        standing = [Fold(number=fold.number, run=fold.run.name, status="pending") for fold in folds]
        save_report(place, FoldReport(name=name, goal=f"val/{goal.metric}", direction=goal.direction, folds=standing))
