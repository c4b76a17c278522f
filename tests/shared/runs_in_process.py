"""Whole runs of a few steps in the test's own process, and workloads with which something happens on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

from longhaul.data.samples import Batch
from longhaul.recipe import Recipe, parse
from longhaul.resilience.checkpoint import CheckpointStore
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.training.loop import Trainer
from longhaul.training.ranks import Ranks
from longhaul.workloads import Workload, build
from longhaul.workloads.classification import Classification

# 40 training images in steps of 12: an epoch ends within a step. Dropout, stochastic depth, EMA, batch norm, augmentation.
RECIPE = """
name: few
seed: 5
model: {name: test_resnet, drop_rate: 0.3, drop_path_rate: 0.2}
data: {kind: imagefolder, root: ROOT, resolution: 16, loader_workers: 0, augment: shift}
training:
  {steps: 9, global_batch: 12, micro_batch: 4, ema_decay: 0.7, clip_norm: 1.0, schedule: {name: cosine, warmup: 2 steps},
   optimizer: {name: adamw, lr: 3.0e-3, weight_decay: 0.05}}
validation: {every: 2 steps, batch: 24}
checkpoints: {every: 2 steps, keep_latest: 20}
tracking: {log_every: 1 steps}
resilience: {preflight: false, poll_s: 0.000001}
"""
SHORT = ("training.steps=8", "validation.every=1 steps", "training.ema_decay=null", "training.global_batch=4")
RARELY = ("checkpoints.every=1000 steps",)
ALONE = Ranks(0, 1, torch.device("cpu"))


class Crash(RuntimeError):
    """Stands for a lost machine."""


class CrashAt:
    """Before a workload in a class: raises at the given micro-batch."""

    def __init__(self, recipe: Recipe, at: int) -> None:
        super().__init__(recipe)  # type: ignore[call-arg]
        self.left = at

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise Crash
        return super().loss(model, batch)  # type: ignore[misc]


class Crashing(CrashAt, Classification):
    """Raises at the given micro-batch."""


class Scripted(Classification):
    """Measures top-1 as told, one value a validation; then 0."""

    def __init__(self, recipe: Recipe, values: Sequence[float]) -> None:
        super().__init__(recipe)
        self.values = list(values)

    def metrics(self) -> MetricCollection:
        return MetricCollection({"top1": MeanMetric()})

    def measure(self, model: nn.Module, batch: Batch, metrics: MetricCollection) -> None:
        """The validation split is one batch here."""
        metrics["top1"].update(self.values.pop(0) if self.values else 0.0)


class ScriptedCrash(Scripted, Crashing):
    """Both."""

    def __init__(self, recipe: Recipe, values: Sequence[float], at: int) -> None:
        Classification.__init__(self, recipe)
        self.values, self.left = list(values), at


def nothing(name: str, metrics: dict[str, float]) -> None:
    """A report to nobody."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run left behind: tensors of its last checkpoint by name, metrics by (name, step), kinds of events, steps saved."""

    summary: Summary
    tensors: dict[str, Tensor]
    metrics: dict[tuple[str, int], float]
    events: list[str]
    saved: list[int]

    def equal(self, other: Outcome) -> bool:
        same_names = self.tensors.keys() == other.tensors.keys()
        return same_names and all(torch.equal(value, other.tensors[name]) for name, value in self.tensors.items())


def recipe_for(root: Path, *overrides: str) -> Recipe:
    return parse(RECIPE, overrides=[f"data.root={root}", *overrides])


def train(recipe: Recipe, root: Path, workload: Workload | None = None) -> Outcome:
    run = RunDirectory.create(str(root), "run", recipe)
    summary = Trainer(recipe, workload or build(recipe), run, ALONE, nothing).train()
    return outcome(run, summary)


def outcome(run: RunDirectory, summary: Summary) -> Outcome:
    store = CheckpointStore(run)
    entries = store.entries()
    folder = Path(store.folder(entries[-1].name).root)
    tensors = {f"{file.stem}.{name}": value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    state = torch.load(folder / "engine" / "torch.pt", weights_only=True)["optimizer"]["state"]
    tensors |= {f"optimizer.{i}.{name}": value for i, moments in state.items() for name, value in moments.items()}
    tensors["random"] = torch.load(folder / "rank-00000.pt", weights_only=True)["random"]["torch"]
    table = run.metrics().to_pandas()
    metrics = {(name, step): value for name, step, value in zip(table["name"], table["step"], table["value"], strict=True)}
    return Outcome(summary, tensors, metrics, run.events().to_pandas()["kind"].tolist(), [entry.step for entry in entries])
