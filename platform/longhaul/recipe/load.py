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
from longhaul.recipe.section import Section
from longhaul.recipe.sweep import DOMAINS, SweepRecipe, dotted_fields

S = typing.TypeVar("S", bound=Section)


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
    return parse(_text(path), source=str(path), overrides=overrides)


def load_sweep(path: str | Path, overrides: typing.Sequence[str] = ()) -> SweepRecipe:
    """Read a sweep's file and apply overrides, such as `recipe.training.epochs=3` or `grid.data.resolution=[32, 64]`.

    Raises:
        UserError: as `load` does; the base recipe is checked with each cell (`tuning.cells.cells`).
    """
    return parse_sweep(_text(path), source=str(path), overrides=overrides)


def _text(path: str | Path) -> str:
    file = Path(path)
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(str(p) for p in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
        there = f"There are: {', '.join(near)}" if near else "Recipes live in jobs/recipes/<workload>/<name>.yaml"
        raise UserError(f"recipe {path}: no such file", there) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path}: cannot be read as text ({error})", "Give a YAML file") from None


def parse_sweep(text: str, *, source: str = "sweep", overrides: typing.Sequence[str] = ()) -> SweepRecipe:
    """Like `load_sweep`, from a text."""
    raw = _mapping_of(text, source)
    if "recipe" not in raw:
        fix = "A sweep has the fields name, recipe and grid or search; a recipe alone is for `longhaul train`"
        raise UserError(f"{source}: is no sweep (it has no field `recipe`)", fix)
    for override in overrides:
        varied = _varied(raw, source)
        path, equals, _ = override.partition("=")
        prefix = next((prefix for prefix in varied if path.strip().startswith(prefix)), None)
        if equals and prefix is not None:
            apply_override(varied[prefix], override, "--set", key=path.strip().removeprefix(prefix))
        else:
            apply_override(raw, override, "--set")
    return _validated(raw, SweepRecipe, source)


def _varied(raw: dict[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """The mappings of a sweep whose keys are dotted fields, by the prefix that an override of one has.

    They are dotted here, so that it finds the field however it is written.
    """
    varied = {}
    places = (("grid.", raw, "grid", ()), ("search.space.", raw.get("search"), "space", DOMAINS))
    for prefix, section, key, leaves in places:
        if isinstance(section, dict) and isinstance(section.get(key), dict):
            try:
                section[key] = varied[prefix] = dotted_fields(section[key], leaves)
            except ValueError as error:
                raise UserError(f"{source}: {prefix.rstrip('.')}: {error}") from None
    return varied


def parse(text: str, *, source: str = "recipe", overrides: typing.Sequence[str] = (), option: str = "--set") -> Recipe:
    """Like `load`, from a text; `source` names it in errors, `option` how the overrides were given."""
    raw = _mapping_of(text, source)
    if "recipe" in raw:
        raise UserError(f"{source}: is a sweep, not a recipe", f"Run it: longhaul sweep {source}")
    for override in overrides:
        apply_override(raw, override, option)
    return resolved(raw, source)


def resolved(raw: dict[str, Any], source: str) -> Recipe:
    """A mapping of fields as a recipe, its phases checked; `source` names it in errors.

    Raises:
        UserError: it is none.
    """
    recipe = _validated(raw, Recipe, source)
    try:
        resolve(recipe)
    except UserError as error:
        raise UserError("\n".join(f"{source}: {line}" for line in error.problem.splitlines()), error.fix) from None
    return recipe


def added(sweep: SweepRecipe, additions: typing.Sequence[str]) -> SweepRecipe:
    """The sweep with one value more of a field of its grid for each addition, such as `data.resolution=128`.

    Raises:
        UserError: the grid has no such field, or has the value.
    """
    grid = {field: list(values) for field, values in sweep.grid.items()}
    for addition in additions:
        path, equals, text = addition.partition("=")
        field = path.strip()
        if not equals or field not in grid:
            fields = ", ".join(grid) or "none: it is a search, see search.trials"
            raise UserError(f"--add {addition!r}: no value of a field of the grid", f"Its fields are {fields}")
        value: dict[str, Any] = {}
        apply_override(value, f"value={text}", "--add")
        if value["value"] in grid[field]:
            raise UserError(f"--add {addition!r}: is in the grid already", f"It has {grid[field]}")
        grid[field].append(value["value"])
    return sweep.model_copy(update={"grid": {field: tuple(values) for field, values in grid.items()}})


def _mapping_of(text: str, source: str) -> dict[str, Any]:
    try:
        raw = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}", "Correct that line") from None
    if not isinstance(raw, dict):
        raise UserError(f"{source}: a recipe is a mapping of fields", "Start from jobs/recipes/classification/digits.yaml")
    return raw


def _validated(raw: dict[str, Any], model: type[S], source: str) -> S:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = explain(error, raw, model)
        raise UserError("\n".join(f"{source}: {line}" for line in lines)) from None


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; `parse(dump(recipe)) == recipe`."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def dump_sweep(sweep: SweepRecipe) -> str:
    """The resolved sweep as YAML; `parse_sweep(dump_sweep(sweep)) == sweep`."""
    return yaml.safe_dump(sweep.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def apply_override(raw: dict[str, Any], override: str, option: str, key: str | None = None) -> None:
    """Put the value of `field.path=value` into a nested mapping; with `key`, below that key as it is, dots and all.

    Raises:
        UserError: it is not of that form, its value is not YAML, or the path leads to no place in a list.
    """
    path, equals, value = override.partition("=")
    keys = path.strip().split(".") if key is None else [key]
    if not equals or not all(keys):
        raise UserError(
            f"{option} {override!r}: not of the form field.path=value",
            f"Write for example {option} training.epochs=3; of a sweep, {option} recipe.training.epochs=3",
        )
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(
            f"{option} {override!r}: the value is not valid YAML", f"Quote it, as in {option} 'name=\"a: b\"'"
        ) from None
    put(raw, keys, parsed, told=f"{option} {override!r}")


def put(raw: dict[str, Any], keys: typing.Sequence[str], value: Any, *, told: str) -> None:
    """Put `value` into a nested mapping at the path `keys`; `told` names it in errors.

    Raises:
        UserError: the path leads to no place in a list.
    """
    node: Any = raw
    for key in keys[:-1]:
        child = _child(node, key, told) if isinstance(node, list) else node.get(key)
        if not isinstance(child, dict | list):
            child = node[key] = {}
        node = child
    if isinstance(node, list):
        _child(node, keys[-1], told)
        node[int(keys[-1])] = value
    else:
        node[keys[-1]] = value


def _child(node: list[Any], key: str, told: str) -> Any:
    if not key.isdecimal() or int(key) >= len(node):
        raise UserError(f"{told}: {key!r} is no place in a list of {len(node)}", "Count from 0, as in phases.0.gate")
    return node[int(key)]
