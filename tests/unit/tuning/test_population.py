"""What a population changes and copies: values, checkpoints, and the recipes that it refuses."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from runs_in_process import outcome, recipe_for

from longhaul.errors import IntegrityError, UserError
from longhaul.recipe import Recipe, dump, parse
from longhaul.recipe.sweep import Choice, Domain, Integer, LogUniform, PbtStopping, SearchSection, Uniform
from longhaul.resilience.checkpoint import CheckpointStore, load_weights
from longhaul.resilience.run_directory import RunDirectory
from longhaul.resilience.sweep_directory import SweepDirectory
from longhaul.storage import Storage
from longhaul.training.alone import train_alone
from longhaul.training.course import Course
from longhaul.tuning.population.lineage import Lineage, begin_generation, explore, may_change
from longhaul.tuning.population.population import check_population

LR, DECAY, SMOOTHING = "training.optimizer.lr", "training.optimizer.weight_decay", "workload.label_smoothing"
SPACE: dict[str, Any] = {
    LR: {"log_uniform": [1e-4, 1e-1]},
    DECAY: {"uniform": [0.0, 0.1]},
    SMOOTHING: {"choice": [0.0, 0.1, 0.2]},
    "model.name": {"choice": ["tiny_cnn", "simple_cnn"]},
}
PBT = PbtStopping(kind="pbt", every_epochs=1)


def test_values_change_by_a_fifth_or_to_a_neighbour_and_never_leave_their_domain() -> None:
    space: dict[str, Domain] = {
        LR: LogUniform(log_uniform=(1e-4, 1e-1)),
        DECAY: Uniform(uniform=(0.0, 0.1)),
        "training.clip_norm": Integer(integer=(1, 40)),
        SMOOTHING: Choice(choice=(0.0, 0.1, 0.2)),
    }
    middle = {LR: 1e-2, DECAY: 0.05, "training.clip_norm": 20, SMOOTHING: 0.1}
    seen = [explore(space, middle, 0.0, random.Random(seed)) for seed in range(40)]
    assert {values[LR] for values in seen} == {8e-3, 1.2e-2}
    assert {round(values[DECAY], 9) for values in seen} == {0.04, 0.06}
    assert {values["training.clip_norm"] for values in seen} == {16, 24}
    assert {values[SMOOTHING] for values in seen} == {0.0, 0.2}

    edge = {LR: 1e-1, DECAY: 0.0, "training.clip_norm": 1, SMOOTHING: 0.2}
    for resample in (0.0, 0.5, 1.0):
        for seed in range(40):
            values = explore(space, edge, resample, random.Random(seed))
            assert 1e-4 <= values[LR] <= 1e-1
            assert 0.0 <= values[DECAY] <= 0.1
            assert 1 <= values["training.clip_norm"] <= 40
            assert values[SMOOTHING] in (0.0, 0.1, 0.2)
            if resample == 0.0:
                assert all(values[field] != edge[field] for field in edge)  # 0 and a bound are no dead ends


def test_fields_that_the_weights_hang_on_are_copied_as_they_are() -> None:
    space = SearchSection(space=SPACE).space
    values = {LR: 1e-2, DECAY: 0.05, SMOOTHING: 0.1, "model.name": "simple_cnn"}
    assert all(explore(space, values, 1.0, random.Random(seed))["model.name"] == "simple_cnn" for seed in range(20))
    assert may_change("training.schedule.max_lr")
    assert may_change("training.optimizer.betas")
    assert not may_change("training.schedule.name")
    assert not may_change("training.optimizer.name")
    assert not may_change("data.resolution")


def test_members_are_drawn_once_and_each_is_another(tmp_path: Path) -> None:
    search = SearchSection(space=SPACE, trials=3)
    directory = SweepDirectory.at(str(tmp_path), "pop")
    lineage = Lineage.load(directory)
    lineage.draw_members(search, "max")
    lineage.save(directory)
    more = Lineage.load(directory)
    more.draw_members(search.model_copy(update={"trials": 5}), "max")
    values = [member.newest.values for member in more.members]
    assert values[:3] == [member.newest.values for member in lineage.members]
    assert len({repr(one) for one in values}) == 5
    with pytest.raises(UserError, match="has 5 members already"):
        more.draw_members(search, "max")
    two = SearchSection(space={SMOOTHING: {"choice": [0.0, 0.1]}}, trials=3)
    with pytest.raises(UserError, match="no more than 2 configurations"):
        Lineage().draw_members(two, "max")


@pytest.mark.parametrize(
    ("overrides", "fields", "problem"),
    [
        ((), ("model.name",), "no field of search.space may change"),
        (("training.engine=zero1", "training.ema_decay=null"), (LR,), "several workers, or under DeepSpeed"),
        (("validation.every=2 epochs", "training.steps=100"), (LR,), "members are validated every 2 epochs"),
        (("training.steps=3",), (LR,), "members train for 0.9 epochs"),
        (("phases=[{name: one}, {name: two}]",), (LR,), "in phases"),
    ],
)
def test_what_cannot_be_a_population_is_refused(
    few_digits: Path, overrides: tuple[str, ...], fields: tuple[str, ...], problem: str
) -> None:
    search = SearchSection(space={field: SPACE[field] for field in fields}, trials=4)
    with pytest.raises(UserError, match=problem):
        check_population(recipe_for(few_digits, *overrides), search, PBT)


def _run(root: Path, name: str) -> RunDirectory:
    return RunDirectory(Storage.open(root).child(name))


def _changed(recipe: Recipe, *overrides: str) -> Recipe:
    return parse(dump(recipe), overrides=overrides)


@pytest.fixture(scope="module")
def donor(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, RunDirectory, str]:
    """A run of 9 steps, and its checkpoint at step 4."""
    recipe = recipe_for(few_digits)
    run = _run(tmp_path_factory.mktemp("donor"), "donor")
    train_alone(recipe, run, gpu=False)
    (name,) = [entry.name for entry in CheckpointStore(run).entries() if entry.step == 4]
    return recipe, run, name


def test_a_copy_under_the_donors_own_values_goes_on_exactly_as_the_donor_did(
    donor: tuple[Recipe, RunDirectory, str], tmp_path: Path
) -> None:
    recipe, run, name = donor
    copy = _run(tmp_path, "copy")
    begin_generation(copy, recipe, run, name)
    assert CheckpointStore(copy).problems(name) == []
    summary = train_alone(recipe, copy, gpu=False)
    own, others = outcome(copy, summary), outcome(run, run.summary())
    assert own.equal(others)
    assert own.saved[0] == 4
    assert [kind for kind in own.events if kind in ("started", "resumed")] == ["resumed"]
    assert summary.best == max(entry.goal or 0.0 for entry in CheckpointStore(copy).entries())
    assert load_weights(copy).step == summary.best_step


def test_a_copy_under_other_values_is_trained_by_those(donor: tuple[Recipe, RunDirectory, str], tmp_path: Path) -> None:
    recipe, run, name = donor
    other = _changed(
        recipe, f"{LR}=0.02", f"{DECAY}=0.3", "training.optimizer.betas=[0.8, 0.9]", "training.schedule.warmup=0 steps"
    )
    copy = _run(tmp_path, "copy")
    begin_generation(copy, other, run, name)
    summary = train_alone(other, copy, gpu=False)
    assert not outcome(copy, summary).equal(outcome(run, run.summary()))
    newest = CheckpointStore(copy).entries()[-1].name
    groups = torch.load(CheckpointStore(copy).folder(newest).path("engine/torch.pt"), weights_only=True)["optimizer"][
        "param_groups"
    ]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert [group["betas"] for group in groups] == [(0.8, 0.9)] * 2
    rates = {row["step"]: row["value"] for row in copy.metrics().to_pylist() if row["name"] == "train/lr"}
    assert rates == {step: pytest.approx(Course(other, 40).rate_at(step - 1)) for step in range(5, 10)}


def test_a_damaged_checkpoint_is_not_copied(donor: tuple[Recipe, RunDirectory, str], tmp_path: Path) -> None:
    recipe, run, name = donor
    broken, copy = _run(tmp_path, "broken"), _run(tmp_path, "copy")
    begin_generation(broken, recipe, run, name)
    CheckpointStore(broken).folder(name).write_bytes("progress.json", b"{}")
    with pytest.raises(IntegrityError, match=r"progress\.json has 2 bytes"):
        begin_generation(copy, recipe, broken, name)
    assert not copy.storage.exists("recipe.yaml")


def test_what_an_attempt_has_left_half_done_is_replaced(donor: tuple[Recipe, RunDirectory, str], tmp_path: Path) -> None:
    recipe, run, name = donor
    copy = _run(tmp_path, "copy")
    begin_generation(copy, recipe, run, CheckpointStore(run).entries()[-1].name)
    other = _changed(recipe, f"{LR}=0.02")
    begin_generation(copy, other, run, name)
    assert [entry.step for entry in CheckpointStore(copy).entries()] == [4]
    assert copy.recipe() == other
