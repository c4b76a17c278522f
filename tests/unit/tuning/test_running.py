"""What a running sweep asks, hears, counts and pays: the source, the board and the trial's own words, without a cluster."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from sweep_maker import make_search

from longhaul.errors import UserError
from longhaul.recipe import parse
from longhaul.recipe.sweep import BudgetSection
from longhaul.resilience.requests import answered, ask, asked
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.resilience.sweep_directory import CellRecord, SweepDirectory
from longhaul.tuning import board as board_module
from longhaul.tuning import trial, trial_source
from longhaul.tuning.board import PAUSED, Board
from longhaul.tuning.budget import Budget
from longhaul.tuning.search.verdicts import Verdicts
from longhaul.tuning.sizing.resources import charged_resources
from longhaul.tuning.trial import CellOrder, TrialOrder, train_trial
from longhaul.tuning.trial_source import TrialSource

WHY = "stopped early by asha"
PRICES = BudgetSection(dollars_per_cpu_hour=3600.0, dollars_per_gpu_hour=36000.0)


class Listed:
    """Plans groups of cells in order."""

    def __init__(self, groups: Sequence[Sequence[CellRecord]]) -> None:
        self.groups, self.ends = list(groups), list[str]()

    def next(self, trial_id: str) -> Sequence[CellRecord] | None:
        return self.groups.pop(0) if self.groups else ()

    def heard(self, trial_id: str, result: dict[str, Any]) -> None:
        pass

    def over(self, trial_id: str, result: dict[str, Any] | None, *, failed: bool) -> None:
        self.ends.append(trial_id)


class Sweep:
    """Two points of two folds, none of them trained; every trial's cells take what `each` says."""

    def __init__(self, root: Path, budget: BudgetSection | None = None, each: dict[str, float] | None = None) -> None:
        budget = budget or BudgetSection()
        self.directory: SweepDirectory = make_search(str(root), trials=2, folds=2)
        state = self.directory.state()
        state.hours = state.dollars = 0.0
        for place, cell in enumerate(state.cells):
            cell.key = f"cell-{place}"
            cell.standing, cell.reason, cell.score, cell.scores, cell.steps, cell.seconds = "planned", None, None, [], 0, 0.0
        self.cells, self.each = state.cells, each
        sweep = self.directory.recipe().model_copy(update={"budget": budget})
        self.board = Board(self.directory, sweep, state, lambda state: None)
        self.planner = Listed([self.cells[:2], self.cells[2:4]])
        self.source = TrialSource(self.board, self.planner, Budget(budget), self.order, WHY)

    def order(self, records: Sequence[CellRecord]) -> TrialOrder:
        cells = tuple(CellOrder(key=one.key, recipe=one.recipe, run=self.run(self.cells.index(one)).uri) for one in records)
        return TrialOrder(
            key=records[0].key, cells=cells, resources={"CPU": 1.0, "GPU": 0.5}, coordinates={}, charged=self.each,
            sweep=self.directory.storage.uri,
        )  # fmt: skip

    def run(self, place: int) -> RunDirectory:
        return self.directory.run(self.cells[place].key)

    def leave(self, place: int, status: Any, owner: str | None = None, **summary: Any) -> None:
        """What a training leaves; with `owner`, one that goes on."""
        run = self.run(place)
        if not run.storage.exists("recipe.yaml"):
            run.save_recipe(parse(self.cells[place].recipe))
        run.write_summary(Summary(goal="val/top1", status=status).model_copy(update=summary))
        if owner is not None:
            holder = {"holder": "x", "host": socket.gethostname(), "pid": os.getpid(), "renewed_s": time.time(), "owner": owner}
            run.storage.write_bytes("lease.json", json.dumps(holder).encode())


def result(cell: CellRecord, epoch: float, total_s: float, **more: Any) -> dict[str, Any]:
    told = {"epoch": epoch, "score": 0.5, "cell_epoch": epoch, "cell_score": 0.5, **more}
    return {**told, "key": cell.key, "steps": int(epoch), "time_total_s": total_s}


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.setattr(trial_source, "_ASK_S", -1.0)
    monkeypatch.setattr(trial_source, "_AGAIN_S", -1.0)
    return Sweep(tmp_path)


def test_an_end_pauses_what_the_sweep_trains_itself_and_no_other_sweeps_training(sweep: Sweep) -> None:
    sweep.source.suggest("t")
    sweep.leave(0, "running", owner="/another/sweep")
    sweep.source.end("enough")
    sweep.source.look()
    assert asked(sweep.run(0)) is None
    assert asked(RunDirectory(sweep.directory.storage)) is not None  # what the trial looks at that waits for it
    sweep.leave(0, "running", owner=sweep.directory.storage.uri)
    sweep.source.look()
    request = asked(sweep.run(0))
    assert request is not None
    assert request.kind == "pause"
    assert asked(sweep.run(1)) is None  # its second fold, which has not begun


