"""After it ran out of memory, a run begins again with nothing left of the attempt before."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from runs_in_process import recipe_for
from torch import Tensor, nn

from longhaul.data.samples import Batch
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training import alone
from longhaul.training.alone import train_alone
from longhaul.workloads.classification import Classification


class Hungry(Classification):
    """Has room for three samples at once; remembers the models that it saw, and which of them lived on at each new one."""

    models: list[weakref.ref[nn.Module]] = []
    lived_on: list[int] = []

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        if not any(known() is model for known in self.models):
            self.lived_on.append(sum(known() is not None for known in self.models))
            self.models.append(weakref.ref(model))
            model.__dict__["cycle"] = model  # as hooks and graphs make: gone when somebody collects
        if len(batch["label"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return super().loss(model, batch)


def test_the_network_of_the_attempt_before_is_gone(few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_for(few_digits, "training.micro_batch=12", "training.global_batch=12", "training.steps=2")
    run = RunDirectory.create(str(tmp_path), "run", recipe)
    monkeypatch.setattr(Hungry, "models", [])
    monkeypatch.setattr(Hungry, "lived_on", [])
    monkeypatch.setattr(alone, "build", Hungry)
    assert train_alone(recipe, run, gpu=False).status == "finished"
    assert Hungry.lived_on == [0, 0, 0]  # 12, 6, 3
