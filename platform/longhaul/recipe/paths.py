"""Paths in a recipe, which are read by processes that run in other folders and on other machines."""

from __future__ import annotations

from pathlib import Path

from longhaul.errors import UserError
from longhaul.recipe.schema import Recipe


def anchored(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with its relative paths made absolute where what they name is there, seen from `folder`.

    For commands given on the machine that holds the data; a path that is not there stays as it is, for `refuse_relative_paths`.
    """
    changes = {}
    for section, field in (("data", "root"), ("model", "weights")):
        path = getattr(getattr(recipe, section), field)
        if path and _is_relative(path) and (folder / path).exists():
            changes[section] = getattr(recipe, section).model_copy(update={field: str((folder / path).resolve())})
    return recipe.model_copy(update=changes) if changes else recipe


def refuse_relative_paths(recipe: Recipe) -> None:
    """Refuse a local path that depends on the folder in which a command was given: workers and jobs run in others.

    Raises:
        UserError: names the field, and the absolute path that was meant.
    """
    for field, path in (("data.root", recipe.data.root), ("model.weights", recipe.model.weights)):
        if path and _is_relative(path):
            raise UserError(
                f"{field}: {path!r} is a relative path, and workers run in other folders",
                f"Give one that every node can reach: --set {field}={Path(path).resolve()}",
            )


def _is_relative(path: str) -> bool:
    return "://" not in path and not path.startswith(("/", "~"))
