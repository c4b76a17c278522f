"""From a recipe to a training run on the Ray cluster at hand: a wrapper around `ray.train.torch.TorchTrainer`.

Resuming is the same call again: the workers find the newest checkpoint that verifies in the run directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ray.train import ControllerError, LoggingConfig, Result, RunConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from longhaul.errors import LonghaulError, UserError
from longhaul.models.zoo import check_name
from longhaul.recipe import Recipe
from longhaul.recipe.paths import refuse_relative_paths
from longhaul.recipe.phases import resolve
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.training.driving import driving
from longhaul.training.on_ray.capacity import obtainable
from longhaul.training.on_ray.elastic import START_TIMEOUT_S, scaling_config, scaling_policy
from longhaul.training.on_ray.failures import DriverLedger, RunFailurePolicy, ended_by
from longhaul.training.on_ray.ray_worker import train_worker
from longhaul.training.on_ray.report import rebuild_snapshot
from longhaul.training.patience import check_watched
from longhaul.workloads import build

_POLL_S = "0.5"

TrainFunction = Callable[[dict[str, Any]], None]
"""What a worker runs: `ray_worker.train_worker`, or that with something around it."""


class RunTrainer(TorchTrainer):
    """`TorchTrainer` with this run's own scaling and failure policies in its controller.

    Ray Train builds both from its configuration, in `DataParallelTrainer.fit`; there is no public way to give others.
    """

    def __init__(self, recipe: Recipe, run: RunDirectory, train_function: TrainFunction, gpu: bool) -> None:
        self._recipe, self._run = recipe, run
        self._scaling = scaling_config(recipe.scaling, gpu)
        super().__init__(
            train_function,
            train_loop_config={"run": run.uri},
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            scaling_config=self._scaling,
            run_config=RunConfig(  # type: ignore[call-arg]
                name=run.name,
                storage_path=run.storage.root.rsplit("/", 1)[0],
                storage_filesystem=run.storage.filesystem,
                callbacks=[DriverLedger(run.uri)],  # type: ignore[list-item]
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
        )

    def _initialize_and_run_controller(self, **controller: Any) -> Result:  # Ray's signature
        controller["scaling_policy"] = scaling_policy(self._recipe, self._run, self._scaling)
        controller["failure_policy"] = RunFailurePolicy(self._run.uri, self._recipe.resilience.budgets)
        return super()._initialize_and_run_controller(**controller)  # type: ignore[misc, no-any-return]


def fit(recipe: Recipe, run: RunDirectory, train_function: TrainFunction = train_worker, owner: str | None = None) -> Summary:
    """Train `recipe` in `run` on the connected Ray cluster, to the end or to a request to stop; returns the summary.

    Args:
        recipe: what to train.
        run: its directory (`RunDirectory.prepare`); it is written to once everything has been checked.
        train_function: what each worker runs; drills and tests put faults around `train_worker`.
        owner: on whose behalf (`resilience.lease`).

    Raises:
        UserError: data, model or cluster do not fit the recipe, or another driver holds the run.
        LonghaulError: the run ended for a reason that it knows (divergence, for one).
        ray.train.TrainingFailedError: workers were lost more often than `resilience.budgets` allow.
    """
    check(recipe)
    gpu = _check_resources(recipe)
    with driving(recipe, run, owner):
        rebuild_snapshot(run)
        # Reports are drained once a health poll (2 s by default): a report within one poll of the last would wait.
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLL_S)
        if recipe.scaling.elastic:
            os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_TIMEOUT_S))
        try:
            RunTrainer(recipe, run, train_function, gpu).fit()
        except TrainingFailedError as error:
            cause = _cause(error)
            cause = cause if isinstance(cause, LonghaulError) else ended_by(run) or cause
            if isinstance(cause, LonghaulError):
                raise cause from None
            raise error from (cause if cause is not error else None)
    return run.summary()


def check(recipe: Recipe) -> None:
    """Find the user's mistakes before anything is started or written.

    Raises:
        UserError: data, model or metrics of the recipe are not there, or not in order.
    """
    check_name(recipe.model.name)
    for place, of_phase in enumerate(resolve(recipe)):
        refuse_relative_paths(of_phase)
        workload = build(of_phase)
        workload.build_model()
        check_watched(of_phase.training.early_stopping, workload)
        gate = recipe.phases[place].gate if recipe.phases else None
        measured = [f"val/{name}" for name in workload.metric_names]
        if gate is not None and gate.metric not in measured:
            fix = f"Give one of {', '.join(measured)}"
            raise UserError(f"phases[{place}].gate.metric {gate.metric!r}: is not measured", fix)


def _check_resources(recipe: Recipe) -> bool:
    """Whether to take GPUs; refuses what the cluster can never give (Ray would wait for it without a word)."""
    have = obtainable()
    scaling = recipe.scaling
    gpu = have.get("GPU", 0) >= scaling.least if scaling.gpu == "auto" else scaling.gpu
    if recipe.training.precision == "fp16" and not gpu:
        raise UserError(
            "training.precision fp16: needs a GPU for each worker, and the cluster has fewer",
            "Set training.precision to bf16 or fp32",
        )
    needed = {"CPU": scaling.least * scaling.cpus_per_worker, "GPU": float(scaling.least if gpu else 0)}
    for kind, amount in needed.items():
        if amount > have.get(kind, 0):
            raise UserError(
                f"scaling: {scaling.least} workers need {amount:g} {kind}, the cluster has {have.get(kind, 0):g}",
                "Lower scaling.workers or scaling.cpus_per_worker, or add nodes",
            )
    return gpu


def _cause(error: TrainingFailedError) -> Exception:
    if isinstance(error, ControllerError):
        return error.controller_failure
    if isinstance(error, WorkerGroupError):
        known = [failure for failure in error.worker_failures.values() if isinstance(failure, LonghaulError)]
        return known[0] if known else error
    return error
