"""What Ray Train is told: plain finite numbers, a score that is always there; its memory is rebuilt from what is complete."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from longhaul.recipe import parse
from longhaul.resilience.checkpoint import CheckpointStore, Manifest, checkpoint_name
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.checkpoints.saving import score
from longhaul.training.on_ray.report import SNAPSHOT, plain_metrics, rebuild_snapshot

RECIPE = "{name: r, model: {name: test_resnet}, data: {kind: digits}, training: {steps: 9}}"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory.create(str(tmp_path), "r", parse(RECIPE))
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(b"weights")
    for step, world, rank, goal in ((2, 1, 0, 0.25), (4, 1, 0, None), (6, 2, 0, 0.5)):  # the last lacks rank 1's manifest
        manifest = Manifest(step=step, rank=rank, world_size=world, attempt="a", created_s=float(step), goal=goal, files={})
        CheckpointStore(run).publish(checkpoint_name(step, "a"), tmp_path / "source", manifest)
    return run


def test_numbers_are_plain_and_finite() -> None:
    plain = plain_metrics({"a": np.float32(0.5), "b": math.nan, "c": 1})  # type: ignore[dict-item]
    assert plain == {"a": 0.5, "b": 0.0, "b_nonfinite": 1.0, "c": 1.0}
    assert {type(value) for value in plain.values()} == {float}


@pytest.mark.parametrize(("goal", "direction", "expected"), [(0.5, "max", 0.5), (0.5, "min", -0.5)])
def test_a_higher_score_is_better_in_both_directions(goal: float, direction: str, expected: float) -> None:
    assert score(goal, direction) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("goal", [None, math.nan, math.inf])
@pytest.mark.parametrize("direction", ["max", "min"])
def test_without_a_goal_the_score_is_the_worst(goal: float | None, direction: str) -> None:
    assert score(goal, direction) == -1e30  # type: ignore[arg-type]


@pytest.mark.parametrize("former", [b"", b'{"checkpoint_results": [{"ver', b"{}"])
def test_the_snapshot_is_rebuilt_from_complete_checkpoints_whatever_was_there(run: RunDirectory, former: bytes) -> None:
    """Ray itself reads it back, and finds every checkpoint that it names."""
    from ray.train import CheckpointConfig
    from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
    from ray.train.v2._internal.execution.storage import StorageContext

    for _ in range(5):
        run.storage.write_bytes(SNAPSHOT, former)
        rebuild_snapshot(run)
    copies = sorted(entry.name for entry in run.storage.list() if ".bak-" in entry.name)
    assert copies == [f"{SNAPSHOT}.bak-{number}" for number in (3, 4, 5)]
    assert run.storage.read_bytes(copies[0]) == former
    root = str(Path(run.uri).parent)
    manager = CheckpointManager(CheckpointConfig(), StorageContext(root, run.name))
    assert [Path(result.checkpoint.path).name for result in manager._checkpoint_results] == [
        "step-000000002-a",
        "step-000000004-a",
    ]
    assert [result.metrics["score"] for result in manager._checkpoint_results] == [0.25, -1e30]
    assert json.loads(run.storage.read_bytes(SNAPSHOT))["current_report_index"] == 2
