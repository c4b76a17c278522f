"""What is handed out once more and what is not: cells whose process dies, draws that make no recipe, cells of other lengths."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from sweep_maker import make_grid

from longhaul.recipe.sweep import AshaStopping, MedianStopping, SweepRecipe
from longhaul.resilience.run_directory import Summary
from longhaul.resilience.sweep_directory import Refused
from longhaul.tuning.board import Board
from longhaul.tuning.history import Past
from longhaul.tuning.planners import GridPlan, SearchPlan, pasts, points, with_refused
from longhaul.tuning.search.search import make_searcher
from longhaul.tuning.search.stopping import make_scheduler
from longhaul.tuning.sweep_plan import SweepPlan, plan

STOP, CONTINUE = TrialScheduler.STOP, TrialScheduler.CONTINUE


def test_a_cell_whose_process_always_dies_is_not_handed_out_again_in_the_same_call(tmp_path: Path) -> None:
    ends: Any = {("vgg11", side): ("planned", None) for side in (32, 48)}
    directory = make_grid(str(tmp_path), models=["vgg11"], resolutions=[32, 48], ends=ends)
    board = Board(directory, directory.recipe(), directory.state(), lambda state: None)
    planner = GridPlan(board, None)
    first = planner.next("a")
    assert first
    board.began(first)
    directory.run(first[0].key).write_summary(Summary(status="running", goal="val/top1", step=30, segment=1))
    board.validated(first[0], 1.0, 0.5, 30)
    board.ended(first[0], "stopped early by asha", error=True)
    assert first[0].standing == "failed"
    assert "its process died" in (first[0].reason or "")
    second = planner.next("b")
    assert second
    assert second[0].key != first[0].key
    board.began(second)
    board.ended(second[0], None, error=True)
    assert planner.next("c") == ()


def search(images: Path, root: Path, trials: int, space: dict[str, Any] | None = None) -> SweepPlan:
    """By default about every second draw makes no recipe."""
    base = {
        "model": {"name": "tiny_cnn"},
        "data": {"kind": "imagefolder", "root": str(images), "resolution": 16},
        "training": {"epochs": 2, "global_batch": 8, "micro_batch": 4},
    }
    space = space or {"data.share": {"uniform": [0.4, 1.6]}, "training.optimizer.lr": {"log_uniform": [1e-3, 1e-1]}}
    section = {"kind": "tpe", "startup": 3, "seed": 1, "trials": trials, "space": space}
    sweep = SweepRecipe.model_validate({"name": "s", "recipe": base, "search": section})
    return plan(sweep, str(root), "s", folder=Path.cwd())


class Call:
    """One call of the sweep: as the driver sets planner and searcher up."""

    def __init__(self, planned: SweepPlan) -> None:
        self.planned, state = planned, planned.state
        self.board = Board(planned.directory, planned.sweep, state, lambda state: None)
        assert planned.sweep.search is not None
        past = with_refused(pasts(points(state.cells), state.direction), state.refused)
        self.planner = SearchPlan(self.board, planned, make_searcher(planned.sweep.search, state.direction, past))
        planned.directory.save(planned.sweep, state)

    def train(self, name: str) -> dict[str, Any] | None:
        """One trial, to its end; the coordinates that were drawn."""
        records = self.planner.next(name)
        if not records:
            return None
        (record,) = records
        self.board.began(records)
        score = record.coordinates["data.share"]
        told = {"epoch": 2.0, "score": score, "key": record.key, "cell_epoch": 2.0, "cell_score": score, "steps": 4}
        self.board.validated(record, 2.0, score, 4)
        self.planner.heard(name, told)
        run = self.planned.directory.run(record.key)
        run.save_recipe(self.planned.cells[record.key].recipe)
        run.write_summary(Summary(status="finished", goal="val/top1", step=4, segment=1))
        with run.metric_writer() as writer:
            writer.append(segment=1, step=4, epoch=2.0, samples=16, time_s=1.0, name="val/top1", value=score)
        self.board.ended(record, None, error=False)
        self.planner.over(name, told, failed=False)
        return record.coordinates


def test_a_search_with_draws_that_make_no_recipe_is_finished_when_it_is(few_digits: Path, tmp_path: Path) -> None:
    call = Call(search(few_digits, tmp_path, 8))
    drawn = [coordinates for place in range(9) if (coordinates := call.train(str(place)))]
    refused = call.planned.state.refused
    assert 0 < len(refused) < 8
    assert len(drawn) + len(refused) == 8
    assert all(one.coordinates["data.share"] > 1 and "data.share" in one.reason for one in refused)
    again = Call(search(few_digits, tmp_path, 8))
    assert again.train("again") is None
    assert [len(again.planned.state.cells), len(again.planned.state.refused)] == [len(drawn), len(refused)]


def test_a_search_that_was_killed_draws_what_it_would_have_drawn(few_digits: Path, tmp_path: Path) -> None:
    straight = Call(search(few_digits, tmp_path / "straight", 9))
    expected = [coordinates for place in range(9) if (coordinates := straight.train(str(place)))]
    killed = []
    for place in range(9):  # after every trial
        coordinates = Call(search(few_digits, tmp_path / "killed", 9)).train(f"k{place}")
        killed += [coordinates] if coordinates else []
    assert killed == expected
    places = [one.place for one in Call(search(few_digits, tmp_path / "killed", 9)).planned.state.refused]
    assert places == [one.place for one in straight.planned.state.refused]
    assert any(place < len(expected) for place in places)  # between trials that were trained


def test_a_draw_that_makes_a_recipe_after_an_edit_counts_no_more(few_digits: Path, tmp_path: Path) -> None:
    space = {"training.micro_batch": {"choice": [4, 16]}}
    call = Call(search(few_digits, tmp_path, 2, space))
    while call.planner.next("t"):
        pass
    assert [one.coordinates for one in call.planned.state.refused] == [{"training.micro_batch": 16}]
    sweep = call.planned.sweep
    base = {**sweep.recipe, "training": {**sweep.recipe["training"], "global_batch": 32}}
    edited = plan(sweep.model_copy(update={"recipe": base}), str(tmp_path), "s", folder=Path.cwd())
    assert edited.state.refused == []


def test_draws_that_make_no_recipe_stand_where_they_were_drawn() -> None:
    trials = [Past({"seed": place}, [], "finished", str(place)) for place in (1, 3)]
    refused = [Refused(coordinates={"seed": place}, reason="why", place=place) for place in (0, 2, 4)]
    told = with_refused(trials, refused)
    assert [(one.coordinates["seed"], one.ended) for one in told] == [
        (place, "finished" if place % 2 else "failed") for place in range(5)
    ]
    assert len({one.key for one in told}) == 5


def trial(key: str, epochs: float) -> Any:
    return SimpleNamespace(trial_id=key, config={"key": key, "epochs": epochs})


@pytest.mark.parametrize(
    "stopping", [AshaStopping(kind="asha", least_epochs=4, reduction=2), MedianStopping(kind="median", least_trials=1)]
)
@pytest.mark.parametrize("epochs", [8.0, 4.0])
def test_a_trial_is_not_stopped_at_its_own_last_epoch(stopping: Any, epochs: float) -> None:
    """Whichever of the sweep's cells gave the scheduler its length."""
    best = Past({}, [(4.0, 0.9)], "running", "long")
    scheduler = make_scheduler(stopping, "max", epochs, [best])
    told = {"epoch": 4.0, "score": 0.1, "training_iteration": 1}
    assert scheduler.on_trial_result(None, trial("short", 4.0), told) == CONTINUE  # type: ignore[arg-type]
    assert scheduler.on_trial_result(None, trial("as long", 8.0), told) == STOP  # type: ignore[arg-type]
    assert scheduler.on_trial_result(None, trial("best", 8.0), {**told, "score": 0.95}) == CONTINUE  # type: ignore[arg-type]


def test_a_long_trial_is_judged_beyond_the_length_of_the_others() -> None:
    asha = AshaStopping(kind="asha", least_epochs=4, reduction=2)
    past = [Past({}, [(4.0, 0.5), (8.0, 0.9)], "running", key) for key in "ab"]
    scheduler = make_scheduler(asha, "max", 4.0, past)
    for epoch, score, verdict in ((4.0, 0.6, CONTINUE), (8.0, 0.7, STOP)):
        told = {"epoch": epoch, "score": score, "training_iteration": 1}
        assert scheduler.on_trial_result(None, trial("long", 16.0), told) == verdict  # type: ignore[arg-type]