def test_who_waits_for_another_sweeps_cell_ends_when_its_own_does(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_LOOK_S", 0.01)
    order = sweep.order(sweep.cells[:1])
    monkeypatch.setattr(trial, "_WAIT_S", 0.1)
    assert not trial._ends_while_waiting(order)
    ask(RunDirectory(sweep.directory.storage), "pause")
    monkeypatch.setattr(trial, "_WAIT_S", 30.0)
    assert trial._ends_while_waiting(order)


def test_a_run_that_somebody_pauses_rests_for_this_call_and_is_planned_for_the_next(sweep: Sweep) -> None:
    sweep.source.suggest("t")
    sweep.leave(0, "paused")
    sweep.source.on_trial_complete("t", result(sweep.cells[0], 1.0, 5.0))
    assert [(cell.standing, cell.reason) for cell in sweep.cells[:2]] == [("stopped", PAUSED)] * 2
    sweep.board.close()
    assert [(cell.standing, cell.reason) for cell in sweep.cells[:2]] == [("planned", None)] * 2


class StopsAll(TrialScheduler):
    """A rule that would stop every trial."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return TrialScheduler.STOP


class Known:
    """All that the scheduler looks at of a trial."""

    trial_id = "t"


def test_what_the_rule_stops_is_asked_to_pause_and_tune_lets_it_go_on(sweep: Sweep) -> None:
    sweep.source.suggest("t")
    scheduler = Verdicts(StopsAll(), sweep.source.condemn)  # type: ignore[no-untyped-call]
    told = result(sweep.cells[0], 1.0, 5.0)
    assert scheduler.on_trial_result(None, Known(), told) == TrialScheduler.CONTINUE  # type: ignore[arg-type]
    request = asked(sweep.run(0))
    assert request is not None
    assert request.kind == "pause"
    sweep.leave(0, "paused")
    sweep.source.on_trial_complete("t", told)
    assert [(cell.standing, cell.reason) for cell in sweep.cells[:2]] == [("stopped", WHY)] * 2
    sweep.board.close()
    assert sweep.cells[0].standing == "stopped"


def test_a_pause_that_could_not_be_asked_for_is_asked_for_again(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep.source.suggest("t")
    sweep.leave(0, "running", owner=sweep.directory.storage.uri)

    def away(*_: object) -> None:
        raise OSError("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(trial_source, "ask", away)
        sweep.source.condemn("t", result(sweep.cells[0], 1.0, 5.0))
        sweep.source.look()
    assert asked(sweep.run(0)) is None
    sweep.source.look()
    assert asked(sweep.run(0)) is not None
    assert sweep.source.ending is None


def test_storage_that_is_away_when_a_trial_ends_is_read_at_a_later_look(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep.source.suggest("t")
    for place in (0, 1):
        sweep.leave(place, "finished")

    def away(self: RunDirectory) -> Summary:
        raise OSError("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "summary", away)
        sweep.source.on_trial_complete("t", result(sweep.cells[1], 1.0, 5.0))
        sweep.source.look()
    assert (sweep.source.running, sweep.planner.ends, sweep.cells[0].standing) == (1, [], "running")
    sweep.source.look()
    assert (sweep.source.running, sweep.planner.ends) == (0, ["t"])
    assert [cell.standing for cell in sweep.cells[:2]] == ["finished", "finished"]
    assert sum(cell.seconds for cell in sweep.cells) == 5.0


def test_storage_that_is_away_when_the_next_cells_are_looked_at_means_not_yet(sweep: Sweep) -> None:
    order, failing = sweep.order, [True]

    def shaky(records: Sequence[CellRecord]) -> TrialOrder:
        if failing:
            raise OSError(f"connection reset {failing.pop()}")
        return order(records)

    sweep.source._order = shaky
    assert sweep.source.suggest("t") is None
    assert sweep.source.suggest("u") not in (None, Searcher.FINISHED)


def test_a_summary_from_before_the_last_validation_takes_no_steps_back(sweep: Sweep) -> None:
    sweep.board.validated(sweep.cells[0], 2.0, 0.5, 40)
    sweep.leave(0, "running", step=20)
    sweep.board.look(sweep.cells[0])
    assert sweep.cells[0].steps == 40


def test_hours_pass_while_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(tmp_path, BudgetSection(hours=1.0))
    sweep.source.suggest("t")
    sweep.source.look()
    assert sweep.source.ending is None
    later = time.monotonic() + 3700
    monkeypatch.setattr(board_module.time, "monotonic", lambda: later)
    sweep.source.look()
    assert "budget.hours 1" in (sweep.source.ending or "")


@pytest.mark.parametrize(
    ("each", "workers", "dollars"),
    [(None, 1, 10 * (1 + 5)), ({"CPU": 2.0}, 3, 10 * 6), ({"CPU": 2.0, "GPU": 1.0}, 2, 10 * (4 + 20))],
)
def test_what_was_reserved_is_charged(tmp_path: Path, each: dict[str, float] | None, workers: int, dollars: float) -> None:
    """A trial's own process with half a GPU; three workers of two cores; two of two cores and a GPU."""
    sweep = Sweep(tmp_path, PRICES, each)
    sweep.source.suggest("t")
    sweep.source.on_trial_result("t", result(sweep.cells[0], 1.0, 10.0, workers=workers))
    assert sweep.board.state.dollars == pytest.approx(dollars)


def test_on_a_machine_without_gpus_none_is_charged() -> None:
    recipe = parse("{name: a, model: {name: tiny_cnn}, data: {kind: digits}, training: {steps: 1}, scaling: {workers: 2}}")
    assert charged_resources(recipe, {"CPU": 4.0}) == {"CPU": 1.0}
    assert charged_resources(recipe, {"CPU": 4.0, "GPU": 2.0}) == {"CPU": 1.0, "GPU": 1.0}


def test_a_process_that_follows_a_lost_one_counts_its_time_from_zero(sweep: Sweep) -> None:
    sweep.source.suggest("t")
    for total in (10.0, 25.0, 4.0, 6.0):
        sweep.source.on_trial_result("t", result(sweep.cells[0], total, total))
    assert sweep.cells[0].seconds == 25.0 + 6.0


def test_a_budget_of_trials_counts_what_this_sweep_has_begun(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, BudgetSection(trials=2))
    for cell in sweep.cells[2:]:  # another sweep has trained these
        cell.standing, cell.steps = "finished", 40
    assert sweep.source.suggest("t") not in (None, Searcher.FINISHED)
    assert [cell.begun for cell in sweep.cells] == [True, True, False, False]
    assert Budget(BudgetSection(trials=2)).spent(sweep.board.state).trials == 2


class Told:
    """Stands where Tune does, and remembers what a trial tells."""

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []

    def report(self, metrics: dict[str, Any]) -> None:
        self.results.append(metrics)


def test_a_finished_fold_is_told_of_by_its_last_validation(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    monkeypatch.setattr(trial.tune, "report", told.report)
    for place, scores in ((0, (0.4, 0.9, 0.6)), (1, (0.5, 0.7, 0.7))):
        sweep.leave(place, "finished", step=30, epoch=3.2, best=max(scores))
        with sweep.run(place).metric_writer() as writer:
            for step, score in enumerate(scores, start=1):
                where = {"segment": 1, "step": 10 * step, "epoch": float(step), "samples": 0, "time_s": 1.0}
                writer.append(**where, name="val/top1", value=score)
    ask(sweep.run(0), "pause")  # left over: nobody reads it in a finished run
    train_trial(sweep.order(sweep.cells[:2]).model_dump())
    assert [(one["key"], one["cell_epoch"], one["cell_score"], one["steps"]) for one in told.results] == [
        ("cell-0", 3.0, 0.6, 30),
        ("cell-1", 3.0, 0.7, 30),
    ]
    assert [one["score"] for one in told.results] == [0.9, pytest.approx(0.8)]


def test_a_trial_that_is_condemned_by_a_finished_fold_begins_no_further_one(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()

    def report(metrics: dict[str, Any]) -> None:
        told.report(metrics)
        ask(sweep.run(0), "pause")

    monkeypatch.setattr(trial.tune, "report", report)
    for place in (0, 1):
        sweep.leave(place, "finished", step=30, epoch=3.0, best=0.5)
    train_trial(sweep.order(sweep.cells[:2]).model_dump())
    assert [one["key"] for one in told.results] == ["cell-0"]
    assert asked(sweep.run(0)) is None


def test_a_plan_from_before_another_call_is_refused(tmp_path: Path) -> None:
    from longhaul.recipe.load import parse_sweep
    from longhaul.tuning.sweep import run
    from longhaul.tuning.sweep_plan import plan

    text = "recipe: {model: {name: tiny_cnn}, data: {kind: digits}, training: {steps: 1}}"
    text = f"{{name: s, grid: {{data.resolution: [16]}}, {text}}}"
    stale = plan(parse_sweep(text), str(tmp_path), "s", folder=tmp_path)
    other = plan(parse_sweep(text), str(tmp_path), "s", folder=tmp_path)
    other.state.cells[0].standing, other.state.hours = "stopped", 2.0
    other.directory.save(other.sweep, other.state)
    with pytest.raises(UserError, match=r"another call has changed it.*Run the same command again"):
        run(stale)
    assert other.directory.state().hours == 2.0
    fresh = plan(parse_sweep(text), str(tmp_path), "s", folder=tmp_path)
    assert fresh.read == other.directory.state().model_dump_json()
    answered(RunDirectory(other.directory.storage))
