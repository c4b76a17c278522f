"""`longhaul explain`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import typer
from runs_in_process import ALONE, nothing
from typer.testing import CliRunner

from longhaul.cli.explain import explain
from longhaul.errors import UserError
from longhaul.insight.explain.across import Consistency
from longhaul.recipe import parse
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.loop import Trainer
from longhaul.workloads import build

_RECIPE = """
model: {name: tiny_cnn}
data: {kind: imagefolder, root: ROOT, loader_workers: 0}
training: {steps: 3, global_batch: 16, micro_batch: 16}
resilience: {preflight: false}
"""


@pytest.fixture(scope="module")
def root(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Runs `at-32` and `at-48`, of one training: the network takes every resolution."""
    root = tmp_path_factory.mktemp("explained")
    recipe = parse(_RECIPE, overrides=[f"data.root={few_digits}", "data.resolution=32", "name=digits"])
    Trainer(recipe, build(recipe), RunDirectory.create(str(root), "at-32", recipe), ALONE, nothing).train()
    shutil.copytree(root / "at-32", root / "at-48")
    text = (root / "at-48/recipe.yaml").read_text()
    (root / "at-48/recipe.yaml").write_text(text.replace("resolution: 32", "resolution: 48"))
    return str(root)


def _run(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(explain)
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_one_run_is_explained_and_its_pictures_are_named(root: str) -> None:
    output = _run("at-32", "--images", "2", "--method", "gradcam", "--method", "saliency", "--storage", root)
    assert "features (8 x 8)" in output
    assert f"{root}/at-32/pictures/explain_gradcam.png" in output
    assert "integrated_gradients" not in output
    assert (Path(root) / "at-32/pictures/explain_saliency.png").stat().st_size > 1000


def test_maps_that_were_cut_short_are_made_again(root: str, tmp_path: Path) -> None:
    arguments = ("at-32", "--images", "1", "--method", "saliency", "--storage", root, "--out", str(tmp_path))
    _run(*arguments)
    maps = Path(root) / "at-32/explanation.npz"
    whole = maps.read_bytes()
    maps.write_bytes(whole[: len(whole) // 2])
    assert "explain_saliency.png" in _run(*arguments)
    assert maps.read_bytes() == whole


def test_runs_of_several_resolutions_are_compared_side_by_side(root: str, tmp_path: Path) -> None:
    output = _run("at-32", "at-48", "--images", "1", "--method", "gradcam", "--storage", root, "--out", str(tmp_path))
    assert "Grad-CAM of layer features at all of them: 8 x 8 cells at 32 px, 12 x 12 cells at 48 px" in output
    assert "maps against those at 48 px, means over 1 images" in output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["consistency.json", "consistency.png", "explain_gradcam.png"]
    assert list(Consistency.model_validate_json((tmp_path / "consistency.json").read_text()).runs) == [32, 48]


def test_a_picture_is_explained_into_out(root: str, few_digits: Path, tmp_path: Path) -> None:
    file = next((few_digits / "test" / "1").iterdir())
    output = _run("at-32", "at-48", "--image", str(file), "--method", "gradcam", "--storage", root, "--out", str(tmp_path))
    assert "answers: 32 px: " in output
    assert [one.name for one in tmp_path.iterdir()] == [f"{file.stem}_explain_gradcam.png"]


def test_an_unknown_method_is_refused_with_those_there_are(root: str) -> None:
    with pytest.raises(UserError, match="Take gradcam, integrated_gradients, saliency"):
        _run("at-32", "--method", "lime", "--storage", root)
