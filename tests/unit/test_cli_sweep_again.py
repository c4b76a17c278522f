"""`longhaul sweep`: how one gets from a cell to its run and its model, and what is said of a sweep whose driver has died."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from rich.console import Console
from sweep_maker import make_grid
from typer.testing import CliRunner

from longhaul.cli import sweep as sweep_command
from longhaul.cli.main import app as longhaul
from longhaul.cli.sweep import app
from longhaul.cli.sweep_tables import best_lines, plan_lines
from longhaul.errors import UserError
from longhaul.insight.runs import resolve_run
from longhaul.recipe.load import load_sweep
from longhaul.resilience.lease import lease
from longhaul.resilience.run_directory import RunDirectory
from longhaul.resilience.sweep_directory import Refused, SweepDirectory
from longhaul.tuning.sweep_plan import plan

SWEEP = """
name: small
recipe:
  model: {name: tiny_cnn}
  data: {kind: imagefolder, root: ROOT, resolution: 16}
  training: {epochs: 2, global_batch: 8, micro_batch: 4}
"""


def run(*arguments: str, columns: int = 300) -> Result:
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": str(columns), "TERM": "dumb"}, prog_name="longhaul sweep")


def output(*arguments: str, columns: int = 300) -> str:
    result = run(*arguments, columns=columns)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.fixture
def grid(tmp_path: Path) -> SweepDirectory:
    return make_grid(str(tmp_path), models=["resnet18", "tiny_cnn"], resolutions=[32, 48], ends={})


def test_status_shows_the_run_of_each_cell_when_asked(grid: SweepDirectory) -> None:
    text = output("status", "grid", "--storage", grid.root, "--runs", columns=40)
    for record in grid.state().cells:
        (line,) = [line for line in text.splitlines() if record.key in line and "export" not in line]
        assert line.split() == [*record.printed, record.key]
    assert f"runs: {grid.root}/cells" in text
    assert grid.state().cells[1].key not in output("status", "grid", "--storage", grid.root).split("best:")[0]


@pytest.mark.parametrize("verb", [["explain"], ["runs", "show"], ["runs", "compare"], ["export"], ["plan", "--run"]])
def test_a_sweep_that_is_given_for_a_run_is_told_from_one(grid: SweepDirectory, verb: list[str]) -> None:
    error = CliRunner().invoke(longhaul, [*verb, "grid", "--storage", grid.root]).exception
    assert isinstance(error, UserError)
    assert "grid is a sweep, not a run" in str(error)
    assert f"`longhaul sweep status grid --storage {grid.root} --runs`" in str(error)
    assert f"--storage {grid.root}/cells" in str(error)
    with pytest.raises(UserError, match="not found below"):
        resolve_run("grdi", grid.root)
    with pytest.raises(UserError, match="grid is a sweep"):
        resolve_run(f"{grid.root}/grid/", "elsewhere")


def test_the_best_cell_is_named_with_the_command_that_makes_a_model_of_it(grid: SweepDirectory) -> None:
    best = grid.state().best
    assert best is not None
    text = output("status", "grid", "--storage", grid.root)
    (line,) = [line.split() for line in text.splitlines() if "longhaul export" in line]
    assert line == ["longhaul", "export", best.key, "--storage", f"{grid.root}/cells"]
    assert resolve_run(line[2], line[4]).uri == grid.run(best.key).uri
    assert f"best: {best.label}, val/top1 {best.score:.4f}" in text
    state = grid.state()
    for record in state.cells:
        record.score = None
    assert best_lines(grid, state) == []


def test_what_a_sweep_prints_at_its_end_leads_to_model_and_report(
    few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all cells finished, so that nothing is trained."""
    file, root = tmp_path / "small.yaml", str(tmp_path / "my runs")
    file.write_text(SWEEP.replace("ROOT", str(few_digits)) + "grid: {seed: [0]}\n")
    planned = plan(load_sweep(file), root, "small", folder=tmp_path)
    record = planned.state.cells[0]
    trained = RunDirectory.create(f"{root}/cells", record.key, planned.cells[record.key].recipe)
    trained.write_summary(trained.summary().model_copy(update={"status": "finished", "goal": "val/top1", "best": 0.5}))
    with trained.metric_writer() as writer:
        writer.append(segment=1, step=4, epoch=2.0, samples=16, time_s=1.0, name="val/top1", value=0.5)
    text = output(str(file), "--storage", root)
    assert f"longhaul export {record.key} --storage '{root}/cells'" in text
    assert f"next: longhaul report small --storage '{root}'" in text


