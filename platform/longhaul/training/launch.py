"""From a recipe to a training run on the Ray cluster at hand: a wrapper around `ray.train.torch.TorchTrainer`.

Resuming is the same call again: the workers find the newest checkpoint that verifies in the run directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import ray
from ray.train import (
    ControllerError,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
    WorkerGroupError,
)
from ray.train.torch import TorchConfig, TorchTrainer

from longhaul.errors import LonghaulError, UserError
from longhaul.models.zoo import check_name
from longhaul.recipe import Recipe
from longhaul.recipe.paths import refuse_relative_paths
from longhaul.resilience.lease import lease
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.training.patience import check_watched
from longhaul.training.ray_worker import train_worker
from longhaul.training.report import forget_snapshot
from longhaul.workloads import build

_POLL_S = "0.5"

TrainFunction = Callable[[dict[str, Any]], None]
"""What a worker runs: `ray_worker.train_worker`, or that with something around it."""


class StopOnPurpose(UserCallback):
    """Ends a run at once on errors that another try cannot cure, instead of spending the retries on them.

    An exception raised in `UserCallback.after_exception` ends the run with a `ControllerError` that carries it.
    """

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Ray's hook: called in the controller after workers have failed, before it decides on a retry."""
        for error in worker_exceptions.values():
            if isinstance(error, LonghaulError):
                raise error


def fit(recipe: Recipe, run: RunDirectory, train_function: TrainFunction = train_worker) -> Summary:
    """Train `recipe` in `run` on the connected Ray cluster, to the end; returns the summary.

    Args:
        recipe: what to train.
        run: its directory (`RunDirectory.prepare`); it is written to once everything has been checked.
        train_function: what each worker runs; drills and tests put faults around `train_worker`.

    Raises:
        UserError: data, model or cluster do not fit the recipe, or another driver holds the run.
        LonghaulError: the run ended for a reason that it knows (divergence, for one).
        ray.train.TrainingFailedError: workers were lost more often than `scaling.max_failures`.
    """
    check(recipe)
    gpu = _check_resources(recipe)
    run.save_recipe(recipe)
    with lease(run):
        forget_snapshot(run)
        trainer = TorchTrainer(
            train_function,
            train_loop_config={"run": run.uri},
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=recipe.scaling.workers,
                use_gpu=gpu,
                resources_per_worker={"CPU": recipe.scaling.cpus_per_worker, **({"GPU": 1.0} if gpu else {})},
            ),
            run_config=RunConfig(  # type: ignore[call-arg]  # Ray's stubs show the class of Train V1
                name=run.name,
                storage_path=run.storage.root.rsplit("/", 1)[0],
                storage_filesystem=run.storage.filesystem,
                failure_config=FailureConfig(max_failures=recipe.scaling.max_failures),
                callbacks=[StopOnPurpose()],  # type: ignore[list-item]
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
        )
        # Reports are drained once a health poll (2 s by default): a report within one poll of the last would wait.
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLL_S)
        try:
            trainer.fit()
        except TrainingFailedError as error:
            cause = _cause(error)
            _close(run, "failed", (str(cause).splitlines() or [type(cause).__name__])[0])
            raise (cause if isinstance(cause, LonghaulError) else error) from None
        except KeyboardInterrupt:
            _close(run, "stopped", "interrupted")
            raise
    return run.summary()


def check(recipe: Recipe) -> None:
    """Find the user's mistakes before anything is started or written.

    Raises:
        UserError: data, model or metrics of the recipe are not there, or not in order.
    """
    refuse_relative_paths(recipe)
    check_name(recipe.model.name)
    workload = build(recipe)
    workload.build_model()
    check_watched(recipe.training.early_stopping, workload)


def _close(run: RunDirectory, status: Literal["failed", "stopped"], reason: str) -> None:
    run.write_summary(run.summary().model_copy(update={"status": status, "error": reason}))
    run.add_event(status, reason, segment=run.summary().segment, step=run.summary().step)


def _check_resources(recipe: Recipe) -> bool:
    """Whether to take GPUs; refuses what the cluster can never give (Ray would wait for it without a word)."""
    from ray._private.state import state

    planned = state.get_max_resources_from_cluster_config() or {}  # what an autoscaler may grow the cluster to
    have = {kind: max(amount, planned.get(kind, 0)) for kind, amount in {**planned, **ray.cluster_resources()}.items()}
    scaling = recipe.scaling
    gpu = have.get("GPU", 0) >= scaling.workers if scaling.gpu == "auto" else scaling.gpu
    if recipe.training.precision == "fp16" and not gpu:
        raise UserError(
            "training.precision fp16: needs a GPU for each worker, and the cluster has fewer",
            "Set training.precision to bf16 or fp32",
        )
    needed = {"CPU": scaling.workers * scaling.cpus_per_worker, "GPU": float(scaling.workers if gpu else 0)}
    for kind, amount in needed.items():
        if amount > have.get(kind, 0):
            raise UserError(
                f"scaling: {scaling.workers} workers need {amount:g} {kind}, the cluster has {have.get(kind, 0):g}",
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
