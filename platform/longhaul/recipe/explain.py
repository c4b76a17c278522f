"""Pydantic's errors in a recipe, said with the path as it stands in the file and the nearest right name."""

from __future__ import annotations

import difflib
import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from longhaul.recipe.schema import Recipe


def explain(error: ValidationError, raw: dict[str, Any], model: type[BaseModel]) -> list[str]:
    """One line an error.

    Args:
        error: of validating `raw`.
        raw: the mapping as it was read.
        model: that it was to become.
    """
    lines: dict[tuple[Any, ...], str] = {}
    for detail in error.errors():
        loc = tuple(key for key in detail["loc"] if not (isinstance(key, str) and key.endswith("]")))
        # A union without a tag reports each of its members in turn, by names such as `tuple[...]`: the first says enough.
        key = loc if len(loc) < len(detail["loc"]) else (*detail["loc"], len(lines))
        lines.setdefault(key, _line({**detail, "loc": loc}, raw, model))
    return list(lines.values())


def _line(detail: dict[str, Any], raw: dict[str, Any], model: type[BaseModel]) -> str:
    """One line for one of pydantic's errors: the path as it stands in the YAML, what is wrong, what would be right."""
    location = _path_in_file(detail["loc"], raw)
    path = ".".join(map(str, location))
    kind, message = detail["type"], detail["msg"]
    if kind == "extra_forbidden":
        if len(location) == 1 and "recipe" in model.model_fields and location[0] in Recipe.model_fields:  # in a sweep
            return f"{path}: unknown field; did you mean 'recipe.{path}'?"
        names = _field_names(model, detail["loc"][:-1])
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
        if isinstance(node, dict) and key not in node and not last and (key in node.values() or loc[position + 1] in node):
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
