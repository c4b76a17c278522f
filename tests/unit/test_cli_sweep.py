"""`longhaul sweep`: what it plans, shows and refuses; training is `tests/integration/test_sweep.py`'s."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from sweep_maker import make_grid, make_search
from typer.testing import CliRunner

from longhaul.cli.sweep import app
from longhaul.errors import UserError

SWEEP = """
name: small
recipe:
  model: {name: tiny_cnn}
  data: {kind: imagefolder, root: ROOT, resolution: 16}
  training: {epochs: 2, global_batch: 8, micro_batch: 4}
grid: {model.name: [tiny_cnn, test_resnet], data.resolution: [16, 24]}
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200", "TERM": "dumb"}, prog_name="longhaul sweep")


def output(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refusal(*arguments: str) -> str:
    error = run(*arguments).exception
    assert isinstance(error, UserError), error
    return str(error)


@pytest.fixture
def file(few_digits: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SWEEP.replace("ROOT", str(few_digits)))
    return path


def rows(text: str, word: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if word in line]


@pytest.mark.parametrize("verb", [[], ["run"]])
def test_a_plan_shows_each_cell_with_its_cost_and_trains_and_writes_nothing(file: Path, tmp_path: Path, verb: list[str]) -> None:
    text = output(*verb, str(file), "--plan", "--storage", str(tmp_path / "runs"), "--set", "grid.data.resolution=[16, 24, 32]")
    planned = rows(text, " planned ")
    assert [row[:3] for row in planned] == [
        [model, side, "planned"] for model in ("tiny_cnn", "test_resnet") for side in ("16", "24", "32")
    ]
    assert "6 cells: 0 finished, 0 begun, 6 to train" in text
    shares = [float(cell.rstrip("%")) for row in planned for cell in row if cell.endswith("%")]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert not (tmp_path / "runs").exists()


def test_a_recipe_and_a_missing_file_are_refused(tmp_path: Path, file: Path) -> None:
    recipe = tmp_path / "plain.yaml"
    recipe.write_text("name: a\nmodel: {name: tiny_cnn}\ndata: {kind: digits}\ntraining: {epochs: 1}\n")
    assert "is no sweep" in refusal(str(recipe), "--plan")
    assert "no such file" in refusal(str(tmp_path / "smal.yaml"), "--plan")
    assert "no cell is called so" in refusal(str(file), "--plan", "--storage", str(tmp_path / "runs"), "--force", "vgg*")


def test_status_shows_one_sweep_or_all_of_them(tmp_path: Path) -> None:
    root = str(tmp_path)
    make_grid(root)
    make_search(root, trials=3)
    text = output("status", "grid", "--storage", root)
    assert "ASHA: below the best third at epoch 3" in text
    assert "CUDA out of memory <at layer 3>" in text
    ranked = [row for row in rows(text, " finished ") if "sweep" not in row]
    assert len(ranked) == 24
    both = output("status", "--storage", root)
    assert [row[0] for row in rows(both, "finished")] == ["grid", "search"]
    assert "no sweep is there" in refusal("status", "grdi", "--storage", root)


def test_two_sweeps_are_compared_cell_by_cell(tmp_path: Path) -> None:
    root = str(tmp_path)
    make_grid(root, "a", models=["resnet18", "tiny_cnn"], resolutions=[32, 48], ends={})
    make_grid(root, "b", models=["resnet18"], resolutions=[48, 64], ends={})
    text = output("diff", "a", "b", "--storage", root)
    (same,) = rows(text, "the same cell")
    assert same[:2] == ["resnet18", "48"]
    assert len(rows(text, " - ")) == 4
    assert "no sweep is there" in refusal("diff", "a", "c", "--storage", root)


def test_a_sweep_is_extended_by_what_its_grid_has(tmp_path: Path, file: Path, few_digits: Path) -> None:
    from longhaul.recipe.load import load_sweep
    from longhaul.tuning.sweep_plan import plan

    root = str(tmp_path / "runs")
    planned = plan(load_sweep(file), root, "small", folder=tmp_path)
    planned.directory.save(planned.sweep, planned.state)
    text = output("extend", "small", "--add", "data.resolution=32", "--plan", "--storage", root)
    assert "6 cells: 0 finished, 0 begun, 6 to train" in text
    assert "is in the grid already" in refusal("extend", "small", "--add", "data.resolution=16", "--plan", "--storage", root)
    assert "no value of a field of the grid" in refusal("extend", "small", "--add", "seed=1", "--plan", "--storage", root)
    assert "no sweep is there" in refusal("extend", "smal", "--storage", root)
    assert planned.directory.recipe() == planned.sweep  # a plan changes nothing


def test_help_names_the_verbs_and_is_quick_to_read() -> None:
    text = output("--help")
    for verb in ("run", "extend", "status", "diff"):
        assert verb in text
