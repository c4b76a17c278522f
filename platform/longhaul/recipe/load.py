"""From YAML and `--set` to a validated `Recipe`, with errors that name the field and the nearest right name."""

from __future__ import annotations

import typing
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from longhaul.errors import UserError
from longhaul.recipe.explain import explain
from longhaul.recipe.phases import resolve
from longhaul.recipe.schema import Recipe


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader, refusing a key that is given twice (the silent loser is always the one that was meant)."""


def _mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # `<<` is no key; what it brings in may be overridden
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(None, None, "a key is a list or a mapping", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load(path: str | Path, overrides: typing.Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply overrides.

    Args:
        path: a YAML file.
        overrides: texts such as `training.epochs=3`; the value is read as YAML.

    Raises:
        UserError: no such file, not YAML, an unknown field, a value out of range, or a contradiction between fields.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(str(p) for p in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
        there = f"There are: {', '.join(near)}" if near else "Recipes live in jobs/recipes/<workload>/<name>.yaml"
        raise UserError(f"recipe {path}: no such file", there) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path}: cannot be read as text ({error})", "Give a YAML file") from None
    return parse(text, source=str(path), overrides=overrides)


def parse(text: str, *, source: str = "recipe", overrides: typing.Sequence[str] = (), option: str = "--set") -> Recipe:
    """Like `load`, from a text; `source` names it in errors, `option` how the overrides were given."""
    try:
        raw = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}", "Correct that line") from None
    if not isinstance(raw, dict):
        raise UserError(f"{source}: a recipe is a mapping of fields", "Start from jobs/recipes/classification/digits.yaml")
    for override in overrides:
        _apply(raw, override, option)
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        lines = explain(error, raw, Recipe)
        raise UserError("\n".join(f"{source}: {line}" for line in lines)) from None
    try:
        resolve(recipe)
    except UserError as error:
        raise UserError("\n".join(f"{source}: {line}" for line in error.problem.splitlines()), error.fix) from None
    return recipe


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; `parse(dump(recipe)) == recipe`."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply(raw: dict[str, Any], override: str, option: str) -> None:
    path, equals, value = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(
            f"{option} {override!r}: not of the form field.path=value", f"Write for example {option} training.epochs=3"
        )
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(
            f"{option} {override!r}: the value is not valid YAML", f"Quote it, as in {option} 'name=\"a: b\"'"
        ) from None
    node: Any = raw
    for key in keys[:-1]:
        child = _child(node, key, override, option) if isinstance(node, list) else node.get(key)
        if not isinstance(child, dict | list):
            child = node[key] = {}
        node = child
    if isinstance(node, list):
        _child(node, keys[-1], override, option)
        node[int(keys[-1])] = parsed
    else:
        node[keys[-1]] = parsed


def _child(node: list[Any], key: str, override: str, option: str) -> Any:
    if not key.isdecimal() or int(key) >= len(node):
        raise UserError(
            f"{option} {override!r}: {key!r} is no place in a list of {len(node)}", "Count from 0, as in phases.0.gate"
        )
    return node[int(key)]
