"""The search space: recipe fields as Optuna's distributions, and what is drawn as values for a recipe."""

from __future__ import annotations

import json

import numpy as np
import optuna
import pytest

from longhaul.recipe.sweep import SearchSection
from longhaul.tuning.search.space import SearchSpace

MIXED = {
    "training.optimizer.lr": {"log_uniform": [1e-4, 1e-1]},
    "training.optimizer.momentum": {"uniform": [0.8, 1.0]},
    "model.width": {"integer": [1, 9]},
    "model.name": {"choice": ["resnet18", "vgg11", None]},
    "training.schedule": {"choice": [{"kind": "step", "epochs": [3, 5]}, {"kind": "cosine"}, [1, 2], True, 1]},
}


def space(domains: dict[str, object]) -> SearchSpace:
    return SearchSpace.of(SearchSection.model_validate({"space": domains}))


@pytest.fixture(scope="module")
def draws() -> list[dict[str, object]]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    mixed = space(MIXED)
    return [mixed.coordinates(study.ask(mixed.distributions).params) for _ in range(300)]


def test_fields_keep_their_dotted_names_and_values_stay_within_their_bounds(draws: list[dict[str, object]]) -> None:
    assert all(list(draw) == list(MIXED) for draw in draws)
    rates = np.array([draw["training.optimizer.lr"] for draw in draws], dtype=float)
    assert rates.min() >= 1e-4
    assert rates.max() <= 1e-1
    assert np.quantile(rates, 0.5) == pytest.approx(10**-2.5, rel=0.5)  # by its logarithm: half of them below 0.003
    momentum = np.array([draw["training.optimizer.momentum"] for draw in draws], dtype=float)
    assert momentum.min() >= 0.8
    assert momentum.max() <= 1.0
    assert momentum.mean() == pytest.approx(0.9, abs=0.02)
    assert {draw["model.width"] for draw in draws} == set(range(1, 10))


def test_values_are_plain_and_choices_come_back_as_they_were_given(draws: list[dict[str, object]]) -> None:
    assert {type(draw["training.optimizer.lr"]) for draw in draws} == {float}
    assert {type(draw["model.width"]) for draw in draws} == {int}
    schedules = {json.dumps(draw["training.schedule"]) for draw in draws}
    assert schedules == {json.dumps(choice) for choice in MIXED["training.schedule"]["choice"]}  # true and 1 are two
    assert {draw["model.name"] for draw in draws} == {"resnet18", "vgg11", None}


def test_changing_a_drawn_choice_leaves_the_space_alone() -> None:
    schedules = space({"training.schedule": {"choice": [{"epochs": [3, 5]}]}})
    schedules.coordinates({"training.schedule": 0})["training.schedule"]["epochs"].append(7)
    assert schedules.coordinates({"training.schedule": 0}) == {"training.schedule": {"epochs": [3, 5]}}


def test_every_draw_finds_its_way_back_through_json(draws: list[dict[str, object]]) -> None:
    mixed = space(MIXED)
    for draw in draws:
        parameters = mixed.parameters(json.loads(json.dumps(draw)) | {"data.fold": 2})
        assert parameters is not None
        assert json.dumps(mixed.coordinates(parameters)) == json.dumps(draw)  # true is not 1


@pytest.mark.parametrize(
    "wrong",
    [{"lr": 0.2}, {"lr": "fast"}, {"lr": True}, {"lr": None}, {"width": True}, {"width": 10}, {"width": 2.5}, {"name": "vgg11"}],
)
def test_values_of_another_space_have_no_way_back(wrong: dict[str, object]) -> None:
    small = space({"lr": {"uniform": [0, 0.1]}, "width": {"integer": [1, 9]}, "name": {"choice": ["resnet18"]}})
    right = {"lr": 0.05, "width": 3, "name": "resnet18"}
    assert small.parameters(right) is not None
    assert small.parameters(right | wrong) is None
    assert small.parameters({"lr": 0.05}) is None


def test_a_finite_space_is_counted_and_every_configuration_has_a_number() -> None:
    finite = space({"width": {"integer": [2, 4]}, "name": {"choice": ["a", "b", "a"]}})  # `a` twice is once
    assert finite.size == 6
    everything = [finite.coordinates(finite.nth(place)) for place in range(6)]
    assert {(one["width"], one["name"]) for one in everything} == {(width, name) for width in (2, 3, 4) for name in "ab"}
    assert space({"crop": {"choice": [{"top": 1, "left": 2}, {"left": 2, "top": 1}]}}).size == 1
    assert space(MIXED).size is None
    with pytest.raises(ValueError, match="lr"):
        space({"lr": {"uniform": [0, 1]}}).nth(0)
