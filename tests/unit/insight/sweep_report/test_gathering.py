"""Profiles and explanations: filled in where they are missing, once, and never at the price of the report."""

from __future__ import annotations

from pathlib import Path

from sweep_maker import make_grid, make_search

from longhaul.insight.profile import Conditions, load_profile
from longhaul.insight.sweep_report.cell_pages import best_checkpoints
from longhaul.insight.sweep_report.cells import read_cells
from longhaul.insight.sweep_report.gathering import fill_profiles, to_explain, to_profile
from longhaul.insight.sweep_report.report import Wanted, write_report
from longhaul.resilience.sweep_directory import SweepDirectory

from .conftest import read_page

QUICK = Conditions(device="cpu", batch=2, budget_s=0.02)


def test_finished_cells_without_a_profile_are_measured(small_grid: SweepDirectory) -> None:
    state = small_grid.state()
    small_grid.run(state.cells[0].key).storage.delete_file("profile.json")
    missing = to_profile(read_cells(small_grid, state))
    assert [cell.key for cell in missing] == [state.cells[0].key]


def test_one_network_is_measured_once_for_all_cells_that_have_it(tmp_path: Path, digits_root: Path) -> None:
    sweep = make_grid(str(tmp_path), models=("tiny_cnn",), resolutions=(32, 48), ends={}, folds=2, profiled=False)
    done: list[int] = []
    cells = fill_profiles(read_cells(sweep, sweep.state()), QUICK, lambda: done.append(1))
    assert len(done) == 4
    assert all(cell.run is not None and load_profile(cell.run) == cell.profile for cell in cells)
    assert cells[0].profile == cells[1].profile  # another fold
    assert cells[0].profile != cells[2].profile  # another resolution
    assert cells[0].count is not None
    assert cells[0].count.parameters == 24_346


def test_a_line_is_explained_over_its_resolutions_and_of_folds_the_first(tmp_path: Path) -> None:
    sweep = make_grid(str(tmp_path), models=("tiny_cnn", "simple_cnn"), resolutions=(64, 32), ends={}, folds=2)
    lines = to_explain(read_cells(sweep, sweep.state()), "max")
    assert [[cell.label for cell in line] for line in lines] == [
        ["tiny_cnn 32 px fold 0", "tiny_cnn 64 px fold 0"],
        ["simple_cnn 32 px fold 0", "simple_cnn 64 px fold 0"],
    ]


def test_a_fold_that_has_not_finished_everywhere_gives_way_to_one_that_has(tmp_path: Path) -> None:
    sweep = make_grid(str(tmp_path), models=("tiny_cnn",), resolutions=(32, 48), ends={}, folds=3)
    state = sweep.state()
    state.cells[0].standing = "failed"  # 32 px, fold 0
    (line,) = to_explain(read_cells(sweep, state), "max")
    assert [cell.label for cell in line] == ["tiny_cnn 32 px fold 1", "tiny_cnn 48 px fold 1"]


def test_of_a_search_the_best_trial_is_explained(tmp_path: Path) -> None:
    sweep = make_search(str(tmp_path), trials=6)
    state = sweep.state()
    (line,) = to_explain(read_cells(sweep, state, searched=True), "max")
    finished = [cell for cell in state.cells if cell.standing == "finished"]
    assert [cell.key for cell in line] == [max(finished, key=lambda cell: cell.score or 0).key]


def test_the_best_checkpoints_are_told_best_first(small_grid: SweepDirectory) -> None:
    state = small_grid.state()
    run = small_grid.run(state.cells[0].key)
    best = best_checkpoints(run, state)
    assert [one.step for one in best] == [144, 126, 108]
    assert [one.goal for one in best] == [state.cells[0].scores[i][1] for i in (7, 6, 5)]
    assert best[0].address == f"{run.uri}/checkpoints/{best[0].name}"


def test_a_cell_that_cannot_be_explained_or_profiled_says_so(tmp_path: Path, digits_root: Path) -> None:
    sweep = make_grid(str(tmp_path), models=("tiny_cnn",), resolutions=(32, 48), ends={}, profiled=False)  # weights of no use
    state = sweep.state()
    run = sweep.run(state.cells[0].key)
    text = run.storage.read_bytes("recipe.yaml").decode().replace("kind: digits", "kind: imagefolder\n  root: /nowhere")
    run.storage.write_bytes("recipe.yaml", text.replace("root: null\n", "\n").encode())
    page = read_page(write_report(sweep, Wanted(images=2, conditions=QUICK)))
    assert "tiny_cnn 32 px: it could not be profiled" in page.text.replace("\n", " ")
    assert "tiny_cnn 48 px: it could not be explained" in page.text.replace("\n", " ")
    assert "resolution.png" in page.pictures
