"""The problems that Longhaul trains: model, loss, metrics and export signature, one file each."""

from longhaul.recipe import Recipe
from longhaul.workloads.base import Goal, Signature, TensorSpec, Workload

__all__ = ["Goal", "Signature", "TensorSpec", "Workload", "build"]


def build(recipe: Recipe) -> Workload:
    """The recipe's workload, its data found and checked.

    Raises:
        UserError: data or model of the recipe are not there, or not in order.
    """
    if recipe.workload.kind == "detection":
        from longhaul.workloads.detection import Detection

        return Detection(recipe)
    from longhaul.workloads.classification import Classification

    return Classification(recipe)
