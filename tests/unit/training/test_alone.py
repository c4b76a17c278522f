"""A run of one worker in its caller's process: the same run as by workers, paused by who watches it, with less memory smaller."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from runs_in_process import outcome, recipe_for, train
from torch import Tensor, nn

from longhaul.data.samples import Batch
from longhaul.errors import LonghaulError, UserError
from longhaul.recipe import Recipe
from longhaul.resilience.incidents import incidents
from longhaul.resilience.ledger import read_ledger
from longhaul.resilience.requests import Request, StopRequested, ask
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training import alone
from longhaul.training.alone import can_train_alone, train_alone
from longhaul.training.progress import Progress
from longhaul.workloads.classification import Classification


class PausesAt:
    """Watches a run, and pauses it at its `at`-th validation."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.seen = at, list[tuple[int, float]]()

    def __call__(self, progress: Progress, goal: float) -> None:
        self.seen.append((progress.step, goal))
        if len(self.seen) == self.at:
            raise StopRequested(Request(kind="pause", id="test", time_s=time.time()))


def started(few_digits: Path, root: Path, *overrides: str) -> tuple[Recipe, RunDirectory]:
    recipe = recipe_for(few_digits, *overrides)
    return recipe, RunDirectory.create(str(root), "run", recipe)


def kinds(run: RunDirectory) -> list[str]:
    return [row["kind"] for row in run.events().to_pylist()]


def test_it_trains_bit_for_bit_what_the_loop_trains(few_digits: Path, tmp_path: Path) -> None:
    recipe, run = started(few_digits, tmp_path / "alone")
    watch = PausesAt()
    mine = outcome(run, train_alone(recipe, run, gpu=False, observe=watch))
    straight = train(recipe, tmp_path / "straight")
    assert mine.summary.status == "finished"
    assert mine.equal(straight)
    assert mine.summary.results == straight.summary.results
    assert watch.seen == [(step, mine.metrics["val/top1", step]) for step in (2, 4, 6, 8, 9)]
    assert mine.summary.flops_per_sample is not None
    driver = [row["state"] for row in read_ledger(run).to_pylist() if row["source"] == "driver"]
    assert (driver[0], driver[-1]) == ("began", "ended")
    assert not run.storage.exists("lease.json")


@pytest.mark.parametrize("at", [1, 3, 5])
def test_paused_by_who_watches_it_goes_on_bit_for_bit(few_digits: Path, tmp_path: Path, at: int) -> None:
    """The fifth validation is the last step's: what is left then is the test."""
    recipe, run = started(few_digits, tmp_path / "paused", "checkpoints.every=1000 steps")
    first = train_alone(recipe, run, gpu=False, observe=PausesAt(at))
    step = (2, 4, 6, 8, 9)[at - 1]
    assert (first.status, first.step, first.results) == ("paused", step, {})
    watch = PausesAt()
    second = outcome(run, train_alone(recipe, run, gpu=False, observe=watch))
    assert second.summary.status == "finished"
    assert second.equal(train(recipe_for(few_digits), tmp_path / "straight"))
    assert [seen for seen, _ in watch.seen] == [seen for seen in (2, 4, 6, 8, 9) if seen > step]
    steps = [row["step"] for row in run.metrics().to_pylist() if row["name"] == "train/loss"]
    assert sorted(steps) == list(range(1, 10))  # none twice


def test_a_request_that_stands_there_from_before_is_forgotten(few_digits: Path, tmp_path: Path) -> None:
    recipe, run = started(few_digits, tmp_path)
    ask(run, "pause")
    assert train_alone(recipe, run, gpu=False).status == "finished"


class Hungry(Classification):
    """Has room for three samples at once."""

    fits = 3

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        if len(batch["label"]) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return super().loss(model, batch)


class Starving(Hungry):
    fits = 0


def test_out_of_memory_halves_the_micro_batch_and_goes_on(
    few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = started(few_digits, tmp_path, "training.micro_batch=12", "training.global_batch=12")
    monkeypatch.setattr(alone, "build", Hungry)
    summary = train_alone(recipe, run, gpu=False)
    assert summary.status == "finished"
    assert summary.step == 9
    events = [row["message"] for row in run.events().to_pylist() if row["kind"] == "micro_batch"]
    assert [text.split(",")[0] for text in events] == ["micro-batch 12 -> 6", "micro-batch 6 -> 3"]
    told = incidents(run)
    assert [(one.kind, one.retried) for one in told] == [("memory", True)] * 2


@pytest.mark.parametrize(("budget", "attempts", "reason"), [("1", 2, "budget"), ("9", 3, "not even one sample fits into memory")])
def test_memory_that_never_suffices_ends_the_run(
    few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: str, attempts: int, reason: str
) -> None:
    recipe, run = started(few_digits, tmp_path, "training.micro_batch=4", f"resilience.budgets.memory={budget}")
    monkeypatch.setattr(alone, "build", Starving)
    with pytest.raises(LonghaulError, match="out of memory with micro-batches of"):
        train_alone(recipe, run, gpu=False)
    told = incidents(run)
    assert len(told) == attempts
    assert not told[-1].retried
    assert reason in (told[-1].reason or "")
    assert run.summary().status == "failed"
    assert "out of memory" in (run.summary().error or "")


class Odd(Exception):
    """No error of Longhaul's own."""


class Ends(Classification):
    """Ends in its first step, by what the test puts here."""

    how: type[BaseException] = Odd

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        raise self.how("first line\nsecond line")


@pytest.mark.parametrize(
    ("how", "status", "error"),
    [
        (Odd, "failed", "first line"),
        (UserError, "failed", "first line"),
        (KeyboardInterrupt, "stopped", "interrupted"),
        (SystemExit, "stopped", "interrupted"),
    ],
)
def test_how_it_ended_is_written_down(
    few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: type[BaseException], status: str, error: str
) -> None:
    recipe, run = started(few_digits, tmp_path)
    monkeypatch.setattr(alone, "build", Ends)
    monkeypatch.setattr(Ends, "how", how)
    with pytest.raises(how):
        train_alone(recipe, run, gpu=False)
    assert (run.summary().status, run.summary().error) == (status, error)
    assert status in kinds(run)
    assert not run.storage.exists("lease.json")
    monkeypatch.undo()
    assert train_alone(recipe, run, gpu=False).status == "finished"


@pytest.mark.parametrize(
    ("override", "can"),
    [("seed=1", True), ("scaling.workers=2", False), ("scaling.workers=[1, 2]", False), ("training.engine=zero1", False)],
)
def test_one_worker_of_plain_torch_needs_no_cluster(few_digits: Path, override: str, can: bool) -> None:
    more = ["training.ema_decay=null"] if "zero" in override else []
    assert can_train_alone(recipe_for(few_digits, override, *more)) is can
