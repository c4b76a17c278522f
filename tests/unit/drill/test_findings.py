"""Two runs are compared bit for bit: each loss up to a change of the micro-batch, and the final weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from longhaul.drill.findings import compare_losses, compare_weights, first_change
from longhaul.recipe import parse
from longhaul.resilience.checkpoint import CheckpointStore, Manifest
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.recovery import memory

RECIPE = "{name: r, model: {name: test_resnet}, data: {kind: digits}, training: {steps: 9, global_batch: 10, micro_batch: 10}}"


class Runs:
    """Makes runs with given losses and weights."""

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0

    def run(self, *losses: float, **weights: float) -> RunDirectory:
        self.count += 1
        run = RunDirectory.create(str(self.root), f"run{self.count}", parse(RECIPE))
        self.train(run, 1, *losses)
        folder = self.root / f"files{self.count}"
        folder.mkdir()
        save_file({name: torch.tensor([value, 2.0]) for name, value in weights.items()}, folder / "model.safetensors")
        manifest = Manifest(step=9, rank=0, world_size=1, attempt="aaaaaaaa", created_s=1.0, files={})
        CheckpointStore(run).publish("step-000000009-aaaaaaaa", folder, manifest)
        return run

    def train(self, run: RunDirectory, segment: int, *losses: float, first: int = 1) -> None:
        with run.metric_writer() as writer:
            for step, loss in enumerate(losses, start=first):
                common = {"segment": segment, "step": step, "epoch": 0.0, "samples": 0, "time_s": float(step)}
                writer.append(**common, name="train/loss", value=loss)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_losses_are_equal_where_the_last_line_of_history_has_them_so(runs: Runs) -> None:
    run, other = runs.run(3.0, 2.0, 99.0), runs.run(3.0, 2.0, 1.0)
    assert not compare_losses(run, other, None).passed
    runs.train(run, 2, 1.0, first=3)  # the first attempt at step 3 was rolled back
    assert compare_losses(run, other, None).passed


def test_the_last_bit_of_a_loss_counts_and_its_step_is_named(runs: Runs) -> None:
    check = compare_losses(runs.run(3.0, 2.0, 1.0), runs.run(3.0, 2.0000000000000004, 1.0), None)
    assert not check.passed
    assert check.finding == "different in 1 of 3 steps, first in step 2"


def test_losses_behind_a_change_of_the_micro_batch_are_not_compared(runs: Runs) -> None:
    run, other = runs.run(3.0, 2.0, 1.1), runs.run(3.0, 2.0, 1.0)
    assert first_change(run) is None
    run.add_event("resumed", "before", step=1)
    run.add_event(memory.EVENT, "32 -> 16", step=3, micro_batch=16)
    run.add_event("resumed", "resumed at step 2", step=2)
    assert first_change(run) == 2
    assert compare_losses(run, other, 2).passed
    assert not compare_losses(run, other, 3).passed


def test_runs_without_a_common_step_are_not_equal(runs: Runs) -> None:
    assert not compare_losses(runs.run(), runs.run(1.0), None).passed


def test_parameters_must_be_equal_bit_for_bit_and_buffers_up_to_rounding(runs: Runs) -> None:
    run = runs.run(weight=1.0, mean=1.0)
    parameters = {"weight"}
    assert compare_weights(run, runs.run(weight=1.0, mean=1.0), parameters).finding.endswith("1 buffers equal bit for bit")
    rounded = compare_weights(run, runs.run(weight=1.0, mean=1.0000001), parameters)
    assert rounded.passed
    assert "buffers within" in rounded.finding
    assert not compare_weights(run, runs.run(weight=1.0, mean=1.01), parameters).passed
    assert not compare_weights(run, runs.run(weight=1.0000001, mean=1.0), parameters).passed
    assert not compare_weights(run, runs.run(weight=1.0), parameters).passed
