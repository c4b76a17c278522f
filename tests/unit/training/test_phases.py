"""Runs in phases, in this process: gates, weights that are carried on, exact resume inside a later phase, samples left out."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs_in_process import ALONE, Crash, Crashing, Outcome, Scripted, nothing, outcome, recipe_for
from torch import Tensor

from longhaul.errors import UserError
from longhaul.recipe import Recipe
from longhaul.recipe.phases import resolve
from longhaul.resilience.accounting import account
from longhaul.resilience.checkpoint import CheckpointStore, load_weights
from longhaul.resilience.ledger import read_ledger
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.loop import Trainer
from longhaul.training.phases import GateError, Phases
from longhaul.training.stage import Stage
from longhaul.workloads.classification import Classification

PHASES = """phases=[
  {name: part, set: {data.share: 0.5, training.steps: 5, training.ema_decay: null}, gate: {metric: val/top1, at_least: 0.0}},
  {name: whole, set: {data.resolution: 24, training.steps: 6}, carry: latest}]"""

WorkloadOf = Callable[[Recipe, Stage], Classification]


def plain(recipe: Recipe, stage: Stage) -> Classification:
    return Classification(recipe)


def train(recipe: Recipe, root: Path, workload_of: WorkloadOf = plain) -> Outcome:
    run = RunDirectory.create(str(root), "run", recipe)

    def trainer(of_phase: Recipe, stage: Stage) -> Trainer:
        return Trainer(of_phase, workload_of(of_phase, stage), run, ALONE, nothing, None, stage)

    return outcome(run, Phases(recipe, run, ALONE, trainer).train())


def opened(root: Path) -> RunDirectory:
    return RunDirectory.open(str(root / "run"))


def fixture_recipe(few_digits: Path, phases: str = PHASES, *more: str) -> Recipe:
    return recipe_for(few_digits, phases, *more)


@pytest.fixture(scope="module")
def recipe(few_digits: Path) -> Recipe:
    return fixture_recipe(few_digits)


@pytest.fixture(scope="module")
def root(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the run that nothing happens to."""
    root = tmp_path_factory.mktemp("straight")
    train(recipe, root)
    return root


@pytest.fixture(scope="module")
def straight(root: Path) -> Outcome:
    return outcome(opened(root), opened(root).summary())


def test_steps_samples_and_epochs_count_on_over_phases(root: Path, straight: Outcome) -> None:
    """5 steps of 12 on 20 samples, then 6 on 40: 3 and 1.8 epochs."""
    summary = straight.summary
    assert (summary.status, summary.step, summary.total_steps, summary.samples) == ("finished", 11, 11, 132)
    assert summary.epoch == pytest.approx(60 / 20 + 72 / 40)
    assert [step for name, step in straight.metrics if name == "train/loss"] == list(range(1, 12))
    assert [step for name, step in straight.metrics if name == "test/top1"] == [11]
    assert straight.events.count("gate_passed") == 1
    assert straight.events.count("finished") == 1


def test_the_time_between_two_phases_is_no_hang(root: Path) -> None:
    ledger = read_ledger(opened(root))
    assert [(row["state"], row["step"]) for row in ledger.to_pylist() if row["source"] == "driver"] == [("startup", 5)]
    classes = account(ledger).classes
    assert classes["hung"] < classes["startup"]


def test_the_schedule_starts_afresh_in_each_phase(straight: Outcome) -> None:
    rates = [value for (name, _), value in straight.metrics.items() if name == "train/lr"]
    assert rates[5:8] == rates[:3]  # the warm-up
    assert rates[0] < rates[1]


