"""The command line as a user meets it: help that teaches, errors of one line, nothing heavy loaded before it is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from longhaul.cli.main import app
from longhaul.recipe import load, parse
from longhaul.resilience.run_directory import RunDirectory

ROOT = Path(__file__).parents[2]
DIGITS = "jobs/recipes/classification/digits.yaml"
HEAVY = {"ray", "torch", "torchvision", "timm", "onnx", "onnxruntime", "matplotlib", "sklearn", "mlflow", "wandb", "deepspeed"}


def longhaul(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("longhaul"), *arguments]
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def verbs(command: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The leaves of the tree of commands."""
    children = getattr(command, "commands", None)
    return [verb for name, child in children.items() for verb in verbs(child, (*path, name))] if children else [path]


VERBS = verbs(typer.main.get_command(app))


def test_the_verbs_that_others_rely_on_are_there() -> None:
    assert {
        ("train",),
        ("submit",),
        ("export",),
        ("serve",),
        ("plan",),
        *((group, verb) for group in ("runs",) for verb in ("ls", "show", "watch", "compare", "incidents", "pause", "cancel")),
        *(("models", verb) for verb in ("ls", "show", "verify", "promote")),
        *(("recipe", verb) for verb in ("show", "diff", "schema", "models")),
    } <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_says_what_it_does_and_gives_an_example(verb: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*verb, "--help"], env={"COLUMNS": "200"}, prog_name="longhaul")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"longhaul {' '.join(verb)}" in result.output.partition("Example")[2]


def test_top_help_lists_the_verbs_and_where_to_start() -> None:
    result = longhaul("--help")
    assert result.returncode == 0
    for name in {verb[0] for verb in VERBS}:
        assert f" {name} " in result.stdout
    assert f"Start with: longhaul train {DIGITS}" in result.stdout
    assert longhaul().stdout.split() == result.stdout.split()


def test_help_loads_nothing_heavy() -> None:
    code = f"""
import sys
from typer.testing import CliRunner
from longhaul.cli.main import app
for verb in {VERBS!r}:
    assert CliRunner().invoke(app, [*verb, "--help"]).exit_code == 0, verb
print(*sorted({{name.partition(".")[0] for name in sys.modules}} & {HEAVY!r}))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


@pytest.mark.parametrize("verb", [("recipe", "show"), ("train",), ("submit",)], ids=" ".join)
def test_wrong_field_ends_with_one_line_and_2(verb: tuple[str, ...], tmp_path: Path) -> None:
    result = longhaul(*verb, str(ROOT / DIGITS), "--set", "training.epoch=3", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == f"error {ROOT / DIGITS}: training.epoch: unknown field; did you mean 'epochs'?"
    assert "Traceback" not in result.stdout + result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", [("recipe", "show"), ("train",), ("submit",)], ids=" ".join)
def test_missing_recipe_names_those_that_are_there(verb: tuple[str, ...]) -> None:
    result = longhaul(*verb, DIGITS.replace("digits", "digit"))
    assert result.returncode == 2
    assert f"digit.yaml: no such file. There are: {DIGITS}" in result.stderr
    assert "Traceback" not in result.stderr


def test_unknown_verb_ends_with_2() -> None:
    result = longhaul("trian")
    assert result.returncode == 2
    assert "train" in result.stderr
    assert "Traceback" not in result.stderr


def test_square_brackets_in_an_error_are_text() -> None:
    result = longhaul("recipe", "show", "[bold]x.yaml")
    assert "error recipe [bold]x.yaml: no such file" in result.stderr


def test_recipe_show_into_a_file_can_be_read_again(tmp_path: Path) -> None:
    long = "data.root=" + "/a long name" * 20
    result = longhaul("recipe", "show", DIGITS, "--set", long, "-s", "seed=3")
    assert result.returncode == 0
    assert parse(result.stdout) == load(ROOT / DIGITS, [long, "seed=3"])
    assert parse(result.stdout).sha256 in result.stderr


def test_recipe_show_tells_the_phases() -> None:
    result = longhaul("recipe", "show", DIGITS.replace("digits", "digits_phases"))
    assert result.returncode == 0
    [line] = [line for line in result.stderr.splitlines() if "all-small" in line]
    assert [cell.strip() for cell in line.strip("│ ").split("│")][1:] == [
        "16", "1", "3 epochs", "the best weights before", "val/top1 at least 0.8"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--change", "seed=3"), "error --change seed: 7 -> 3: cannot change in a run that has checkpoints; initial weights"),
        (("--change", "training.epochs=3", "--set", "seed=3"), "error --set and --change contradict each other"),
        (("--set", "training.epochs=3"), "exists with another recipe (training.epochs: 10.0 -> 3.0)"),
    ],
)
def test_another_recipe_for_a_run_with_checkpoints_ends_with_one_line_and_2(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    run = RunDirectory.create(str(tmp_path), "begun", load(ROOT / DIGITS))
    run.storage.write_bytes("checkpoints/step-1/model.safetensors", b"x")
    result = longhaul("train", str(ROOT / DIGITS), "--storage", str(tmp_path), "--resume", *arguments)
    assert result.returncode == 2
    assert said in result.stderr.splitlines()[-1]
    assert run.recipe() == load(ROOT / DIGITS)


def test_recipe_diff_shows_what_differs(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(longhaul("recipe", "show", DIGITS, "--set", "training.engine=zero2").stdout)
    result = longhaul("recipe", "diff", DIGITS, str(other))
    assert result.returncode == 0
    row = next(line for line in result.stdout.splitlines() if "training.engine" in line)
    assert row.replace("│", " ").split() == ["training.engine", "torch", "zero2"]
    assert "training.epochs" not in result.stdout
    assert "no difference" in longhaul("recipe", "diff", DIGITS, DIGITS).stdout


def test_recipe_schema_is_json_below_a_field() -> None:
    import json

    result = longhaul("recipe", "schema", "training.schedule")
    titles = {option["title"] for option in json.loads(result.stdout)["oneOf"]}
    assert {"CosineSchedule", "OneCycleSchedule"} <= titles
    wrong = longhaul("recipe", "schema", "trainin")
    assert wrong.returncode == 2
    assert "Did you mean training?" in wrong.stderr


def test_recipe_models_lists_names() -> None:
    assert "convnext_large" in longhaul("recipe", "models", "convnext_l").stdout.split()
    assert longhaul("recipe", "models", "no such").returncode == 2


def test_version() -> None:
    from longhaul import __version__

    assert longhaul("--version").stdout == f"longhaul {__version__}\n"
