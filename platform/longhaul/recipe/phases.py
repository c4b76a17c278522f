"""Phases: stretches of one run, each with a recipe of its own that follows from the base recipe."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from longhaul.errors import UserError
from longhaul.recipe.explain import explain
from longhaul.recipe.schema import PhaseSection, Recipe

_SETTABLE = ("data", "training", "validation", "checkpoints")
_SETTABLE_OF_MODEL = ("model.drop_rate", "model.drop_path_rate")


def resolve(recipe: Recipe) -> tuple[Recipe, ...]:
    """One whole recipe a phase, in order; of a recipe without phases, itself.

    Raises:
        UserError: what a phase sets gives no recipe; the message names `phases[1].set.data.resolution`.
    """
    if not recipe.phases:
        return (recipe,)
    names = [phase.name for phase in recipe.phases]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise UserError(f"phases[{place}].name: {name!r} is the name of an earlier phase", "Give each a name of its own")
    base = recipe.model_dump(mode="json", exclude={"phases"})
    return tuple(_resolved(base, phase, f"phases[{place}].set") for place, phase in enumerate(recipe.phases))


def _resolved(base: dict[str, Any], phase: PhaseSection, where: str) -> Recipe:
    raw = _copy(base)
    for field, value in phase.set.items():
        keys = field.split(".")
        if not ((len(keys) > 1 and keys[0] in _SETTABLE) or field in _SETTABLE_OF_MODEL):
            can = ", ".join([*(f"{section}.*" for section in _SETTABLE), *_SETTABLE_OF_MODEL])
            raise UserError(f"{where}.{field}: a phase cannot set it", f"It can set {can}")
        node = raw
        for key in keys[:-1]:
            child = node.get(key)
            node[key] = child if isinstance(child, dict) else {}
            node = node[key]
        node[keys[-1]] = value
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join(f"{where}.{line}" for line in explain(error, raw, Recipe))) from None


def _copy(node: Any) -> Any:
    return {key: _copy(value) for key, value in node.items()} if isinstance(node, dict) else node
