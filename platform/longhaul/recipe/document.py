"""The schema of a recipe as a document: JSON Schema, whole or below one field."""

from __future__ import annotations

import difflib
from typing import Any

from longhaul.errors import UserError
from longhaul.recipe.schema import Recipe

JsonSchema = dict[str, Any]


def field_schema(path: str = "") -> JsonSchema:
    """What stands at `path` (such as `training.schedule`; all of a recipe for ""), complete in itself.

    Where a field takes one of several sections, a path may go on with a field of any of them.

    Raises:
        UserError: no field has that path; names the nearest one.
    """
    document = Recipe.model_json_schema()
    node: JsonSchema = _inlined(document, document["$defs"])
    node.pop("$defs")
    walked: list[str] = []
    for key in filter(None, path.split(".")):
        fields = {name: child for section in reversed(_sections(node)) for name, child in section["properties"].items()}
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
            hint = f"Did you mean {'.'.join([*walked, near[0]])}?" if near else "Run `longhaul recipe schema` for all of them"
            raise UserError(f"recipe field {path!r}: unknown", hint)
        node = fields[key]
        walked.append(key)
    return node


def _sections(node: JsonSchema) -> list[JsonSchema]:
    """The mappings that a field may hold: itself, or those among its alternatives."""
    alternatives = [node, *node.get("anyOf", []), *node.get("oneOf", [])]
    return [alternative for alternative in alternatives if "properties" in alternative]


def _inlined(node: Any, definitions: dict[str, JsonSchema]) -> Any:
    """`node` with every reference replaced by what it refers to."""
    if isinstance(node, list):
        return [_inlined(child, definitions) for child in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[-1]]
        return _inlined(target | {key: value for key, value in node.items() if key != "$ref"}, definitions)
    return {key: _inlined(child, definitions) for key, child in node.items() if key != "discriminator"}
