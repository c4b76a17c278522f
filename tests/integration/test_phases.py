"""A run in phases on a real Ray cluster, two gloo workers: lost inside the second, it ends where the straight one does."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from carried import carried

from longhaul.recipe import Recipe, load
from longhaul.recipe.phases import resolve
from longhaul.resilience.checkpoint import CheckpointStore, load_weights
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.phases import GateError
from longhaul.workloads import build

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

DIGITS = Path(__file__).parents[2] / "jobs" / "recipes" / "classification" / "digits.yaml"
PHASES = """phases=[
  {name: part, set: {data.share: 0.3, data.resolution: 16, training.steps: 4}, gate: {metric: val/top1, at_least: 0.01}},
  {name: whole, set: {training.steps: 6}}]"""
OPTIONS = ["training.epochs=null", "training.steps=1", "checkpoints.every=2 steps", "tracking.log_every=1 step"]


def _train(root: Path, name: str, recipe: Recipe, dress: Any = None) -> RunDirectory:
    from longhaul.training.on_ray.launch import fit
    from longhaul.training.on_ray.ray_worker import train_worker

    run = RunDirectory.create(str(root), name, recipe)
    fit(recipe, run, partial(train_worker, dress=dress))
    return run


@pytest.mark.parametrize("engine", ["torch", pytest.param("zero2", marks=pytest.mark.exhaustive)])
def test_a_run_killed_in_its_second_phase_ends_bitwise_where_the_straight_one_does(tmp_path: Path, engine: str) -> None:
    recipe = load(DIGITS, [*OPTIONS, PHASES, f"training.engine={engine}"])
    straight = _train(tmp_path, "straight", recipe)
    size = len(build(resolve(recipe)[1]).splits.train)
    dress = partial(
        carried(Path(__file__).with_name("phase_faults.py")).killed_on_the_whole_data, size, 7, str(tmp_path / "marker")
    )  # the first call is the preflight's
    killed = _train(tmp_path, "killed", recipe, dress)
    assert (tmp_path / "marker").exists()
    assert killed.summary().status == straight.summary().status == "finished"
    assert killed.summary().step == straight.summary().step == 10
    resumed = [event["step"] for event in killed.events().to_pylist() if event["kind"] == "resumed"]
    assert resumed in ([6], [8])  # inside the phase; the kill came in step 10, when the save of step 8 was under way
    assert {(entry.phase, entry.step) for entry in CheckpointStore(killed).entries()} >= {(0, 4), (1, 10)}
    mine, expected = load_weights(killed, "latest").state, load_weights(straight, "latest").state
    assert mine.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(mine[name], expected[name])] == []


def test_a_failed_gate_ends_the_run_as_failed_with_the_reason(tmp_path: Path) -> None:
    recipe = load(DIGITS, [*OPTIONS, PHASES.replace("at_least: 0.01", "at_least: 2.0")])
    with pytest.raises(GateError, match=r"phase 'part': the best val/top1 is .*, its gate asks for at least 2"):
        _train(tmp_path, "gated", recipe)
    summary = RunDirectory.open(str(tmp_path / "gated")).summary()
    assert summary.status == "failed"
    assert summary.error is not None
    assert "its gate asks for at least 2" in summary.error
