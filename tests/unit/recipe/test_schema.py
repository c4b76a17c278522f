"""The recipe itself: frozen, hashed the same everywhere, compared field by field, documented."""

from __future__ import annotations

import subprocess
import sys

import pydantic
import pytest

from longhaul.errors import UserError
from longhaul.recipe import Recipe, diff, dump, field_schema, parse

TEXT = """\
name: base
model: {name: resnet18}
data: {kind: digits, resolution: 16}
training: {steps: 10, schedule: {name: multistep, milestones: [2 steps, 0.125 epochs]}}
"""


def test_resolved_recipe_reads_back_as_itself() -> None:
    recipe = parse(TEXT)
    again = parse(dump(recipe))
    assert again == recipe
    assert dump(again) == dump(recipe)


def test_recipe_cannot_be_changed() -> None:
    recipe = parse(TEXT)
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        recipe.training.steps = 3  # type: ignore[misc]


def test_hash_depends_on_content_alone() -> None:
    recipe = parse(TEXT)
    reordered = parse("\n".join(reversed(TEXT.strip().splitlines())) + "\nseed: 0\n")
    assert reordered.sha256 == recipe.sha256 == parse(dump(recipe)).sha256
    assert parse(TEXT, overrides=["seed=1"]).sha256 != recipe.sha256


def test_hash_is_the_same_in_another_process() -> None:
    code = f"from longhaul.recipe import parse; print(parse({TEXT!r}).sha256)"
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == parse(TEXT).sha256


def test_length_is_in_the_unit_that_was_given() -> None:
    assert str(parse(TEXT).training.length) == "10 steps"
    assert str(parse(TEXT, overrides=["training.steps=null", "training.samples=7"]).training.length) == "7 samples"
    assert str(parse(TEXT, overrides=["training.steps=null", "training.epochs=2.5"]).training.length) == "2.5 epochs"


def test_diff_names_what_changed_and_nothing_else() -> None:
    before = parse(TEXT)
    after = parse(TEXT, overrides=["training.optimizer.lr=0.1", "training.schedule={name: cosine}"])
    assert [tuple(change) for change in diff(before, after)] == [
        ("training.optimizer.lr", 0.001, 0.1),
        ("training.schedule.name", "multistep", "cosine"),
        ("training.schedule.milestones", ["2 steps", "0.125 epochs"], None),
        ("training.schedule.gamma", 0.1, None),
        ("training.schedule.floor", None, 0.0),
    ]
    assert diff(before, parse(dump(before))) == []


def test_every_field_is_described() -> None:
    nameless = []

    def walk(node: dict[str, object], path: str) -> None:
        for name, child in node.get("properties", {}).items():  # type: ignore[attr-defined]
            holds_section = any("properties" in n for n in [child, *child.get("anyOf", []), *child.get("oneOf", [])])
            if name not in {"kind", "name"} and not holds_section and "description" not in child:
                nameless.append(f"{path}{name}")
            for section in [child, *child.get("anyOf", []), *child.get("oneOf", [])]:
                walk(section, f"{path}{name}.")

    walk(field_schema(), "")
    assert nameless == []


def test_schema_below_a_field_is_complete_in_itself() -> None:
    assert field_schema("training.early_stopping.patience")["default"] == 10
    assert field_schema("training.schedule.floor")["exclusiveMaximum"] == 1
    assert field_schema("data.validation_share")["default"] == 0.1
    kinds = {option["title"] for option in field_schema("data")["oneOf"]}
    assert kinds == {"DigitsData", "ImageFolderData", "Cifar10Data", "SpectrogramData"}
    assert "$ref" not in str(field_schema())
    assert set(field_schema()["properties"]) == set(Recipe.model_fields)


def test_schema_of_an_unknown_field_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'training\.optimiser': unknown\. Did you mean training\.optimizer\?"):
        field_schema("training.optimiser")
    with pytest.raises(UserError, match="unknown"):
        field_schema("seed.deeper")
