"""Dresses for `train_worker`: poisoned samples, a NaN gradient that comes once, notes of what every step has seen.

Workers get this module by value, so it needs no package.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class BrokenGradient(torch.autograd.Function):
    """The same number, and a gradient of NaN."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream * float("nan")


def dress(notes: str, poisoned: Sequence[str], nan_at: int, workload: Any, ranks: Any, run: Any) -> Any:
    """The workload, with faults and notes.

    Args:
        notes: a folder; every training pass is a line in `<rank>.jsonl`: positions and indices of its samples.
        poisoned: ids that are NaN whenever they are read.
        nan_at: the pass of rank 1 whose gradient is NaN, once whatever happens; 0 for none.
        workload, ranks, run: what is dressed.
    """
    from longhaul.data.order import SampleOrder

    train, recipe = workload.splits.train, run.recipe()
    order = SampleOrder(len(train), train.fingerprint, recipe.seed)
    positions = {order.sample_seed(position): position for position in range(4 * len(train))}
    read, loss = type(train).read, workload.loss

    class Samples(type(train)):
        def read(self, index: int, seed: int | None) -> dict[str, Tensor]:
            sample = read(self, index, seed)
            if self.ids[index] in poisoned:
                sample["image"] = sample["image"] * float("nan")
            return {**sample, "position": torch.tensor(-1 if seed is None else positions[seed])}

    def noted(model: Any, batch: Any) -> Tensor:
        value: Tensor = loss(model, batch)
        if not model.training:  # the search for suspects
            return value
        file = Path(notes) / f"{ranks.rank}.jsonl"
        passes = len(file.read_text().splitlines()) if file.exists() else 0
        with file.open("a") as stream:
            line = {"positions": batch["position"].tolist(), "indices": batch["index"].tolist()}
            stream.write(json.dumps(line) + "\n")
        return BrokenGradient.apply(value) if ranks.rank == 1 and passes + 1 == nan_at else value

    fields = {field.name: getattr(train, field.name) for field in dataclasses.fields(train)}
    workload.splits = dataclasses.replace(workload.splits, train=Samples(**fields))
    workload.loss = noted
    return workload
