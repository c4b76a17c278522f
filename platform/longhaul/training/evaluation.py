"""Measuring a model on a split, all ranks sharing the work."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torchmetrics import MetricCollection

from longhaul.data.loader import batches
from longhaul.data.samples import Batch, SampleSet
from longhaul.recipe import Recipe
from longhaul.training.engine.engine import autocast, to_device
from longhaul.training.ranks import Ranks
from longhaul.workloads import Workload


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one split.

    Attributes:
        scalars: by name.
        confusion: true class by row, predicted by column, where the task has classes; else None.
        classes: their names.
        curves: for each class precision at recall 0, 0.01 ... 1, where the task has such; else None.
    """

    scalars: dict[str, float]
    confusion: list[list[int]] | None
    classes: tuple[str, ...]
    curves: list[list[float]] | None = None


@dataclass(frozen=True)
class Evaluator:
    """Measures models as the recipe says.

    Attributes:
        recipe: batch size, loader workers, precision.
        workload: which metrics.
        ranks: who shares the work.
        micro_batch: what is known to fit; left out, the recipe's.
    """

    recipe: Recipe
    workload: Workload
    ranks: Ranks
    micro_batch: int | None = None

    @torch.no_grad()
    def __call__(self, model: nn.Module, samples: SampleSet, tick: Callable[[], None] = lambda: None) -> Evaluation:
        """Run `model`, on this rank's device, over `samples` once; every rank gets the same result.

        Args:
            model: to measure.
            samples: to measure it on.
            tick: called after every pass, the same number of times on all ranks; may raise, on all ranks or on none.

        All ranks make the same number of forward passes (sharded weights are gathered by all or by none): a rank whose
        share is a batch short makes one into metrics that are thrown away.
        """
        model.eval()
        metrics = self.workload.metrics().to(self.ranks.device)
        size = self.recipe.validation.batch or 2 * (self.micro_batch or self.recipe.training.micro_batch)
        passes = math.ceil(math.ceil(len(samples) / self.ranks.world_size) / size)
        workers = self.recipe.data.loader_workers
        for batch in batches(samples, size, rank=self.ranks.rank, world_size=self.ranks.world_size, workers=workers):
            self._measure(model, batch, metrics)
            passes -= 1
            tick()
        if passes:
            self._measure(model, next(batches(samples, 1)), self.workload.metrics().to(self.ranks.device))
            tick()
        return _results(metrics, self.workload.signature().classes)

    def _measure(self, model: nn.Module, batch: Batch, metrics: MetricCollection) -> None:
        with autocast(self.recipe.training.precision, self.ranks.device):
            self.workload.measure(model, to_device(batch, self.ranks.device), metrics)


def _results(metrics: MetricCollection, classes: tuple[str, ...]) -> Evaluation:
    values = metrics.compute()  # torchmetrics gathers the states of all ranks
    confusion, curves = values.pop("confusion", None), values.pop("pr_curves", None)
    return Evaluation(
        {name: float(value) for name, value in values.items()},
        None if confusion is None else [[int(count) for count in row] for row in confusion.tolist()],
        classes,
        None if curves is None else curves.tolist(),
    )
