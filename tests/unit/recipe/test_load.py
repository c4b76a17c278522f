"""From YAML and --set to a recipe: what is accepted, and each way of getting it wrong."""

from __future__ import annotations

import copy
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from longhaul.errors import UserError
from longhaul.recipe import dump, load, parse
from longhaul.recipe.load import dump_sweep, load_sweep, parse_sweep, put, resolved

ROOT = Path(__file__).parents[3]
BASE = """\
name: base
model: {name: resnet18}
data: {kind: digits}
training: {epochs: 2, global_batch: 32, micro_batch: 8}
"""


def refusal(text: str = BASE, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(text, overrides=overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        # A field that does not exist: its path, and the nearest name of that very section.
        ("trainin.epochs=3", "recipe: trainin: unknown field; did you mean 'training'?"),
        ("training.epoch=3", "recipe: training.epoch: unknown field; did you mean 'epochs'?"),
        ("training.optimizer.wieght_decay=0", "training.optimizer.wieght_decay: unknown field; did you mean 'weight_decay'?"),
        ("training.early_stopping.patienc=3", "training.early_stopping.patienc: unknown field; did you mean 'patience'?"),
        ("training.schedule={name: step, evry: 2}", "training.schedule.evry: unknown field; did you mean 'every'?"),
        ("data.rot=x", "data.rot: unknown field; did you mean 'root'?"),
        ("scaling.zzzzz=1", "scaling.zzzzz: unknown field; the fields here are cpus_per_worker, gpu, workers"),
        # A value of the wrong type or out of range.
        ("training=3", "training: must be a mapping of fields (got 3)"),
        ("model=null", "model: must be a mapping of fields (got None)"),
        ("tracking.trackers=wandb", "tracking.trackers: must be a list (got 'wandb')"),
        ("tracking.trackers=[wandb, x]", "tracking.trackers.1: 'x' is none of 'wandb', 'mlflow' or 'tensorboard'"),
        ("seed=abc", "seed: input should be a valid integer"),
        ("seed=1.5", "seed: input should be a valid integer"),
        ("seed=true", "seed: must be a number, not true"),
        ("training.epochs=yes", "training.epochs: must be a number, not true"),
        ("training.epochs=.nan", "training.epochs: input should be a finite number"),
        ("training.epochs=0", "training.epochs: input should be greater than 0 (got 0)"),
        ("training.precision=fp8", "training.precision: 'fp8' is none of 'fp32', 'bf16' or 'fp16'"),
        ("scaling.gpu=maybe", "scaling.gpu: 'maybe' is none of True, False or 'auto'"),
        ("workload.kind=detecion", "workload.kind: 'detecion' is none of 'classification'"),
        ("name=a b", "name: string should match pattern"),
        ("name=", "name: input should be a valid string (got None)"),
        ("data.kind=folder", "data.kind: 'folder' is none of 'digits', 'imagefolder'"),
        ("training.schedule.name=cosin", "training.schedule.name: 'cosin' is none of 'constant', 'cosine'"),
        ("training.schedule={floor: 0.1}", "training.schedule.name: required, and missing; it says which kind this is"),
        ("training.schedule={name: multistep, milestones: [1, x]}", "training.schedule.milestones.1: 'x' is no duration"),
        ("validation.every=[1]", "validation.every: [1] is no duration; write '5 epochs'"),
        ("validation.every=true", "validation.every: True is no duration"),
        ("validation.every=1.2.3 epochs", "validation.every: '1.2.3 epochs' is no duration"),
        ("validation.every=-1", "validation.every: '-1 epochs' is no duration"),
        ("validation.every=1e999 epochs", "validation.every: must be finite"),
        ("validation.every=1.5 steps", "validation.every: steps must be whole"),
        ("validation.every={amount: 1, unit: weeks}", "validation.every.unit: 'weeks' is none of"),
        # A required field that is missing.
        ("data.kind=imagefolder", "data.root: required, and missing; add it"),
        ("training.schedule={name: onecycle}", "training.schedule.max_lr: required, and missing; add it"),
        # Fields that contradict each other: both are named, and what to set.
        ("training.steps=4", "found epochs and steps); add --set training.epochs=null to drop one"),
        ("training.epochs=null", "training: give exactly one of epochs, steps and samples (found none of them)"),
        ("training.offload=cpu", "offload needs DeepSpeed; set engine to zero1, zero2 or zero3, or offload to none"),
        ("training={epochs: 1, engine: zero3, ema_decay: 0.9}", "set engine to zero1 or zero2, or ema_decay to null"),
        ("training.micro_batch=64", "micro_batch 64 exceeds global_batch 32; lower micro_batch"),
        ("training.schedule={name: onecycle, max_lr: 1e-5}", "schedule.max_lr is below optimizer.lr; raise max_lr"),
        ("training.early_stopping={metric: val/top1}", "training.early_stopping: metric and direction go together"),
        ("model={name: a, pretrained: true, weights: b}", "pretrained and weights contradict each other; remove one"),
        (
            "scaling.workers=3",
            "recipe: training.global_batch 32 cannot be shared evenly by scaling.workers 3; set workers to one of 1, 2, 4",
        ),
        # --set itself.
        ("training.epochs", "--set 'training.epochs': not of the form field.path=value"),
        (".a=1", "--set '.a=1': not of the form field.path=value"),
        ("=1", "not of the form field.path=value"),
        ("name=a: b: c", "--set 'name=a: b: c': the value is not valid YAML"),
    ],
)
def test_override_is_refused_with_path_and_fix(override: str, expected: str) -> None:
    assert expected in refusal(BASE, override)


