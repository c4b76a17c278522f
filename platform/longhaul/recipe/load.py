"""From YAML and `--set` to a validated `Recipe`, with errors that name the field and the nearest right name."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from longhaul.errors import UserError
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


def parse(text: str, *, source: str = "recipe", overrides: typing.Sequence[str] = ()) -> Recipe:
    """Like `load`, from a text; `source` names it in errors."""
    try:
        raw = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}", "Correct that line") from None
    if not isinstance(raw, dict):
        raise UserError(f"{source}: a recipe is a mapping of fields", "Start from jobs/recipes/classification/digits.yaml")
    for override in overrides:
        _apply(raw, override)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(dict(detail), raw) for detail in error.errors()]
        raise UserError("\n".join(f"{source}: {line}" for line in lines)) from None


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; `parse(dump(recipe)) == recipe`."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply(raw: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override!r}: not of the form field.path=value", "Write for example --set training.epochs=3")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {override!r}: the value is not valid YAML", "Quote it, as in --set 'name=\"a: b\"'") from None
    node = raw
    for key in keys[:-1]:
        child = node.get(key)
        if not isinstance(child, dict):
            child = node[key] = {}
        node = child
    node[keys[-1]] = parsed


def _explain(detail: dict[str, Any], raw: dict[str, Any]) -> str:
    """One line for one of pydantic's errors: the path as it stands in the YAML, what is wrong, what would be right."""
    location = _path_in_file(detail["loc"], raw)
    path = ".".join(map(str, location))
    kind, message = detail["type"], detail["msg"]
    if kind == "extra_forbidden":
        names = _field_names(Recipe, detail["loc"][:-1])
        near = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"the fields here are {', '.join(names)}"
        return f"{path}: unknown field; {hint}"
    if kind == "missing":
        return f"{path}: required, and missing; add it"
    if kind in {"literal_error", "union_tag_invalid"}:
        expected = detail["ctx"].get("expected") or detail["ctx"].get("expected_tags")
        tag = "" if kind == "literal_error" else f".{detail['ctx']['discriminator'].strip(chr(39))}"
        return f"{path}{tag}: {_given(detail)} is none of {expected}"
    if kind == "union_tag_not_found":
        return f"{path}.{detail['ctx']['discriminator'].strip(chr(39))}: required, and missing; it says which kind this is"
    if kind == "value_error":
        return f"{path}: {detail['ctx']['error']}" if path else str(detail["ctx"]["error"])
    if kind in {"model_type", "model_attributes_type", "tuple_type"}:
        return f"{path}: must be a {'list' if kind == 'tuple_type' else 'mapping of fields'} (got {detail['input']!r})"
    return f"{path}: {message[0].lower()}{message[1:]} (got {detail['input']!r})"


def _given(detail: dict[str, Any]) -> str:
    return repr(detail["ctx"].get("tag", detail["input"]))


def _path_in_file(loc: tuple[Any, ...], raw: Any) -> list[Any]:
    """Pydantic's location without the tags of unions, which do not stand in the file."""
    path: list[Any] = []
    node = raw
    for position, key in enumerate(loc):
        last = position == len(loc) - 1
        if isinstance(node, dict) and key not in node and not last and key in node.values():
            continue
        path.append(key)
        try:
            node = node[key]
        except (KeyError, IndexError, TypeError):
            node = None
    return path


def _field_names(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """The field names of the section at pydantic's location `loc`, following optional sections and tagged unions."""
    candidates: list[type[BaseModel]] = [model]
    for key in loc:
        inner = [m for c in candidates if key in c.model_fields for m in _sections(c.model_fields[key].annotation)]
        tagged = [c for c in candidates if any(key in typing.get_args(f.annotation) for f in c.model_fields.values())]
        candidates = inner or tagged or candidates
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [section for arg in typing.get_args(annotation) for section in _sections(arg)]
