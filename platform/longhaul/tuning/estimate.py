"""How long a training will take, from steps that were timed on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from longhaul.data.loader import batches
from longhaul.recipe import Recipe
from longhaul.training.engine.engine import autocast, to_device
from longhaul.workloads import build

_STEPS = 3  # timed, after one that warms up; the fastest counts, as all that disturbs makes slower


@dataclass(frozen=True)
class Cost:
    """Seconds a sample on one worker, and how many samples there are.

    Attributes:
        train_s, measure_s: forward and backward; forward and metrics.
        train, validation: samples in these splits.
        device: where it was timed.
    """

    train_s: float
    measure_s: float
    train: int
    validation: int
    device: str

    def total_s(self, epochs: float, *, folds: int, workers: int, parallel: int) -> float:
        """Seconds for all folds (0 or 1: one run), `parallel` at a time, each on `workers` workers."""
        epoch_s = (self.train * self.train_s + self.validation * self.measure_s) / workers
        return math.ceil(max(folds, 1) / max(parallel, 1)) * epochs * epoch_s


def measure_cost(recipe: Recipe) -> Cost:
    """Time a few steps of the recipe's model on its own data, on this machine's GPU or as many CPU cores as a worker has.

    Raises:
        UserError: the recipe's data or model are not there, or not in order.
    """
    workload = build(recipe)
    device = torch.device("cuda" if torch.cuda.is_available() and recipe.scaling.gpu is not False else "cpu")
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(max(math.floor(recipe.scaling.cpus_per_worker), 1))
    try:
        model = workload.build_model(initial=False).to(device).train()
        size = min(recipe.training.micro_batch, len(workload.splits.train))
        batch = to_device(next(batches(workload.splits.train, size)), device)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

        def train() -> None:
            with autocast(recipe.training.precision, device):
                loss = workload.loss(model, batch)
            torch.autograd.grad(loss, parameters, allow_unused=True)

        @torch.no_grad()
        def measure() -> None:
            with autocast(recipe.training.precision, device):
                workload.measure(model, batch, workload.metrics().to(device))

        train_s = _fastest(train, device)
        model.eval()
        measure_s = _fastest(measure, device)
    finally:
        torch.set_num_threads(threads)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {recipe.scaling.cpus_per_worker:g} cores"
    return Cost(train_s / size, measure_s / size, len(workload.splits.train), len(workload.splits.validation), name)


def _fastest(call: Callable[[], None], device: torch.device) -> float:
    taken = []
    for _ in range(1 + _STEPS):
        since = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - since)
    return min(taken[1:])
