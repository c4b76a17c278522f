"""`longhaul sweep`: what it plans, shows and refuses; training is `tests/integration/test_sweep.py`'s."""

from __future__ import annotations

import re
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
    assert "no sweep is there. Did you mean 'grid'?" in refusal("status", "grdi", "--storage", root)


def test_an_empty_storage_is_named(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert output("status", "--storage", root).startswith(f"no sweeps in {root}; start one: longhaul sweep ")
    assert f"{root} holds no sweeps" in refusal("status", "grid", "--storage", root)


def test_epochs_are_short_and_hours_say_what_they_are(tmp_path: Path) -> None:
    directory = make_grid(str(tmp_path), models=["tiny_cnn"], resolutions=[32], ends={})
    state = directory.state()
    state.cells[0].scores.append((2.00522, 0.5))
    directory.save_state(state)
    text = output("status", "grid", "--storage", str(tmp_path))
    assert " 2.005 " in text
    assert f"the sweep has run {state.hours:.2f} h" in text


def test_a_verb_that_is_nearly_right_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Did you mean `longhaul sweep diff`?" in refusal("dif", "a", "b")
    assert "no such file" in refusal("small.yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dif").write_text("name: a")
    assert "is no sweep" in refusal("dif")


def test_two_sweeps_are_compared_cell_by_cell(tmp_path: Path) -> None:
    root = str(tmp_path)
    make_grid(root, "a", models=["resnet18", "tiny_cnn"], resolutions=[32, 48], ends={})
    make_grid(root, "b", models=["resnet18"], resolutions=[48, 64], ends={})
    text = output("diff", "a", "b", "--storage", root)
    (same,) = rows(text, "the same cell")
    assert same[:2] == ["resnet18", "48"]
    assert [row[:2] for row in rows(text, "only in a")] == [["resnet18", "32"], ["tiny_cnn", "32"], ["tiny_cnn", "48"]]
    assert [row[:2] for row in rows(text, "only in b")] == [["resnet18", "64"]]
    assert "no sweep is there" in refusal("diff", "a", "c", "--storage", root)


def test_a_sweep_and_a_file_of_its_name_are_told_apart(tmp_path: Path, file: Path) -> None:
    make_grid(str(tmp_path), "small", models=["tiny_cnn"], resolutions=[32], ends={})
    text = output("diff", "small", str(file), "--storage", str(tmp_path))
    (head,) = rows(text, "difference")
    assert head == ["cell", "small", "small.yaml", "difference"]
    assert len(rows(text, "only in small.yaml")) == 4


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


@pytest.mark.parametrize("verb", ["run", "extend"])
def test_what_help_shows_to_set_can_be_set(verb: str, file: Path, tmp_path: Path) -> None:
    shown = set(re.findall(r"--set (\S+\.\S+=[^\s;]+)", " ".join(output(verb, "--help").split())))
    assert len(shown) >= 2
    for override in shown:
        assert "cells: 0 finished" in output(str(file), "--plan", "--storage", str(tmp_path / "runs"), "--set", override)


def test_help_names_the_verbs_and_is_quick_to_read() -> None:
    text = output("--help")
    for verb in ("run", "extend", "status", "diff"):
        assert verb in text
