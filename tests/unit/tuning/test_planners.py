"""What is trained next: a grid's cells in their order, a search's draws; what was begun before comes first."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from sweep_maker import make_grid

from longhaul.recipe.sweep import PruningSection, SweepRecipe
from longhaul.resilience.sweep_directory import CellRecord, Standing
from longhaul.tuning.board import Board
from longhaul.tuning.planners import GridPlan, SearchPlan, ended_of, mean_score, pasts, points
from longhaul.tuning.search.search import make_searcher
from longhaul.tuning.sweep_plan import SweepPlan, plan


def record(key: str, standing: Standing = "planned", *scores: tuple[float, float], **coordinates: Any) -> CellRecord:
    best = max((score for _, score in scores if not math.isnan(score)), default=None)
    return CellRecord(key=key, coordinates=coordinates, recipe="", standing=standing, scores=list(scores), score=best)


def grid_plan(root: Path, *, pruning: PruningSection | None = None) -> tuple[Board, GridPlan]:
    everything = {(model, side): ("planned", None) for model in ("vgg11", "tiny_cnn") for side in (32, 48)}
    directory = make_grid(str(root), models=["vgg11", "tiny_cnn"], resolutions=[32, 48], ends=everything)  # type: ignore[arg-type]
    board = Board(directory, directory.recipe(), directory.state(), lambda state: None)
    return board, GridPlan(board, pruning)


def labels(records: Any) -> list[str] | None:
    return None if records is None else [one.label for one in records]


def test_a_grid_is_trained_cell_by_cell_and_then_over(tmp_path: Path) -> None:
    board, planner = grid_plan(tmp_path)
    seen = []
    while records := planner.next("t"):
        seen += [one.label for one in records]
        board.began(records)
    assert sorted(seen) == ["tiny_cnn 32", "tiny_cnn 48", "vgg11 32", "vgg11 48"]
    assert records == ()


def test_what_an_earlier_call_began_comes_first(tmp_path: Path) -> None:
    board, planner = grid_plan(tmp_path)
    board.state.cells[3].steps = 4
    assert labels(planner.next("t")) == ["tiny_cnn 48"]
    board.began([board.state.cells[3]])
    assert labels(planner.next("u")) != ["tiny_cnn 48"]


def test_what_pruning_leaves_out_is_marked_with_its_reason(tmp_path: Path) -> None:
    models = ("vgg11", "vgg13", "resnet18", "resnet34", "simple_cnn", "tiny_cnn")
    directory = make_grid(str(tmp_path), models=models, resolutions=[32, 48], ends={})
    state = directory.state()
    for place, cell in enumerate(state.cells):
        low = 0.2 + 0.1 * (place // 2)
        cell.score, cell.scores = (low, [(8.0, low)]) if place % 2 == 0 else (low + 0.02, [(8.0, low + 0.02)])
    worst = state.cells[1]
    worst.standing, worst.score, worst.scores, worst.steps = "planned", None, [], 0
    board = Board(directory, directory.recipe(), state, lambda state: None)
    assert GridPlan(board, PruningSection()).next("t") == ()
    assert worst.standing == "skipped"
    assert "chance to win" in (worst.reason or "")
    worst.standing, worst.forced = "planned", True
    assert labels(GridPlan(board, PruningSection()).next("t")) == [worst.label]


def search(images: Path, root: Path, **more: Any) -> SweepPlan:
    base = {
        "model": {"name": "tiny_cnn"},
        "data": {"kind": "imagefolder", "root": str(images), "resolution": 16},
        "training": {"epochs": 2, "global_batch": 8, "micro_batch": 4},
    }
    space = {"training.optimizer.lr": {"log_uniform": [1e-4, 1e-1]}, "training.global_batch": {"choice": [8, 16]}}
    section = {"kind": "random", "trials": 3, "space": space, **more.pop("search", {})}
    sweep = SweepRecipe.model_validate({"name": "s", "recipe": base, "search": section, **more})
    return plan(sweep, str(root), "s", folder=Path.cwd())


def planner_of(planned: SweepPlan) -> tuple[Board, SearchPlan]:
    board = Board(planned.directory, planned.sweep, planned.state, lambda state: None)
    assert planned.sweep.search is not None
    searcher = make_searcher(planned.sweep.search, "max", pasts(points(planned.state.cells), "max"))
    return board, SearchPlan(board, planned, searcher)


def report(records: Any, epoch: float, score: float) -> dict[str, Any]:
    return {"epoch": epoch, "score": score, "key": records[-1].key, "cell_epoch": epoch, "cell_score": score, "steps": 4}


def test_a_search_draws_its_trials_and_after_a_restart_goes_on_with_the_open_ones(few_digits: Path, tmp_path: Path) -> None:
    planned = search(few_digits, tmp_path, folds=2)
    board, planner = planner_of(planned)
    first = planner.next("a")
    assert first is not None
    assert [one.coordinates["data.fold"] for one in first] == [0, 1]
    board.began(first)
    planner.heard("a", report(first, 1.0, 0.5))
    for one in first:
        one.standing = "finished"
        run = planned.directory.run(one.key)
        run.save_recipe(planned.cells[one.key].recipe)
        run.write_summary(run.summary().model_copy(update={"status": "finished", "goal": "val/top1"}))
    planner.over("a", report(first, 4.0, 0.6), failed=False)
    second = planner.next("b")
    assert second is not None
    second[0].steps = 4
    planned.directory.save(planned.sweep, planned.state)

    again = search(few_digits, tmp_path, folds=2)  # as if the driver had died
    board, planner = planner_of(again)
    resumed = planner.next("c")
    assert resumed is not None
    assert [one.key for one in resumed] == [one.key for one in second]
    board.began(resumed)
    planner.heard("c", report(resumed, 1.0, 0.4))
    planner.over("c", report(resumed, 2.0, 0.4), failed=True)
    third = planner.next("d")
    assert third is not None
    board.began(third)
    assert len({repr(one[0].coordinates) for one in (first, second, third)}) == 3
    assert planner.next("e") == ()  # three trials, those of the earlier call with them
    assert len(again.state.cells) == 6


def test_a_trial_that_has_begun_goes_on_before_one_that_has_not(few_digits: Path, tmp_path: Path) -> None:
    planned = search(few_digits, tmp_path)
    _, planner = planner_of(planned)
    drawn = [planner.next(name) for name in "abc"]
    assert drawn[1] is not None
    drawn[1][0].steps = 4
    _, after = planner_of(planned)
    assert labels(after.next("d")) == labels(drawn[1])


def test_a_draw_that_makes_no_recipe_is_noted_and_passed_over(few_digits: Path, tmp_path: Path) -> None:
    space = {"training.micro_batch": {"choice": [4, 999]}, "seed": {"integer": [0, 3]}}
    planned = search(few_digits, tmp_path, search={"space": space, "trials": 8})
    _, planner = planner_of(planned)
    drawn = 0
    while planner.next(f"t{drawn}"):
        drawn += 1
    assert drawn == 4
    assert {cell.coordinates["training.micro_batch"] for cell in planned.state.cells} == {4}
    assert any("makes no recipe" in note and "micro_batch 999 exceeds" in note for note in planned.state.notes)


def test_a_point_that_another_sweep_has_trained_teaches_and_is_not_trained(few_digits: Path, tmp_path: Path) -> None:
    space = {"seed": {"choice": [0, 1]}}
    planned = search(few_digits, tmp_path, search={"space": space, "trials": 2})
    _, planner = planner_of(planned)
    for seed in (0, 1):
        cell = planned.maker.cell({"seed": seed})
        run = planned.directory.run(cell.key)
        run.save_recipe(cell.recipe)
        run.write_summary(run.summary().model_copy(update={"status": "finished", "goal": "val/top1"}))
    assert planner.next("t") == ()
    assert [one.standing for one in planned.state.cells] == ["finished", "finished"]


def test_cells_that_differ_in_the_fold_alone_are_one_point() -> None:
    cells = [record(f"{seed}{fold}", seed=seed, **{"data.fold": fold}) for fold in (0, 1) for seed in (0, 1)]
    assert [[one.key for one in group] for group in points(cells)] == [["00", "01"], ["10", "11"]]
    assert points([]) == []


@pytest.mark.parametrize(
    ("standings", "ended"),
    [
        (["finished", "finished"], "finished"),
        (["finished", "planned"], "running"),
        (["finished", "stopped"], "stopped"),
        (["stopped", "failed"], "failed"),
        (["running", "planned"], "running"),
    ],
)
def test_a_point_stands_as_its_folds_do(standings: list[Standing], ended: str) -> None:
    assert ended_of([record(str(place), standing) for place, standing in enumerate(standings)]) == ended


def test_what_a_search_is_told_of_earlier_calls_is_what_was_reported_then() -> None:
    """Epochs over all folds; scores are bests, averaged over the folds so far."""
    first = record("a", "finished", (1.0, 0.5), (2.0, 0.4), seed=1, **{"data.fold": 0})
    second = record("b", "running", (1.0, math.nan), (2.0, 0.9), seed=1, **{"data.fold": 1})
    (past,) = pasts([[first, second]], "max")
    assert (past.key, past.coordinates, past.ended) == ("a", {"seed": 1}, "running")
    assert [epoch for epoch, _ in past.scores] == [1.0, 2.0, 3.0, 4.0]
    scores = [score for _, score in past.scores]
    assert scores[:2] == [0.5, 0.5]
    assert math.isnan(scores[2])
    assert scores[3] == pytest.approx((0.5 + 0.9) / 2)
    (low,) = pasts([[first]], "min")
    assert [score for _, score in low.scores] == [0.5, 0.4]
    assert low.coordinates == {"seed": 1, "data.fold": 0}  # a grid's cell
    assert math.isnan(mean_score([record("c")]))
    assert mean_score([first, record("c")]) == 0.5
