"""Phases of a recipe: what follows from the base and what each sets, and what is refused."""

from __future__ import annotations

import re

import pytest
import yaml

from longhaul.errors import UserError
from longhaul.recipe import Recipe, diff, dump, parse
from longhaul.recipe.changes import changed
from longhaul.recipe.phases import resolve

TEXT = """
name: steps
model: {name: test_resnet}
data: {kind: digits, resolution: 32}
training: {epochs: 5, optimizer: {lr: 0.01}}
phases:
  - {name: small, set: {data.resolution: 16, data.share: 0.3}, gate: {metric: val/top1, at_least: 0.5}}
  - name: large
    set:
      training: {epochs: 2, optimizer: {lr: 0.001}}
      model.drop_rate: 0.2
    carry: latest
"""


@pytest.fixture
def recipe() -> Recipe:
    return parse(TEXT)


def test_each_phase_is_the_base_with_what_it_sets(recipe: Recipe) -> None:
    small, large = resolve(recipe)
    base = recipe.model_copy(update={"phases": ()})
    assert {c.field: c.after for c in diff(base, small)} == {"data.resolution": 16, "data.share": 0.3}
    assert {c.field: c.after for c in diff(base, large)} == {
        "training.epochs": 2,
        "training.optimizer.lr": 0.001,
        "model.drop_rate": 0.2,
    }


def test_a_recipe_with_phases_can_be_written_and_read_again(recipe: Recipe) -> None:
    assert parse(dump(recipe)) == recipe
    assert recipe.phases[0].gate is not None
    assert recipe.phases[1].carry == "latest"


def test_a_recipe_without_phases_is_one_phase() -> None:
    plain = parse(TEXT, overrides=["phases=[]"])
    assert resolve(plain) == (plain,)


def test_a_field_of_a_phase_can_be_set_by_its_place(recipe: Recipe) -> None:
    after = parse(TEXT, overrides=["phases.0.gate.at_least=0.4", "phases.1.set.training.epochs=3"])
    assert [(c.field, c.after) for c in diff(recipe, after)] == [
        ("phases.0.gate.at_least", 0.4),
        ("phases.1.set.training.epochs", 3),
    ]
    with pytest.raises(UserError, match=r"'2' is no place in a list of 2"):
        parse(TEXT, overrides=["phases.2.name=more"])


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ("[{name: a}, {name: b, set: {data.resolution: 4}}]", "recipe: phases[1].set.data.resolution: input should be greater"),
        ("[{name: a, set: {data.resolutio: 16}}]", "phases[0].set.data.resolutio: unknown field; did you mean 'resolution'?"),
        ("[{name: a, set: {seed: 3}}]", "phases[0].set.seed: a phase cannot set it. It can set data.*, training.*"),
        ("[{name: a, set: {model.name: resnet18}}]", "phases[0].set.model.name: a phase cannot set it"),
        ("[{name: a, set: {training.steps: 10}}]", "phases[0].set.training: give exactly one of epochs, steps and samples"),
        ("[{name: a}, {name: a}]", "phases[1].name: 'a' is the name of an earlier phase"),
        ("[{name: a, gate: {metric: val/top1}}]", "phases.0.gate: give exactly one of at_least and at_most"),
        ("[{name: a, gate: {metric: val/top1, at_least: 1, at_most: 2}}]", "give exactly one of at_least and at_most"),
    ],
)
def test_what_makes_no_phase_is_refused_by_its_path(phases: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        parse(TEXT, overrides=[f"phases={phases}"])


def test_gates_and_lengths_of_phases_can_change_in_a_run_that_has_begun(recipe: Recipe) -> None:
    after = changed(recipe, ["phases.0.gate.at_least=0.4", "phases.1.set.training.epochs=9"], source="saved")
    assert resolve(after)[1].training.epochs == 9


@pytest.mark.parametrize(
    ("change", "field"),
    [("phases.0.set.data.share=0.5", "phases.0.set.data.share"), ("phases.1.name=other", "phases.1.name")],
)
def test_data_and_names_of_phases_cannot(recipe: Recipe, change: str, field: str) -> None:
    with pytest.raises(UserError, match=rf"--change {re.escape(field)}: .* cannot change in a run that has checkpoints"):
        changed(recipe, [change], source="saved")


def test_a_further_phase_can_be_added_and_none_taken_away(recipe: Recipe) -> None:
    phases = yaml.safe_load(dump(recipe))["phases"]
    further = [*phases, {"name": "last", "set": {"data.resolution": 48}}]
    assert [phase.name for phase in changed(recipe, [told(further)], source="saved").phases] == ["small", "large", "last"]
    for other in (phases[:1], phases[::-1], []):
        with pytest.raises(UserError, match="cannot change in a run that has checkpoints"):
            changed(recipe, [told(other)], source="saved")
    with pytest.raises(UserError, match="of a run without phases"):
        changed(parse(TEXT, overrides=["phases=[]"]), [told(phases)], source="saved")


def told(phases: list[object]) -> str:
    return f"phases={yaml.safe_dump(phases, default_flow_style=True, width=1000)}"
