"""Tune asks, the planner chooses, the board is told: what a searcher of ours answers at each of Tune's hooks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher
from sweep_maker import make_search

from longhaul.recipe import parse
from longhaul.recipe.sweep import BudgetSection
from longhaul.resilience.lease import lease
from longhaul.resilience.requests import answered, asked
from longhaul.resilience.run_directory import Summary
from longhaul.resilience.sweep_directory import CellRecord
from longhaul.tuning.board import Board
from longhaul.tuning.budget import Budget
from longhaul.tuning.trial import CellOrder, TrialOrder
from longhaul.tuning.trial_source import TrialSource

WHY = "stopped early by asha"


class Listed:
    """Plans groups of cells in order, and writes down what it hears."""

    def __init__(self, groups: Sequence[Sequence[CellRecord]]) -> None:
        self.groups, self.heard_of, self.ends, self.asked = list(groups), list[str](), list[tuple[str, bool]](), 0

    def next(self, trial_id: str) -> Sequence[CellRecord] | None:
        self.asked += 1
        return self.groups.pop(0) if self.groups else ()

    def heard(self, trial_id: str, result: dict[str, Any]) -> None:
        self.heard_of.append(trial_id)

    def over(self, trial_id: str, result: dict[str, Any] | None, *, failed: bool) -> None:
        self.ends.append((trial_id, failed))


class Sweep:
    """Three points of two folds, none of them trained."""

    def __init__(self, root: Path, **budget: Any) -> None:
        self.directory = make_search(str(root), trials=3, folds=2)
        state = self.directory.state()
        state.hours = state.dollars = 0.0
        for place, cell in enumerate(state.cells):
            cell.key = f"cell-{place}"
            cell.standing, cell.reason, cell.score, cell.scores, cell.steps, cell.seconds = "planned", None, None, [], 0, 0.0
        self.cells = state.cells
        self.board = Board(self.directory, self.directory.recipe(), state, lambda state: None)
        self.planner = Listed([self.cells[place : place + 2] for place in (0, 2, 4)])
        self.source = TrialSource(self.board, self.planner, Budget(BudgetSection(**budget)), self.order, WHY)

    def order(self, records: Sequence[CellRecord]) -> TrialOrder:
        cells = tuple(CellOrder(key=one.key, recipe=one.recipe, run=self.directory.run(one.key).uri) for one in records)
        return TrialOrder(key=records[0].key, cells=cells, resources={"CPU": 1.0}, coordinates={})

    def leave(self, place: int, status: Any) -> None:
        run = self.directory.run(self.cells[place].key)
        if not run.storage.exists("recipe.yaml"):
            run.save_recipe(parse(self.cells[place].recipe))
        run.write_summary(Summary(status=status, error="why" if status == "failed" else None))


def result(cell: CellRecord, epoch: float, total_s: float) -> dict[str, Any]:
    told = {"epoch": epoch, "score": 0.5, "cell_epoch": epoch, "cell_score": 0.5}
    return {**told, "key": cell.key, "steps": int(epoch), "time_total_s": total_s}


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


def test_a_trial_is_ordered_heard_and_ended(sweep: Sweep) -> None:
    order = TrialOrder.model_validate(sweep.source.suggest("t"))
    assert [cell.key for cell in order.cells] == ["cell-0", "cell-1"]
    assert [cell.standing for cell in sweep.cells[:3]] == ["running", "running", "planned"]
    assert sweep.source.running == 1
    sweep.source.on_trial_result("t", result(sweep.cells[0], 1.0, 10.0))
    sweep.source.on_trial_result("t", result(sweep.cells[1], 1.0, 25.0))
    for place in (0, 1):
        sweep.leave(place, "finished")
    sweep.source.on_trial_complete("t", result(sweep.cells[1], 1.0, 27.0))
    assert [cell.standing for cell in sweep.cells[:2]] == ["finished", "finished"]
    assert [cell.seconds for cell in sweep.cells[:2]] == [10.0, 17.0]
    assert (sweep.planner.heard_of, sweep.planner.ends, sweep.source.running) == (["t", "t"], [("t", False)], 0)
    for _ in range(2):
        sweep.source.suggest("u")
    assert sweep.source.suggest("v") == Searcher.FINISHED


def test_what_the_rule_ends_before_its_time_is_stopped_with_the_reason(sweep: Sweep) -> None:
    sweep.source.suggest("t")
    sweep.source.condemn("t", result(sweep.cells[1], 1.0, 5.0))
    sweep.leave(0, "finished")
    sweep.leave(1, "paused")
    sweep.source.on_trial_complete("t", result(sweep.cells[1], 1.0, 5.0))
    assert [(cell.standing, cell.reason) for cell in sweep.cells[:2]] == [("finished", None), ("stopped", WHY)]


def test_after_a_fold_that_failed_the_others_wait_for_the_next_call(sweep: Sweep) -> None:
    sweep.source.suggest("t")
    sweep.leave(0, "failed")
    sweep.source.on_trial_complete("t", {})
    assert [(cell.standing, cell.reason) for cell in sweep.cells[:2]] == [("failed", "why"), ("planned", None)]
    assert sweep.planner.ends == [("t", True)]


def test_a_process_that_always_dies_fails_its_cell_and_leaves_the_others_to_go_on(sweep: Sweep) -> None:
    sweep.source.suggest("t")
    sweep.leave(0, "running")
    sweep.source.on_trial_complete("t", None, error=True)
    assert [cell.standing for cell in sweep.cells[:2]] == ["failed", "planned"]
    assert sweep.planner.ends == [("t", True)]


def test_at_the_end_what_runs_is_asked_to_pause_and_stays_planned(sweep: Sweep) -> None:
    sweep.source.suggest("t")
    sweep.leave(0, "running")
    sweep.source.end("enough")
    with lease(sweep.directory.run("cell-0"), sweep.directory.storage.uri):
        sweep.source.look()
    request = asked(sweep.directory.run("cell-0"))
    assert request is not None
    assert request.kind == "pause"
    sweep.source.look()
    assert asked(sweep.directory.run("cell-0")) == request  # not again before it is answered
    answered(sweep.directory.run("cell-0"))
    assert sweep.source.suggest("u") == Searcher.FINISHED
    sweep.leave(0, "paused")
    sweep.source.on_trial_complete("t", result(sweep.cells[0], 1.0, 5.0))
    assert [(cell.standing, cell.reason) for cell in sweep.cells[:2]] == [("planned", None)] * 2
    assert "enough" in sweep.directory.state().notes


def test_a_budget_of_trials_asks_the_planner_for_nothing_that_it_would_throw_away(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, trials=2)
    assert sweep.source.suggest("t")
    for _ in range(5):
        assert sweep.source.suggest("u") is None  # what has begun trains to its end
    assert sweep.planner.asked == 1
    for place in (0, 1):
        sweep.leave(place, "finished")
    sweep.source.on_trial_complete("t", result(sweep.cells[1], 1.0, 5.0))
    assert sweep.source.suggest("v") == Searcher.FINISHED
    assert "budget.trials 2" in (sweep.source.ending or "")


def test_what_a_spent_budget_has_begun_may_go_on(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, trials=1)
    sweep.cells[0].steps = 4  # an earlier call began it
    assert sweep.source.suggest("t")
    assert sweep.source.suggest("u") is None


def test_dollars_end_it_when_they_are_spent(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, dollars=1.0, dollars_per_cpu_hour=3600.0)
    sweep.board.sweep = sweep.board.sweep.model_copy(update={"budget": BudgetSection(dollars_per_cpu_hour=3600.0)})
    sweep.source.suggest("t")
    sweep.source.on_trial_result("t", result(sweep.cells[0], 1.0, 0.5))
    sweep.source.look()
    assert sweep.source.ending is None
    sweep.source.on_trial_result("t", result(sweep.cells[0], 2.0, 1.5))
    sweep.source.look()
    assert "budget.dollars 1" in (sweep.source.ending or "")


def test_tune_may_write_it_down_and_finds_nothing_in_it(sweep: Sweep, tmp_path: Path) -> None:
    import pickle

    sweep.source.save(str(tmp_path / "state"))
    sweep.source.restore(str(tmp_path / "state"))
    assert sweep.source.__getstate__() == {}
    assert pickle.dumps(sweep.source)
