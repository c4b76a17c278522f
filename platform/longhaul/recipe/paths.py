"""Paths in a recipe, which are read by processes that run in other folders and on other machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longhaul.errors import UserError
from longhaul.recipe.schema import Recipe
from longhaul.recipe.sweep import Choice, SweepRecipe

_FIELDS = (("data", "root"), ("model", "weights"))


def anchored(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with its relative paths made absolute where what they name is there, seen from `folder`.

    For commands given on the machine that holds the data; a path that is not there stays as it is, for `refuse_relative_paths`.
    """
    changes = {}
    for section, field in _FIELDS:
        path = getattr(getattr(recipe, section), field)
        if _anchor(path, folder) != path:
            changes[section] = getattr(recipe, section).model_copy(update={field: _anchor(path, folder)})
    return recipe.model_copy(update=changes) if changes else recipe


def anchored_sweep(sweep: SweepRecipe, folder: Path) -> SweepRecipe:
    """The sweep with the relative paths of its base recipe, and those that it varies, made absolute as `anchored` does.

    So that it means the same to whoever extends it, from wherever.
    """
    base = dict(sweep.recipe)
    for section, field in _FIELDS:
        if isinstance(base.get(section), dict) and field in base[section]:
            base[section] = {**base[section], field: _anchor(base[section][field], folder)}
    fields = [".".join(names) for names in _FIELDS]
    grid = {path: tuple(_anchor(one, folder) for one in sweep.grid[path]) for path in fields if path in sweep.grid}
    changes: dict[str, Any] = {"recipe": base, "grid": {**sweep.grid, **grid}}
    if sweep.search is not None:
        space = dict(sweep.search.space)
        for path in fields:
            domain = space.get(path)
            if isinstance(domain, Choice):
                space[path] = Choice(choice=tuple(_anchor(value, folder) for value in domain.choice))
        changes["search"] = sweep.search.model_copy(update={"space": space})
    return sweep.model_copy(update=changes)


def refuse_relative_paths(recipe: Recipe, within: str = "") -> None:
    """Refuse a local path that depends on the folder in which a command was given: workers and jobs run in others.

    Args:
        recipe: to be trained.
        within: what goes before a field's name where it is set, such as `recipe.` in a sweep.

    Raises:
        UserError: names the field, and the absolute path that was meant.
    """
    for field, path in (("data.root", recipe.data.root), ("model.weights", recipe.model.weights)):
        if path and _is_relative(path):
            raise UserError(
                f"{within}{field}: {path!r} is a relative path, and workers run in other folders",
                f"Give one that every node can reach: --set {within}{field}={Path(path).resolve()}",
            )


def _anchor(path: Any, folder: Path) -> Any:
    """A relative path that is there, seen from `folder`, made absolute; anything else as it is."""
    there = isinstance(path, str) and path and _is_relative(path) and (folder / path).exists()
    return str((folder / path).resolve()) if there else path


def _is_relative(path: str) -> bool:
    return "://" not in path and not path.startswith(("/", "~"))