def test_fp16_without_a_gpu_is_refused() -> None:
    message = refusal(BASE, "training.precision=fp16", "scaling.gpu=false")
    assert "training.precision fp16 needs a GPU; set precision to bf16 or fp32, or scaling.gpu to auto" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\nname: b", "not valid YAML: the key 'name' is given twice"),
        ("training:\n  epochs: 1\n  epochs: 2", "the key 'epochs' is given twice"),
        ("a: 1\n b: 2", "not valid YAML: mapping values are not allowed here"),
        ("? [a]\n: b", "a key is a list or a mapping"),
        ("a: &a [*a]", "not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML: could not determine a constructor"),
        ("\x00", "not valid YAML"),
        ("", "a recipe is a mapping of fields"),
        ("[1, 2]", "a recipe is a mapping of fields"),
        ("1: 2", "recipe: 1: keys should be strings"),
    ],
)
def test_text_that_is_no_recipe(text: str, expected: str) -> None:
    assert expected in refusal(text)


def test_all_mistakes_are_told_at_once_one_line_each() -> None:
    assert refusal("name: x\nmodle: {name: a}\ntraining: {epochs: 1}").splitlines() == [
        "recipe: model: required, and missing; add it",
        "recipe: data: required, and missing; add it",
        "recipe: modle: unknown field; did you mean 'model'?",
    ]


def test_missing_file_names_the_recipes_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text(BASE)
    with pytest.raises(UserError, match=r"digit\.yaml: no such file\. There are: .*digits\.yaml"):
        load(tmp_path / "digit.yaml")
    with pytest.raises(UserError, match=r"no such file\. Recipes live in jobs/recipes"):
        load(tmp_path / "nowhere" / "digits.yaml")


def test_folder_and_binary_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_bytes(b"\xff\xfe\x00\x9c")
    for path in (tmp_path, tmp_path / "model.yaml"):
        with pytest.raises(UserError, match=r"cannot be read as text .*Give a YAML file"):
            load(path)


def test_error_names_the_file_it_is_in(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(BASE + "sed: 3\n")
    with pytest.raises(UserError, match=r"mine\.yaml: sed: unknown field; did you mean 'seed'\?"):
        load(file)


def test_overrides_apply_in_order_and_make_sections() -> None:
    recipe = parse(BASE, overrides=["seed=1", "seed=2", "training.early_stopping.patience=4", "training.optimizer.lr=1e-3"])
    assert recipe.seed == 2
    assert recipe.training.early_stopping is not None
    assert recipe.training.early_stopping.patience == 4
    assert recipe.training.optimizer.lr == 1e-3
    assert recipe.training.global_batch == 32


def test_merge_keys_of_yaml_work() -> None:
    data = parse(BASE.replace("{kind: digits}", "{<<: {kind: digits, resolution: 8}, resolution: 16}")).data
    assert (data.kind, data.resolution) == ("digits", 16)


SWEEPS = sorted(path for path in (ROOT / "jobs/recipes").rglob("*.yaml") if re.search("(?m)^recipe:", path.read_text()))
RECIPES = sorted(path for path in (ROOT / "jobs/recipes").rglob("*.yaml") if path not in SWEEPS)


def refuse_a_head_that_says_too_little(path: Path, *verbs: str) -> None:
    head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert any(f"longhaul {verb} {path.relative_to(ROOT)}" in head for verb in verbs)
    assert re.search(r"# Trains  \S", head)
    assert re.search(r"# Expect  \S", head)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipe_loads_and_says_how_to_run_it(path: Path) -> None:
    recipe = load(path)
    refuse_a_head_that_says_too_little(path, "train", "crossval")
    assert recipe.name == path.stem
    assert recipe.workload.kind == path.parent.name
    assert parse(dump(recipe)) == recipe


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_shipped_sweep_loads_and_says_how_to_run_it(path: Path) -> None:
    sweep = load_sweep(path)
    refuse_a_head_that_says_too_little(path, "sweep")
    assert sweep.name == f"{path.parent.name}_{path.stem}"
    assert parse_sweep(dump_sweep(sweep)) == sweep
    cells = 0
    for values in itertools.product(*sweep.grid.values()):
        raw = {"name": "cell", **copy.deepcopy(sweep.recipe)}
        for field, value in zip(sweep.grid, values, strict=True):
            put(raw, field.split("."), value, told=field)
        assert resolved(raw, str(path)).training.global_batch == sweep.recipe["training"]["global_batch"]
        cells += 1
    assert f"# Trains  {cells} cells of {sweep.recipe['training']['epochs']} epochs" in path.read_text()


def number_paths(node: dict[str, Any], prefix: str = "") -> list[str]:
    paths = []
    for key, value in node.items():
        if isinstance(value, dict):
            paths += number_paths(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            paths.append(prefix + key)
    return paths


def test_no_number_takes_true_for_one() -> None:
    paths = number_paths(
        yaml.safe_load(dump(parse(BASE, overrides=["training.early_stopping.patience=1", "training.clip_norm=1"])))
    )
    assert len(paths) > 20
    for path in paths:
        assert f"recipe: {path}: must be a number, not true" in refusal(
            BASE, "training.early_stopping.patience=1", f"{path}=true"
        )
