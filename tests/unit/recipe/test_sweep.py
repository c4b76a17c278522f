"""A sweep as a document: what it may say, what contradicts itself, and that it comes back as it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from longhaul.errors import UserError
from longhaul.recipe import parse
from longhaul.recipe.load import added, dump_sweep, load_sweep, parse_sweep
from longhaul.recipe.sweep import AshaStopping, Choice, LogUniform, NoStopping

RECIPE = """
recipe:
  model: {name: resnet18}
  data: {kind: digits}
  training: {epochs: 2, global_batch: 32, micro_batch: 8}
"""
GRID = f"name: small{RECIPE}grid: {{model.name: [resnet18, tiny_cnn], data.resolution: [32, 64]}}\n"
SEARCH = f"name: wide{RECIPE}search:\n  space: {{training.optimizer.lr: {{log_uniform: [1.0e-4, 0.1]}}}}\n"
PLAIN = "name: one\nmodel: {name: resnet18}\ndata: {kind: digits}\ntraining: {epochs: 2, global_batch: 32, micro_batch: 8}\n"


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_sweep(text, overrides=overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        (GRID, ["pruning={}", "stopping={kind: asha}", "budget={dollars: 3, dollars_per_cpu_hour: 0.1, trials: 4}", "folds=3"]),
        (GRID, ["grid.training.schedule=[{name: cosine, floor: 0.1}, {name: step, every: 2 epochs}]"]),
        (GRID, ["grid.training.optimizer.betas=[[0.9, 0.99], [0.8, 0.999]]", "resources={gpus: 0.5, parallel: 2}"]),
        (GRID, ["grid.training.early_stopping=[null, {patience: 3}]"]),
        (SEARCH, ["stopping={kind: pbt}", "search.space.model.name={choice: [tiny_cnn, simple_cnn]}"]),
        (SEARCH, ["stopping={kind: median}", "search.space.training.epochs={integer: [2, 4]}", "search.kind=random", "folds=2"]),
        (SEARCH, ["search.space.model.drop_rate={uniform: [0, 0.5]}", "search.trials=3"]),
    ],
)
def test_a_sweep_comes_back_from_its_text_as_it_was(text: str, overrides: list[str]) -> None:
    sweep = parse_sweep(text, overrides=overrides)
    assert parse_sweep(dump_sweep(sweep)) == sweep


def test_a_grids_values_may_be_mappings_and_lists() -> None:
    text = GRID.replace("grid: {", "grid: {training: {schedule: [{name: cosine}, {name: constant}]}, ")
    sweep = parse_sweep(text, overrides=["grid.training.optimizer.betas=[[0.9, 0.99], [0.8, 0.999]]"])
    assert sweep.grid["training.schedule"] == ({"name": "cosine"}, {"name": "constant"})
    assert sweep.grid["training.optimizer.betas"] == ([0.9, 0.99], [0.8, 0.999])


def test_a_recipes_field_in_a_sweep_is_sent_below_recipe() -> None:
    assert "did you mean 'recipe.training'?" in refusal(GRID, "training.epochs=3")
    assert "did you mean 'recipe.seed'?" in refusal(GRID, "seed=3")
    assert "did you mean 'pruning'?" in refusal(GRID, "prunning={}")
    assert "did you mean 'trials'?" in refusal(GRID, "budget.trails=3")


@pytest.mark.parametrize(
    "written", ["{data.resolution: [32], model.name: [a]}", "{data: {resolution: [32]}, model: {name: [a]}}"]
)
def test_set_finds_a_field_of_the_grid_however_it_is_written(written: str) -> None:
    text = f"name: small{RECIPE}grid: {written}\n"
    sweep = parse_sweep(text, overrides=["grid.data.resolution=[48, 96]", "grid.seed=[1, 2]"])
    assert sweep.grid == {"data.resolution": (48, 96), "model.name": ("a",), "seed": (1, 2)}


@pytest.mark.parametrize(
    "written",
    [
        "{training.optimizer.lr: {uniform: [1, 2]}, model.drop_rate: {uniform: [0, 0.1]}}",
        "{training: {optimizer: {lr: {uniform: [1, 2]}}}, model: {drop_rate: {uniform: [0, 0.1]}}}",
        "{training: {epochs: {integer: [1, 2]}}, training.optimizer.lr: {uniform: [1, 2]}, model.drop_rate: {uniform: [0, 0.1]}}",
    ],
)
def test_set_finds_a_field_of_the_space_however_it_is_written(written: str) -> None:
    text = f"name: wide{RECIPE}search: {{space: {written}}}\n"
    sweep = parse_sweep(text, overrides=["search.space.training.optimizer.lr={log_uniform: [0.1, 1]}", "search.trials=7"])
    assert sweep.search is not None
    assert sweep.search.trials == 7
    assert sweep.search.space["training.optimizer.lr"] == LogUniform(log_uniform=(0.1, 1.0))
    assert "model.drop_rate" in sweep.search.space


def test_overrides_of_a_sweep_apply_in_order() -> None:
    assert parse_sweep(GRID, overrides=["grid={seed: [1]}", "grid.seed=[2, 3]", "grid.data.resolution=[16]"]).grid == {
        "seed": (2, 3),
        "data.resolution": (16,),
    }


def test_set_reaches_the_base_recipe_and_the_sections() -> None:
    sweep = parse_sweep(
        GRID, overrides=["recipe.training.epochs=3", "stopping.kind=asha", "stopping.reduction=2", "budget.trials=4"]
    )
    assert sweep.recipe["training"] == {"epochs": 3, "global_batch": 32, "micro_batch": 8}
    assert sweep.stopping == AshaStopping(kind="asha", reduction=2.0)
    assert sweep.budget.trials == 4


def test_left_out_a_grid_trains_every_cell_to_its_end() -> None:
    sweep = parse_sweep(GRID)
    assert sweep.stopping == NoStopping()
    assert (sweep.pruning, sweep.search, sweep.folds, sweep.budget.trials) == (None, None, 0, None)


@pytest.mark.parametrize(
    ("text", "override", "expected"),
    [
        (GRID, "search={space: {seed: {integer: [0, 9]}}}", "give exactly one of grid and search"),
        (GRID, "grid={}", "give exactly one of grid and search"),
        (GRID, "grid.data.resolution=[]", "grid.data.resolution is empty; give it at least one value"),
        (GRID, "grid.data.resolution=[32, 64, 32]", "grid.data.resolution names a value twice; give each once"),
        (GRID, "grid.data.resolution=32", "grid.data.resolution: must be a list (got 32)"),
        (GRID, "folds=1", "folds 1 leaves nothing to train on; set folds to 2 or more, or to 0"),
        (GRID, "pruning={along: model.width}", "'model.width', which is no field of the grid; set pruning.along to one"),
        (SEARCH, "pruning={}", "which is no field of the grid"),
        (GRID, "stopping={kind: pbt}", "pbt changes fields of a search; give search instead of grid"),
        (GRID, "stopping={kind: ashaa}", "stopping.kind: 'ashaa' is none of 'none', 'asha', 'median', 'pbt'"),
        (GRID, "stopping={kind: asha, reductoin: 2}", "stopping.reductoin: unknown field; did you mean 'reduction'?"),
        (GRID, "stopping={least_epochs: 2}", "stopping.kind: required, and missing"),
        (GRID, "budget={dollars: 5}", "dollars needs a price; set dollars_per_gpu_hour or dollars_per_cpu_hour"),
        (GRID, "budget.hours=0", "budget.hours: input should be greater than 0"),
        (GRID, "budget.trials=true", "budget.trials: must be a number, not true"),
        (GRID, "resources.gpus=2", "resources.gpus"),
        (GRID, "resources.paralel=2", "resources.paralel: unknown field; did you mean 'parallel'?"),
        (GRID, "name=a/b", "name: string should match pattern"),
        (GRID, "recipe=3", "recipe: input should be a valid dictionary (got 3)"),
        (GRID, "model={name: tiny_cnn}", "model: unknown field"),
        (SEARCH, "search.space={}", "search.space"),
        (SEARCH, "search.trials=0", "search.trials: input should be greater than 0"),
        (SEARCH, "search.kind=bayes", "search.kind: 'bayes' is none of 'random' or 'tpe'"),
        (SEARCH, "search.space.seed={integer: [3, 3]}", "integer [3, 3]: the lower bound comes first"),
        (SEARCH, "search.space.seed={uniform: [3, 2]}", "uniform [3.0, 2.0]: the lower bound comes first"),
        (SEARCH, "search.space.seed={log_uniform: [1, 0.1]}", "log_uniform [1.0, 0.1]: the lower bound comes first"),
        (SEARCH, "search.space.seed={log_uniform: [0, 1]}", "greater than 0"),
        (SEARCH, "search.space.seed={choice: []}", "search.space.seed"),
        (SEARCH, "search.space.seed=3", "write {uniform: [0, 1]}, {log_uniform: [1e-4, 1e-1]}, {integer: [1, 9]} or"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused_with_the_fix(text: str, override: str, expected: str) -> None:
    assert expected in refusal(text, override)


def test_a_population_cannot_be_folded() -> None:
    assert "pbt cannot be folded; set folds to 0" in refusal(SEARCH, "stopping={kind: pbt}", "folds=3")


@pytest.mark.parametrize(
    "grid", ["{data: {resolution: [32]}, data.resolution: [64]}", "{data.resolution: [64], data: {resolution: [32]}}"]
)
def test_a_field_that_is_written_in_two_ways_is_refused(grid: str) -> None:
    assert "grid: data.resolution is written twice, dotted and nested; write it once" in refusal(
        f"name: small{RECIPE}grid: {grid}\n"
    )


def test_a_recipe_and_a_sweep_are_told_apart(tmp_path: Path) -> None:
    assert "sweep: is no sweep (it has no field `recipe`)" in refusal(PLAIN)
    file = tmp_path / "grid.yaml"
    file.write_text(GRID)
    with pytest.raises(UserError, match=r"grid\.yaml: is a sweep, not a recipe\. Run it: longhaul sweep .*grid\.yaml"):
        parse(file.read_text(), source=str(file))
    assert load_sweep(file, ["folds=2"]).folds == 2
    with pytest.raises(UserError, match=r"gird\.yaml: no such file\. There are: .*grid\.yaml"):
        load_sweep(tmp_path / "gird.yaml")


def test_a_value_is_added_to_a_field_of_the_grid() -> None:
    sweep = added(parse_sweep(GRID), ["data.resolution=128", "model.name=vgg11", "data.resolution=256"])
    assert sweep.grid == {"model.name": ("resnet18", "tiny_cnn", "vgg11"), "data.resolution": (32, 64, 128, 256)}
    assert added(sweep, []) == sweep


@pytest.mark.parametrize(
    ("text", "addition", "expected"),
    [
        (GRID, "data.resolution=64", r"is in the grid already\. It has \[32, 64\]"),
        (GRID, "data.reslution=64", r"no value of a field of the grid\. Its fields are model\.name, data\.resolution"),
        (GRID, "data.resolution", "no value of a field of the grid"),
        (SEARCH, "training.optimizer.lr=1", r"none: it is a search, see search\.trials"),
    ],
)
def test_what_cannot_be_added_is_refused(text: str, addition: str, expected: str) -> None:
    with pytest.raises(UserError, match=f"--add .*{expected}"):
        added(parse_sweep(text), [addition])


def test_a_choice_keeps_values_of_any_kind() -> None:
    values: list[Any] = [None, {"patience": 3, "metric": "val/loss", "direction": "min"}]
    written = yaml.safe_dump({"choice": values}, default_flow_style=True)
    sweep = parse_sweep(SEARCH, overrides=[f"search.space.training.early_stopping={written}"])
    assert sweep.search is not None
    domain = sweep.search.space["training.early_stopping"]
    assert isinstance(domain, Choice)
    assert list(domain.choice) == values
