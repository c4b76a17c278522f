"""Paths in a recipe, which are read by processes that run in other folders and on other machines."""

from __future__ import annotations

from pathlib import Path

from longhaul.errors import UserError
from longhaul.recipe.schema import Recipe


def refuse_relative_paths(recipe: Recipe) -> None:
    """Refuse a local path that depends on the folder in which a command was given: workers and jobs run in others.

    Raises:
        UserError: names the field, and the absolute path that was meant.
    """
    for field, path in (("data.root", recipe.data.root), ("model.weights", recipe.model.weights)):
        if path and "://" not in path and not path.startswith(("/", "~")):
            raise UserError(
                f"{field}: {path!r} is a relative path, and workers run in other folders",
                f"Give one that every node can reach: --set {field}={Path(path).resolve()}",
            )
