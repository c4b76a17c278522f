"""Where the cells of a sweep stand while it runs, and what of that is written down."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from sweep_maker import make_grid

from longhaul.recipe.sweep import BudgetSection, ResourcesSection
from longhaul.resilience.run_directory import Summary
from longhaul.resilience.sweep_directory import CellRecord, Standing, SweepDirectory
from longhaul.tuning.board import Board

STOPPED = "stopped early by asha"


class Sweep:
    """One that has trained one cell, and has another before it."""

    def __init__(self, root: Path) -> None:
        ends: dict[tuple[str, int], tuple[Standing, str | None]] = {("vgg11", 48): ("planned", None)}
        self.directory: SweepDirectory = make_grid(str(root), models=["vgg11"], resolutions=[32, 48], ends=ends)
        self.state = self.directory.state()
        self.state.hours = self.state.dollars = 0.0
        prices = BudgetSection(dollars_per_cpu_hour=1.0, dollars_per_gpu_hour=10.0)
        sweep = self.directory.recipe().model_copy(update={"budget": prices, "resources": ResourcesSection(cpus=2.0)})
        self.shown: list[str] = []
        self.board = Board(self.directory, sweep, self.state, lambda state: self.shown.append(state.cells[1].standing))

    @property
    def cell(self) -> CellRecord:
        """The one that has not been trained."""
        return self.state.cells[1]

    def leave(self, **summary: object) -> None:
        """What its training leaves."""
        run = self.directory.run(self.cell.key)
        run.write_summary(Summary(goal="val/top1", segment=1).model_copy(update=summary))
        with run.metric_writer() as writer:
            place = {"segment": 1, "step": 4, "epoch": 1.0, "samples": 40, "time_s": 1.0}
            writer.append(**place, name="val/top1", value=0.5)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


def test_a_cell_goes_from_planned_to_finished_and_each_step_is_written_and_shown(sweep: Sweep) -> None:
    board, cell = sweep.board, sweep.cell
    board.began([cell])
    assert sweep.directory.state().cells[1].standing == "running"
    board.validated(cell, 1.0, 0.4, 4)
    board.validated(cell, 2.0, 0.6, 8)
    board.validated(cell, 3.0, math.nan, 12)
    assert (cell.scores[:2], cell.score, cell.steps) == ([(1.0, 0.4), (2.0, 0.6)], 0.6, 12)
    board.validated(cell, 2.0, 0.5, 8)  # after a rollback: what came later is no more
    assert (cell.scores, cell.score) == ([(1.0, 0.4), (2.0, 0.5)], 0.5)
    sweep.leave(status="finished", step=4, best=0.5, results={"test/top1": 0.45})
    board.ended(cell, STOPPED, error=False)  # whoever wanted to stop it came too late
    assert (cell.standing, cell.reason, cell.score, cell.results) == ("finished", None, 0.5, {"test/top1": 0.45})
    assert sweep.directory.state().cells[1] == cell
    assert sweep.shown[0] == "running"
    assert sweep.shown[-1] == "finished"


@pytest.mark.parametrize(
    ("status", "reason", "error", "standing", "told"),
    [
        ("paused", STOPPED, False, "stopped", STOPPED),
        ("paused", None, False, "planned", None),  # the sweep ends: it goes on at the next call
        ("failed", None, True, "failed", "why"),
        ("failed", STOPPED, False, "failed", "why"),
        ("running", None, True, "failed", "its process died at every attempt (out of memory?); the same command tries it again"),
        ("cancelled", None, False, "stopped", "cancelled by request"),
        ("cancelled", STOPPED, False, "stopped", "cancelled by request"),
    ],
)
def test_how_a_cell_stands_after_its_trial_follows_from_its_run(
    sweep: Sweep, status: str, reason: str | None, error: bool, standing: Standing, told: str | None
) -> None:
    sweep.board.began([sweep.cell])
    sweep.leave(status=status, step=4, error="why" if status == "failed" else None)
    sweep.board.ended(sweep.cell, reason, error=error)
    assert (sweep.cell.standing, sweep.cell.reason) == (standing, told)
    assert (sweep.cell.scores, sweep.cell.steps) == ([(1.0, 0.5)], 4)


def test_time_is_charged_at_the_prices_of_what_the_cell_takes(sweep: Sweep) -> None:
    sweep.cell.gpus = 0.5
    for _ in range(2):
        sweep.board.spent(sweep.cell, 1800.0, {"CPU": 2.0, "GPU": 0.5})
    assert sweep.cell.seconds == 3600.0
    assert sweep.state.dollars == pytest.approx(2 * 1.0 + 0.5 * 10.0)


def test_a_decision_is_noted_once(sweep: Sweep) -> None:
    before = len(sweep.state.notes)
    for _ in range(3):
        sweep.board.note("the budget is spent")
    sweep.board.note("another")
    assert sweep.directory.state().notes[before:] == ["the budget is spent", "another"]


def test_a_cell_that_is_drawn_later_is_looked_at_when_it_comes(sweep: Sweep, tmp_path: Path) -> None:
    finished = sweep.state.cells[0].model_copy(update={"key": sweep.state.cells[0].key, "standing": "planned", "score": None})
    other = Board(sweep.directory, sweep.directory.recipe(), sweep.state.model_copy(update={"cells": []}), lambda state: None)
    assert other.known(finished).standing == "finished"
    assert finished.score is not None
    assert other[finished.key] is finished
    with pytest.raises(KeyError):
        other["no such key"]


def test_storage_that_is_away_for_a_moment_does_not_end_the_sweep(sweep: Sweep) -> None:
    folder = Path(sweep.directory.storage.root)
    folder.rename(folder.with_name("away"))
    folder.write_bytes(b"no folder")
    sweep.board.skipped(sweep.cell, "cannot win")
    folder.unlink()
    folder.with_name("away").rename(folder)
    sweep.board.changed(now=True)
    assert sweep.directory.state().cells[1].reason == "cannot win"


def test_a_goal_to_be_low_has_its_lowest_score(sweep: Sweep) -> None:
    sweep.state.direction = "min"
    for epoch, score in ((1.0, 0.5), (2.0, 0.3), (3.0, 0.4)):
        sweep.board.validated(sweep.cell, epoch, score, int(epoch))
    assert sweep.cell.score == 0.3
