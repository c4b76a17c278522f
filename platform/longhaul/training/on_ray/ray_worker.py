"""What every Ray Train worker runs: find its place, build the workload, train."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import ray.train
import ray.train.torch
import ray.train.v2._internal.execution.context
import torch

from longhaul.recipe import Recipe
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.loop import Trainer
from longhaul.training.on_ray.preemption import notice
from longhaul.training.on_ray.report import report_checkpoint
from longhaul.training.phases import Phases
from longhaul.training.ranks import Ranks
from longhaul.training.stage import Stage
from longhaul.workloads import Workload, build

log = logging.getLogger(__name__)

_PATIENCE_S = 600.0

Dress = Callable[[Workload, Ranks, RunDirectory], Workload]
"""Puts something around the real workload: faults, in drills and tests."""


def train_worker(config: dict[str, Any], dress: Dress | None = None, trainer: type[Trainer] = Trainer) -> None:
    """The train function for `ray.train.torch.TorchTrainer`.

    Args:
        config: `run`: address of the run directory, which holds the recipe.
        dress: put around the workload.
        trainer: drills write down what theirs reads.
    """
    logging.getLogger("longhaul").setLevel(logging.INFO)
    # One line a rank and checkpoint with all its metrics; `LoggingConfig` misses it, as this logger is named by its file.
    logging.getLogger(ray.train.v2._internal.execution.context.__file__).setLevel(logging.WARNING)
    run, recipe = _opened(config["run"])
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(math.floor(recipe.scaling.cpus_per_worker), 1))
    ranks = Ranks(context.get_world_rank(), context.get_world_size(), device)

    def of_phase(recipe: Recipe, stage: Stage) -> Trainer:
        workload = build(recipe) if dress is None else dress(build(recipe), ranks, run)
        return trainer(recipe, workload, run, ranks, partial(report_checkpoint, run), notice, stage)

    Phases(recipe, run, ranks, of_phase).train()


def _opened(uri: str) -> tuple[RunDirectory, Recipe]:
    """The run; storage that is away for some minutes is waited for, as each restart would only meet it again."""
    begin_s, pause_s = time.monotonic(), 1.0
    while True:
        try:
            run = RunDirectory.open(uri)
            return run, run.recipe()
        except OSError as error:
            if time.monotonic() - begin_s > _PATIENCE_S:
                raise
            log.warning("the run directory cannot be read now, tried again in %.0f s: %s", pause_s, error)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 30.0)
