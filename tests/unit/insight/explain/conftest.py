"""Small trained runs of one model at three resolutions, and of one whose layer for Grad-CAM moves with the resolution."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from runs_in_process import ALONE, nothing

from longhaul.insight.explain.cell import explain_run
from longhaul.recipe import parse
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.loop import Trainer
from longhaul.workloads import build

SIDES = (32, 48, 64)
_RECIPE = """
data: {kind: imagefolder, root: ROOT, loader_workers: 0}
training: {steps: 5, global_batch: 16, micro_batch: 16, optimizer: {name: adamw, lr: 5.0e-3}}
resilience: {preflight: false}
"""


@pytest.fixture(scope="session")
def trained_runs(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds `tiny_cnn-32`, `-48` and `-64`, and `test_resnet-32` and `-64`.

    These networks take every resolution, so that each is trained at 32 px alone; the others say another one in their recipe.
    """
    root = tmp_path_factory.mktemp("trained")
    for model, more in (("tiny_cnn", SIDES[1:]), ("test_resnet", (64,))):
        name = f"{model}-32"
        places = [f"data.root={few_digits}", "data.resolution=32", f"model={{name: {model}}}", f"name={name}"]
        recipe = parse(_RECIPE, overrides=places)
        run = RunDirectory.create(str(root), name, recipe)
        Trainer(recipe, build(recipe), run, ALONE, nothing).train()
        for side in more:
            shutil.copytree(root / name, root / f"{model}-{side}")
            file = root / f"{model}-{side}" / "recipe.yaml"
            file.write_text(file.read_text().replace("resolution: 32", f"resolution: {side}"))
    return root


@pytest.fixture
def runs(trained_runs: Path, tmp_path: Path) -> list[RunDirectory]:
    """Copies of them to write into, ascending by resolution, in `tmp_path / "runs"`."""
    shutil.copytree(trained_runs, tmp_path / "runs")
    return [RunDirectory.open(str(tmp_path / "runs" / f"tiny_cnn-{side}")) for side in SIDES]


@pytest.fixture
def moving(runs: list[RunDirectory], tmp_path: Path) -> list[RunDirectory]:
    """Of `test_resnet`, whose deepest layer of 4 x 4 cells is `layer2` at 32 px and `layer3` at 64 px."""
    assert runs
    return [RunDirectory.open(str(tmp_path / "runs" / f"test_resnet-{side}")) for side in (32, 64)]


@pytest.fixture(scope="session")
def _explained_run(trained_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explained") / "tiny_cnn-32"
    shutil.copytree(trained_runs / "tiny_cnn-32", folder)
    explain_run(RunDirectory.open(str(folder)), images=2, methods=["gradcam", "saliency"])
    return folder


@pytest.fixture
def explained_run(_explained_run: Path, tmp_path: Path) -> RunDirectory:
    """A copy of one with an explanation of two images by Grad-CAM and saliency."""
    shutil.copytree(_explained_run, tmp_path / "explained" / _explained_run.name)
    return RunDirectory.open(str(tmp_path / "explained" / _explained_run.name))
