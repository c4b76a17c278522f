"""What differs between two recipes, field by field."""

from __future__ import annotations

from typing import Any, NamedTuple

from longhaul.recipe.flatten import flat
from longhaul.recipe.schema import Recipe


class Difference(NamedTuple):
    """One field that is not the same; None stands for a field that one side does not have."""

    field: str
    before: Any
    after: Any


def diff(before: Recipe, after: Recipe) -> list[Difference]:
    """The resolved fields in which two recipes differ, in the schema's order."""
    left, right = (flat(r.model_dump(mode="json")) for r in (before, after))
    fields = [*left, *(field for field in right if field not in left)]
    return [Difference(f, left.get(f), right.get(f)) for f in fields if left.get(f) != right.get(f)]
