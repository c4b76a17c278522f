"""The problems that Longhaul trains: model, loss, metrics and export signature, one file each."""

from longhaul.recipe import Recipe
from longhaul.workloads.base import Goal, Signature, TensorSpec, Workload

__all__ = ["Goal", "Signature", "TensorSpec", "Workload", "build"]


def build(recipe: Recipe) -> Workload:
    """The recipe's workload, its data found and checked.

    Raises:
        UserError: data or model of the recipe are not there, or not in order.
    """
    from longhaul.workloads.classification import Classification

    return {"classification": Classification}[recipe.workload.kind](recipe)
