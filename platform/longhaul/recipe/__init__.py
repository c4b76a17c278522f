"""What a run is: the schema of a recipe, loading with overrides, and the difference between two recipes."""

from longhaul.recipe.diff import Difference, diff
from longhaul.recipe.document import field_schema
from longhaul.recipe.duration import Duration
from longhaul.recipe.load import dump, load, parse
from longhaul.recipe.schema import Recipe

__all__ = ["Difference", "Duration", "Recipe", "diff", "dump", "field_schema", "load", "parse"]