def dead_driver(folder: Path) -> None:
    told = {"holder": "x", "host": socket.gethostname(), "pid": 2**22 + 1, "renewed_s": time.time()}
    (folder / "lease.json").write_text(json.dumps(told))


def stopped_driver(folder: Path) -> None:
    assert not (folder / "lease.json").exists()


@pytest.mark.parametrize("leave", [dead_driver, stopped_driver])
def test_a_sweep_whose_driver_has_died_does_not_run(grid: SweepDirectory, leave: Callable[[Path], None]) -> None:
    state = grid.state()
    state.cells[0].standing = "running"
    grid.save_state(state)
    leave(Path(grid.storage.root))
    for command in (("status", "grid"), ("status",)):
        assert "1 running (no driver)" in output(*command, "--storage", grid.root)
    with lease(RunDirectory(grid.storage)):
        for command in (("status", "grid"), ("status",)):
            text = output(*command, "--storage", grid.root)
            assert "1 running" in text
            assert "no driver" not in text


def test_a_cell_is_forced_by_what_the_table_shows(few_digits: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(SWEEP.replace("ROOT", str(few_digits)) + "grid: {training.optimizer.lr: [0.00123456, 0.01]}\n")
    text = output(str(file), "--plan", "--storage", str(tmp_path / "runs"), "--force", "0.001235")
    (line,) = [line for line in text.splitlines() if "(forced)" in line]
    assert line.split()[0] == "0.001235"


def test_a_sweep_is_extended_from_another_folder(few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").symlink_to(few_digits)
    file, root = tmp_path / "small.yaml", str(tmp_path / "runs")
    file.write_text(SWEEP.replace("ROOT", "images") + "grid: {seed: [0]}\n")
    monkeypatch.chdir(tmp_path)
    planned = plan(load_sweep(file), root, "small", folder=Path.cwd())
    planned.directory.save(planned.sweep, planned.state)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "2 cells: 0 finished" in output("extend", "small", "--add", "seed=1", "--plan", "--storage", root)


def test_each_bar_is_as_long_as_its_cell(few_digits: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(SWEEP.replace("ROOT", str(few_digits)) + "grid: {training.epochs: [4, 8]}\n")
    planned = plan(load_sweep(file), str(tmp_path / "runs"), "small", folder=tmp_path)
    for record in planned.state.cells:
        record.standing = "running"
    with open(os.devnull, "w") as nowhere:
        bars = sweep_command._Bars(Console(file=nowhere), planned)
        bars.show(planned.state)
    assert [task.total for task in bars._progress.tasks] == [2, 4.0, 8.0]


def test_draws_that_make_no_recipe_are_counted_in_the_plan(few_digits: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(SWEEP.replace("ROOT", str(few_digits)) + "search: {trials: 5, space: {seed: {integer: [0, 9]}}}\n")
    planned = plan(load_sweep(file), str(tmp_path / "runs"), "small", folder=tmp_path)
    assert plan_lines(planned) == ["5 trials by tpe: 0 cells drawn, 0 finished, 0 begun"]
    planned.state.refused.append(Refused(coordinates={"seed": 1}, reason="why", place=0))
    assert plan_lines(planned)[0].endswith("; 1 draws make no recipe")
