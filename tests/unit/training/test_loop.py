"""Whole runs of a few steps in this process: exact resume, early stopping, the plateau, the best kept at once."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from runs_in_process import (
    ALONE,
    RARELY,
    SHORT,
    Crash,
    Crashing,
    Outcome,
    Scripted,
    ScriptedCrash,
    nothing,
    outcome,
    recipe_for,
    train,
)

from longhaul.data.loader import BatchPlan, StepBatch
from longhaul.data.loader import training_steps as straight_steps
from longhaul.data.order import SampleOrder
from longhaul.data.samples import SampleSet
from longhaul.errors import UserError
from longhaul.recipe import Recipe
from longhaul.resilience.checkpoint import CheckpointStore
from longhaul.resilience.run_directory import RunDirectory, changed_recipe
from longhaul.training import loop
from longhaul.training.loop import Trainer
from longhaul.training.progress import fresh_progress
from longhaul.training.ranks import Ranks
from longhaul.workloads.classification import Classification

# ---- resume ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(few_digits: Path) -> Recipe:
    return recipe_for(few_digits)


@pytest.fixture(scope="module")
def straight(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The run that nothing happens to."""
    return train(recipe, tmp_path_factory.mktemp("straight"))


@pytest.fixture(scope="module")
def crashed(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run lost in the middle of step 6 (of 3 micro-batches each); its newest checkpoint is of step 4, in mid-epoch."""
    root = tmp_path_factory.mktemp("crashed")
    with pytest.raises(Crash):
        train(recipe, root, Crashing(recipe, at=5 * 3 + 2))
    return root


def test_the_run_does_what_its_recipe_says(straight: Outcome) -> None:
    assert (straight.summary.status, straight.summary.step, straight.summary.samples) == ("finished", 9, 108)
    assert straight.saved == [0, 2, 4, 6, 8, 9]
    assert [step for name, step in straight.metrics if name == "val/top1"] == [2, 4, 6, 8, 9]
    assert [step for name, step in straight.metrics if name == "train/loss"] == list(range(1, 10))
    assert straight.events[0] == "started"
    assert straight.events[-1] == "finished"
    assert straight.summary.best == max(value for (name, _), value in straight.metrics.items() if name == "val/top1")


def test_the_same_recipe_gives_the_same_run(recipe: Recipe, straight: Outcome, tmp_path: Path) -> None:
    assert train(recipe, tmp_path).equal(straight)


def test_another_seed_gives_another_run(few_digits: Path, straight: Outcome, tmp_path: Path) -> None:
    assert not train(recipe_for(few_digits, "seed=6"), tmp_path).equal(straight)


def test_a_resumed_run_is_the_straight_one_bit_by_bit(recipe: Recipe, crashed: Path, straight: Outcome, tmp_path: Path) -> None:
    """Weights, their average, the optimizer's moments, the random state, and every loss and metric on the way."""
    shutil.copytree(crashed, tmp_path, dirs_exist_ok=True)
    resumed = train(recipe, tmp_path)
    assert "resumed" in resumed.events
    assert resumed.summary.segment == 2
    assert resumed.equal(straight)
    for key, value in straight.metrics.items():
        if key[0] != "train/samples_per_s" and not key[0].startswith("ranks/"):
            assert resumed.metrics[key] == value, key
    assert resumed.summary.results == straight.summary.results


def test_each_kind_of_loader_gives_the_same_run(few_digits: Path, straight: Outcome, tmp_path: Path) -> None:
    """A loader process instead of this one."""
    assert train(recipe_for(few_digits, "data.loader_workers=1"), tmp_path).equal(straight)


def from_the_start(samples: SampleSet, order: SampleOrder, plan: BatchPlan, cursor: int, *, workers: int) -> Iterator[StepBatch]:
    """Ignores the cursor, as a loader without one would."""
    for batch in straight_steps(samples, order, plan, 0, workers=workers):
        cursor += plan.global_batch
        yield dataclasses.replace(batch, cursor=cursor)


def test_with_the_cursor_ignored_the_resumed_run_differs(
    recipe: Recipe, crashed: Path, straight: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: the comparison above can fail."""
    monkeypatch.setattr(loop, "training_steps", from_the_start)
    shutil.copytree(crashed, tmp_path, dirs_exist_ok=True)
    resumed = train(recipe, tmp_path)
    assert resumed.summary.step == 9
    assert not resumed.equal(straight)


@pytest.mark.parametrize("ignored", ["random state", "moving average"])
def test_with_a_part_of_the_state_ignored_the_resumed_run_differs(
    recipe: Recipe, crashed: Path, straight: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ignored: str
) -> None:
    """More negative controls: what was saved is not put back."""
    from longhaul.training.checkpoints import resuming

    if ignored == "random state":
        monkeypatch.setattr(resuming, "restore_random_state", lambda state: None)
    else:
        monkeypatch.setattr(torch.optim.swa_utils.AveragedModel, "load_state_dict", lambda self, state: None)
    shutil.copytree(crashed, tmp_path, dirs_exist_ok=True)
    assert not train(recipe, tmp_path).equal(straight)


def test_a_finished_run_started_again_trains_no_further(recipe: Recipe, straight: Outcome, tmp_path: Path) -> None:
    train(recipe, tmp_path)
    again = train(recipe, tmp_path, Crashing(recipe, at=1))
    assert again.equal(straight)
    assert again.summary.results == straight.summary.results


# ---- what validations change -----------------------------------------------------------------------------------------


def scripted(root: Path, out: Path, values: Sequence[float], *overrides: str) -> Outcome:
    recipe = recipe_for(root, *SHORT, *RARELY, *overrides)
    return train(recipe, out, Scripted(recipe, values))


def test_early_stopping_ends_the_run(few_digits: Path, tmp_path: Path) -> None:
    """Best at the second validation; the second miss after it is the end, measured and saved."""
    result = scripted(few_digits, tmp_path, [0.1, 0.5, 0.5, 0.4, 0.9], "training.early_stopping={patience: 2}")
    assert result.summary.step == 4
    assert result.summary.status == "finished"
    assert result.events.count("early_stop") == 1
    assert result.saved[-1] == 4
    assert result.summary.best == 0.5


def test_early_stopping_waits_for_its_warm_up_and_least_improvement(few_digits: Path, tmp_path: Path) -> None:
    """Counted from step 3 on: 0.3 is the best, 0.35 no improvement of 0.1, 0.45 is, two misses follow."""
    values = [0.9, 0.1, 0.3, 0.35, 0.45, 0.4, 0.5, 0.9]
    stopping = "training.early_stopping={patience: 2, warmup: 3 steps, min_delta: 0.1}"
    assert scripted(few_digits, tmp_path, values, stopping).summary.step == 7


def test_early_stopping_on_another_metric_and_direction(few_digits: Path, tmp_path: Path) -> None:
    stopping = "training.early_stopping={patience: 1, metric: val/top1, direction: min}"
    assert scripted(few_digits, tmp_path, [0.5, 0.4, 0.45], stopping).summary.step == 3


def test_early_stopping_on_a_metric_that_is_not_measured_is_refused(few_digits: Path, tmp_path: Path) -> None:
    stopping = "training.early_stopping={patience: 1, metric: val/topp, direction: max}"
    with pytest.raises(UserError, match=r"early_stopping\.metric 'val/topp': is not measured\. Give one of val/top1"):
        scripted(few_digits, tmp_path, [0.5], stopping)


def test_a_plateau_lowers_the_rate_from_the_next_step_on(few_digits: Path, tmp_path: Path) -> None:
    plateau = "training.schedule={name: plateau, patience: 2, gamma: 0.5, min_delta: 0.01}"
    result = scripted(few_digits, tmp_path, [0.5, 0.5, 0.505, 0.6, 0.6, 0.6, 0.6, 0.6], plateau)
    rates = [value for (name, _), value in result.metrics.items() if name == "train/lr"]
    assert rates == pytest.approx([3e-3 * factor for factor in (1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25)])
    assert result.events.count("plateau") == 3


def test_a_stopped_run_remembers_its_patience_after_a_crash(few_digits: Path, tmp_path: Path) -> None:
    """One miss before the crash and one after it are two."""
    options = ("training.early_stopping={patience: 2}", "checkpoints.every=1 steps")
    recipe = recipe_for(few_digits, *SHORT, *options)

    with pytest.raises(Crash):
        train(recipe, tmp_path, ScriptedCrash(recipe, [0.5, 0.4], at=3))
    assert train(recipe, tmp_path, Scripted(recipe, [0.3, 0.9, 0.9])).summary.step == 3


@pytest.mark.parametrize(("keep", "saved"), [(1, [0, 1, 3, 6, 8]), (2, [0, 1, 2, 3, 4, 6, 7, 8]), (0, [0, 8])])
def test_one_of_the_best_is_saved_at_once(few_digits: Path, tmp_path: Path, keep: int, saved: list[int]) -> None:
    """A save is due only at the end; the others are there because they were among the best k when they were measured."""
    recipe = recipe_for(few_digits, *SHORT, *RARELY, f"checkpoints.keep_best={keep}", "checkpoints.keep_latest=1")
    names: list[str] = []
    run = RunDirectory.create(str(tmp_path), "run", recipe)
    workload = Scripted(recipe, [0.2, 0.1, 0.5, 0.4, 0.3, 0.7, 0.6, 0.1])
    summary = Trainer(recipe, workload, run, ALONE, lambda name, metrics: names.append(name)).train()
    assert [int(name.split("-")[1]) for name in names] == saved
    kept = {0: [8], 1: [6, 8], 2: [6, 7, 8]}[keep]
    assert [entry.step for entry in CheckpointStore(run).entries()] == kept
    assert summary.best == pytest.approx(0.1 if keep == 0 else 0.7)  # torchmetrics counts in float32


def test_a_world_size_that_does_not_divide_is_a_user_error(few_digits: Path, tmp_path: Path) -> None:
    recipe = recipe_for(few_digits)
    run = RunDirectory.create(str(tmp_path), "run", recipe)
    trainer = Trainer(recipe, Classification(recipe), run, Ranks(0, 5, torch.device("cpu")), nothing)
    with pytest.raises(UserError, match=r"training\.global_batch: a global batch of 12 cannot be shared by 5 workers; 1, 2, 3"):
        trainer.train()


# ---- a recipe that has changed ---------------------------------------------------------------------------------------


def test_a_finished_run_goes_on_when_its_recipe_is_made_longer(few_digits: Path, tmp_path: Path) -> None:
    """With a constant rate it ends bit by bit where one ends that was that long from the start."""
    constant = "training.schedule={name: constant}"
    short = recipe_for(few_digits, constant, "training.steps=6")
    train(short, tmp_path / "longer")
    longer = changed_recipe(str(tmp_path / "longer"), "run", ["training.steps=9"])
    run = RunDirectory.prepare(str(tmp_path / "longer"), "run", longer, ["training.steps"])
    run.save_recipe(longer)
    resumed = outcome(run, Trainer(longer, Classification(longer), run, ALONE, nothing).train())
    assert (resumed.summary.status, resumed.summary.step, resumed.summary.total_steps) == ("finished", 9, 9)
    assert resumed.events.count("changed") == 1
    assert resumed.equal(train(recipe_for(few_digits, constant), tmp_path / "straight"))


def test_changed_settings_hold_for_what_a_checkpoint_remembers(few_digits: Path) -> None:
    """Bounds and patience are the new recipe's; what has been counted and measured stays."""
    before, after = (
        fresh_progress(recipe, Classification(recipe))
        for recipe in (
            recipe_for(few_digits, "training.early_stopping={patience: 3}"),
            recipe_for(
                few_digits,
                "training.early_stopping={patience: 5}",
                "training.schedule={name: plateau, patience: 2}",
                "resilience.spike_sigma=9",
                "checkpoints.ephemeral_min_s=5",
            ),
        )
    )
    assert before.early is not None
    before.early.update(0.5)
    before.early.update(0.4)
    before.monitor.update(1, 2.0, None)
    before.cadence.observe_save(0.25)
    resumed = before.under(after)
    assert resumed.early is not None
    assert (resumed.early.patience, resumed.early.best, resumed.early.misses) == (5, 0.5, 1)
    assert resumed.plateau is not None
    assert (resumed.monitor.sigma, resumed.monitor.losses) == (9, [2.0])
    assert (resumed.cadence.least_s, resumed.cadence.cost_s) == (5, 0.25)
