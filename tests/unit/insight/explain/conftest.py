"""Small trained runs of one model at three resolutions, and one of another model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from runs_in_process import ALONE, nothing

from longhaul.recipe import parse
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.loop import Trainer
from longhaul.workloads import build

SIDES = (32, 48, 64)
_RECIPE = """
model: {name: tiny_cnn}
data: {kind: imagefolder, root: ROOT, loader_workers: 0}
training: {steps: 20, global_batch: 16, micro_batch: 16, optimizer: {name: adamw, lr: 5.0e-3}}
resilience: {preflight: false}
"""


@pytest.fixture(scope="session")
def trained_runs(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds `tiny_cnn-32`, `-48` and `-64`."""
    root = tmp_path_factory.mktemp("trained")
    for side in SIDES:
        name = f"tiny_cnn-{side}"
        recipe = parse(_RECIPE, overrides=[f"data.root={few_digits}", f"data.resolution={side}", f"name={name}"])
        run = RunDirectory.create(str(root), name, recipe)
        Trainer(recipe, build(recipe), run, ALONE, nothing).train()
    return root


@pytest.fixture
def runs(trained_runs: Path, tmp_path: Path) -> list[RunDirectory]:
    """Copies of them to write into, ascending by resolution, in `tmp_path / "runs"`."""
    shutil.copytree(trained_runs, tmp_path / "runs")
    return [RunDirectory.open(str(tmp_path / "runs" / f"tiny_cnn-{side}")) for side in SIDES]
