"""`longhaul report`: what it prints and refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
import yaml
from click.testing import Result
from sweep_maker import make_grid
from typer.testing import CliRunner

from longhaul.cli.report import report
from longhaul.errors import UserError

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"

app = typer.Typer()
app.command(name="report")(report)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200"}, prog_name="longhaul report")


def test_it_prints_where_the_page_lies(tmp_path: Path) -> None:
    make_grid(str(tmp_path), models=("tiny_cnn",), resolutions=(32,), ends={})
    result = run("grid", "--storage", str(tmp_path), "--no-profile", "--no-explain")
    assert result.exit_code == 0, result.output
    assert f"report: {tmp_path}/grid/report/index.html" in result.output
    assert (tmp_path / "grid/report/index.html").is_file()


def test_the_storage_may_stand_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_grid(str(tmp_path), models=("tiny_cnn",), resolutions=(32,), ends={("tiny_cnn", 32): ("planned", None)})
    monkeypatch.setenv("LONGHAUL_STORAGE", str(tmp_path))
    assert run("grid", "--no-profile", "--no-explain").exit_code == 0


def test_an_unknown_sweep_is_refused(tmp_path: Path) -> None:
    error = run("grip", "--storage", str(tmp_path)).exception
    assert isinstance(error, UserError)
    assert "no sweep is there" in str(error)


def test_a_device_that_is_not_there_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    make_grid(str(tmp_path), models=("tiny_cnn",), resolutions=(32,), ends={})
    error = run("grid", "--storage", str(tmp_path), "--device", "cuda:77").exception
    assert isinstance(error, UserError)
    assert not (tmp_path / "grid/report").exists()


def test_help_gives_examples_of_sweeps_that_exist() -> None:
    shown = run("--help").output
    named = re.findall(r"longhaul report (\w\S+)", shown)
    assert named
    there = {yaml.safe_load(file.read_text(encoding="utf-8"))["name"] for file in RECIPES.rglob("*.yaml")}
    assert set(named) <= there