def test_each_phase_has_an_order_of_its_own(few_digits: Path, tmp_path: Path) -> None:
    """On the same data: else every phase would begin with the same batches."""
    seen: dict[int, list[int]] = {0: [], 1: []}

    def noting(of_phase: Recipe, stage: Stage) -> Classification:
        class Noting(Classification):
            def loss(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
                seen[stage.number] += batch["index"].tolist()
                return super().loss(model, batch)

        return Noting(of_phase)

    train(fixture_recipe(few_digits, "phases=[{name: one}, {name: two}]", "training.steps=2"), tmp_path, noting)
    assert len(seen[0]) == len(seen[1]) == 24
    assert seen[0] != seen[1]


def test_of_a_finished_phase_the_last_checkpoint_stays(few_digits: Path, tmp_path: Path) -> None:
    recipe = fixture_recipe(few_digits, PHASES, "checkpoints.keep_latest=1", "checkpoints.keep_best=1")
    train(recipe, tmp_path, lambda of_phase, stage: Scripted(of_phase, [0.9, 0.2, 0.1] if stage.number == 0 else [0.3, 0.2, 0.1]))
    entries = CheckpointStore(opened(tmp_path)).entries()
    assert [(entry.phase, entry.step) for entry in entries] == [(0, 5), (1, 7), (1, 11)]
    assert load_weights(opened(tmp_path)).step == 7  # the best of the newest phase, though an earlier one measured more
    assert opened(tmp_path).summary().best_step == 7


@pytest.mark.parametrize(("phase", "at"), [(0, 3 * 3 + 2), (1, 1), (1, 4 * 3 + 2)])
def test_a_run_lost_in_any_phase_ends_bitwise_where_the_straight_one_does(
    recipe: Recipe, straight: Outcome, tmp_path: Path, phase: int, at: int
) -> None:
    """In the first, before the first step of the second, and in the middle of the second."""

    def crashing(of_phase: Recipe, stage: Stage) -> Classification:
        return Crashing(of_phase, at if stage.number == phase else -1)

    with pytest.raises(Crash):
        train(recipe, tmp_path, crashing)
    resumed = train(recipe, tmp_path)
    assert "resumed" in resumed.events
    assert resumed.equal(straight)
    for key, value in straight.metrics.items():
        if key[0] != "train/samples_per_s" and not key[0].startswith("ranks/"):
            assert resumed.metrics[key] == value, key


def test_a_run_lost_between_two_phases_goes_on_with_the_second(recipe: Recipe, straight: Outcome, tmp_path: Path) -> None:
    def gone(of_phase: Recipe, stage: Stage) -> Classification:
        if stage.number == 1:
            raise Crash
        return Classification(of_phase)

    with pytest.raises(Crash):
        train(recipe, tmp_path, gone)
    assert {entry.phase for entry in CheckpointStore(opened(tmp_path)).entries()} == {0}
    assert train(recipe, tmp_path).equal(straight)


def test_a_failed_gate_ends_the_run_and_says_why(few_digits: Path, tmp_path: Path) -> None:
    recipe = fixture_recipe(few_digits, PHASES.replace("at_least: 0.0", "at_least: 0.7"))
    scripted = lambda of_phase, stage: Scripted(of_phase, [0.2, 0.6, 0.4])  # noqa: E731
    said = r"phase 'part': the best val/top1 is 0\.6000, its gate asks for at least 0\.7"
    for _ in range(2):  # a restart changes nothing
        with pytest.raises(GateError, match=said):
            train(recipe, tmp_path, scripted)
    events = opened(tmp_path).events().to_pylist()
    assert {event["kind"] for event in events} >= {"gate_failed"}
    assert "gate_passed" not in {event["kind"] for event in events}
    assert {entry.phase for entry in CheckpointStore(opened(tmp_path)).entries()} == {0}


def test_a_gate_may_ask_for_little_of_something(few_digits: Path, tmp_path: Path) -> None:
    loose = fixture_recipe(few_digits, PHASES.replace("val/top1, at_least: 0.0", "val/loss, at_most: 100.0"))
    assert train(loose, tmp_path / "loose").summary.status == "finished"
    tight = fixture_recipe(few_digits, PHASES.replace("val/top1, at_least: 0.0", "val/loss, at_most: 0.001"))
    with pytest.raises(GateError, match=r"asks for at most 0\.001"):
        train(tight, tmp_path / "tight")


@pytest.mark.parametrize(("carry", "from_step"), [("best", 2), ("latest", 5)])
def test_a_phase_begins_with_the_weights_that_it_is_to_carry_on(
    few_digits: Path, tmp_path: Path, carry: str, from_step: int
) -> None:
    """Best at the first validation, at step 2; the phase before ends at step 5."""
    recipe = fixture_recipe(few_digits, PHASES.replace("carry: latest", f"carry: {carry}"), "checkpoints.keep_every=1 steps")
    train(recipe, tmp_path, lambda of_phase, stage: Scripted(of_phase, [0.9, 0.2, 0.1]))
    entries = CheckpointStore(opened(tmp_path)).entries()
    begun = next(entry for entry in entries if entry.phase == 1)
    assert begun.step == 5
    former = next(entry for entry in entries if entry.phase == 0 and entry.step == from_step)
    assert_same(weights(tmp_path, begun.name), weights(tmp_path, former.name))


def weights(root: Path, name: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(CheckpointStore(opened(root)).folder(name).root) / "model.safetensors")


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_weights_that_do_not_fit_are_refused_by_name_and_shapes(few_digits: Path, tmp_path: Path) -> None:
    """A vision transformer has one position embedding a patch: 1 for 16 pixels, 4 for 32."""
    phases = PHASES.replace("data.resolution: 24", "data.resolution: 32")
    recipe = fixture_recipe(few_digits, phases, "model={name: test_vit}", "training.optimizer.lr=1.0e-4")
    said = r"do not fit: pos_embed is \(1, 2, 64\) in the checkpoint and \(1, 5, 64\) in the network\. Take a network"
    with pytest.raises(UserError, match=said):
        train(recipe, tmp_path)


def test_samples_left_out_in_one_phase_stay_out_of_those_after_it(recipe: Recipe, tmp_path: Path) -> None:
    """By their ids: the sets differ, and so do the indices."""
    bad: list[str] = []

    class Poisoned(Classification):
        def __init__(self, recipe: Recipe, stage: Stage) -> None:
            super().__init__(recipe)
            self.read_ids: list[str] = []
            train, outer = self.splits.train, self
            bad.append(train.ids[3]) if stage.number == 0 else None
            read = type(train).read

            class Samples(type(train)):  # type: ignore[misc]
                def read(self, index: int, seed: int | None) -> dict[str, Tensor]:
                    outer.read_ids.append(self.ids[index])
                    sample = read(self, index, seed)
                    return {**sample, "image": sample["image"] * float("nan")} if self.ids[index] in bad else sample

            fields = {field.name: getattr(train, field.name) for field in dataclasses.fields(train)}
            self.splits = dataclasses.replace(self.splits, train=Samples(**fields))

    workloads: list[Poisoned] = []

    def poisoned(of_phase: Recipe, stage: Stage) -> Classification:
        workloads.append(Poisoned(of_phase, stage))
        return workloads[-1]

    result = train(recipe, tmp_path, poisoned)
    events = opened(tmp_path).events().to_pylist()
    [found] = [json.loads(event["detail"])["samples"] for event in events if event["kind"] == "quarantine"]
    assert found == bad
    assert result.summary.status == "finished"
    assert bad[0] in workloads[1].splits.train.ids
    assert workloads[1].splits.train.ids.index(bad[0]) != 3
    assert bad[0] not in workloads[1].read_ids
    assert len(set(workloads[1].read_ids)) == 39  # everything else was read


def test_a_spike_goes_back_to_a_checkpoint_of_its_own_phase(recipe: Recipe, straight: Outcome, tmp_path: Path) -> None:
    """At its very first step: there is one of its beginning."""

    class NanOnce(Classification):
        left = 1

        def loss(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
            self.left -= model.training
            return super().loss(model, batch) * (float("nan") if model.training and self.left == 0 else 1.0)

    result = train(recipe, tmp_path, lambda of_phase, stage: (NanOnce if stage.number else Classification)(of_phase))
    assert result.events.count("rollback") == 1
    assert result.equal(straight)


def test_a_resume_passes_over_what_is_damaged_within_the_phase(
    recipe: Recipe, root: Path, straight: Outcome, tmp_path: Path
) -> None:
    """The newest two of the second phase are cut; a third one of it is resumed from, not the end of the first."""
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    store = CheckpointStore(opened(tmp_path))
    for entry in store.entries()[-2:]:
        (Path(store.folder(entry.name).root) / "model.safetensors").write_bytes(b"cut")
    resumed = train(recipe, tmp_path)
    assert [event["step"] for event in opened(tmp_path).events().to_pylist() if event["kind"] == "resumed"] == [7]
    assert resumed.equal(straight)


def test_a_recipe_without_phases_is_one_phase(few_digits: Path) -> None:
    recipe = recipe_for(few_digits)
    assert resolve(recipe) == (recipe,)
