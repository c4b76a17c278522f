"""Runs that something happens to: spikes, poisoned samples, requests to stop, memory that runs out."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from runs_in_process import (
    SHORT,
    Crashing,
    Outcome,
    recipe_for,
    train,
)
from torch import Tensor, nn

from longhaul.data.order import SampleOrder
from longhaul.data.samples import Batch
from longhaul.recipe import Recipe
from longhaul.resilience import flight
from longhaul.resilience.checkpoint import CheckpointStore
from longhaul.resilience.requests import ask, asked
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.recovery.memory import MemoryExhaustedError
from longhaul.training.recovery.rollback import DivergedError
from longhaul.workloads.classification import Classification


@pytest.fixture(scope="module")
def recipe(few_digits: Path) -> Recipe:
    return recipe_for(few_digits)


@pytest.fixture(scope="module")
def straight(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The run that nothing happens to."""
    return train(recipe, tmp_path_factory.mktemp("straight"))


class Diverging(Classification):
    """The loss is NaN from the fourth step on, whatever the samples."""

    count = 0

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self.count += model.training
        return super().loss(model, batch) * (float("nan") if model.training and self.count > 3 else 1.0)


def test_a_run_that_no_remedy_helps_ends_and_keeps_the_checkpoint_before(few_digits: Path, tmp_path: Path) -> None:
    """One rollback, one with the whole batch left out, gradient norm and rate lowered, each tried anew; then the end."""
    recipe = recipe_for(few_digits, *SHORT, "checkpoints.every=1 steps", "resilience.max_rollbacks=2")
    with pytest.raises(DivergedError, match="step 4: the training loss is nan; samples were left out"):
        train(recipe, tmp_path, Diverging(recipe))
    run = RunDirectory.open(str(tmp_path / "run"))
    assert [entry.step for entry in CheckpointStore(run).entries()] == [0, 1, 2, 3]
    reasons = [event["message"] for event in run.events().to_pylist() if event["kind"] == "rollback"]
    assert [reason.split(": ", 2)[2] for reason in reasons] == [
        "its samples are tried one by one; back to step 3",
        "its whole batch is left out; back to step 3",
        "the gradient's norm is clipped at 0.6; back to step 3",
        "the learning rate is halved; back to step 3",
    ]


class Poisoned(Classification):
    """Reads NaN for some samples, every time; `loss` is NaN once at a step where it is told to."""

    def __init__(self, recipe: Recipe, ids: Sequence[str] = (), nan_once_at: int = 0) -> None:
        super().__init__(recipe)
        self.seen: list[int] = []
        self.left = nan_once_at
        read, bad = type(self.splits.train).read, set(ids)

        class Samples(type(self.splits.train)):  # type: ignore[misc]
            def read(self, index: int, seed: int | None) -> dict[str, Tensor]:
                sample = read(self, index, seed)
                return {**sample, "image": sample["image"] * float("nan")} if self.ids[index] in bad else sample

        train = self.splits.train
        fields = {field.name: getattr(train, field.name) for field in dataclasses.fields(train)}
        self.splits = dataclasses.replace(self.splits, train=Samples(**fields))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self.seen += batch["index"].tolist() if model.training else []
        self.left -= model.training
        return super().loss(model, batch) * (float("nan") if model.training and self.left == 0 else 1.0)


def poisoned_ids(recipe: Recipe) -> list[str]:
    """Three samples: two of them in one step, one in the second epoch's last."""
    train = Classification(recipe).splits.train
    order = SampleOrder(len(train), train.fingerprint, recipe.seed)
    return [train.ids[int(order.take(0, 60).indices[place])] for place in (13, 17, 30)]


def test_poisoned_samples_are_found_and_left_out_exactly_those(few_digits: Path, tmp_path: Path) -> None:
    """And the run ends bit by bit where one ends that never had them."""
    recipe = recipe_for(few_digits)
    ids = poisoned_ids(recipe)
    clean = train(recipe_for(few_digits, f"data.excluded=[{', '.join(ids)}]"), tmp_path / "clean")
    healed = train(recipe, tmp_path / "healed", Poisoned(recipe, ids))
    run = RunDirectory.open(str(tmp_path / "healed" / "run"))
    left_out = [json.loads(event["detail"])["samples"] for event in run.events().to_pylist() if event["kind"] == "quarantine"]
    assert sorted(name for names in left_out for name in names) == sorted(ids)
    assert healed.summary.status == "finished"
    assert healed.equal(clean)
    losses = {key: value for key, value in clean.metrics.items() if key[0] == "train/loss"}
    assert losses == {key: value for key, value in healed.metrics.items() if key[0] == "train/loss"}


def test_a_nan_that_comes_once_costs_a_rollback_and_no_sample(few_digits: Path, straight: Outcome, tmp_path: Path) -> None:
    recipe = recipe_for(few_digits)
    result = train(recipe, tmp_path, Poisoned(recipe, nan_once_at=14))
    assert result.events.count("rollback") == 1
    assert "quarantine" not in result.events
    assert result.equal(straight)


def test_a_paused_run_goes_on_bit_by_bit(recipe: Recipe, straight: Outcome, tmp_path: Path) -> None:
    """Asked for while it trains; the loop looks at every step here."""

    class Asking(Crashing):
        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            self.left -= 1
            if self.left == 0:
                request = ask(RunDirectory.open(str(tmp_path / "run")), "pause")
                flight.FlightRecorder.request = request  # what its thread would see at its next look
            return Classification.loss(self, model, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flight.FlightRecorder, "request", None, raising=False)
        patch.setattr(flight.FlightRecorder, "__setattr__", _all_but_request)
        paused = train(recipe, tmp_path, Asking(recipe, at=5 * 3 + 2))
    assert (paused.summary.status, paused.summary.step) == ("paused", 6)
    assert asked(RunDirectory.open(str(tmp_path / "run"))) is None
    resumed = train(recipe, tmp_path)
    assert resumed.summary.status == "finished"
    assert resumed.equal(straight)


def _all_but_request(self: flight.FlightRecorder, name: str, value: object) -> None:
    if name != "request":
        object.__setattr__(self, name, value)


def test_out_of_memory_before_the_first_step_is_found_by_the_preflight(few_digits: Path, tmp_path: Path) -> None:
    class Large(Classification):
        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            if len(batch["label"]) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().loss(model, batch)

    recipe = recipe_for(few_digits, "resilience.preflight=true")
    with pytest.raises(MemoryExhaustedError, match="micro-batches of 4: CUDA out of memory") as caught:
        train(recipe, tmp_path, Large(recipe))
    assert caught.value.micro_batch == 4
    assert pickle.loads(pickle.dumps(caught.value)).micro_batch == 4
    run = RunDirectory.open(str(tmp_path / "run"))
    run.add_event("micro_batch", "halved", micro_batch=2)  # what the failure policy records
    assert train(recipe, tmp_path, Large(recipe)).summary.status == "finished"
