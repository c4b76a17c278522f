"""What a cell takes of the cluster, and how many train at once."""

from __future__ import annotations

import math

from longhaul.errors import UserError
from longhaul.recipe import Recipe
from longhaul.recipe.sweep import ResourcesSection
from longhaul.training.alone import can_train_alone

DRIVER = {"memory": 1.0}
"""Of a trial that hands its cell to Ray Train: the workers' own come from a placement group that Tune does not see. One byte, as
Tune takes no trial that asks for nothing; the usual hundredth of a core would keep two workers of one core each from ever
starting on two cores.
"""
_SHARES = (0.25, 0.5)
_HEADROOM = 1.1  # the memory is an estimate
_LEAST = 1e-9  # Ray reckons in ten-thousandths


def gpu_share(recipe: Recipe, section: ResourcesSection, memory_gb: float | None) -> float:
    """The GPUs that a cell takes where the cluster has any: a quarter, a half or a whole one, or as the section says.

    A cell of several workers takes one a worker.

    Args:
        recipe: of the cell.
        section: of the sweep.
        memory_gb: estimated need (`memory_estimate`) in 10^9 bytes; None where it is not known: a whole GPU.
    """
    if recipe.scaling.gpu is False:
        return 0.0
    if not can_train_alone(recipe):
        return float(recipe.scaling.least)
    if section.gpus != "auto":
        return float(section.gpus)
    if memory_gb is None:
        return 1.0
    return next((share for share in _SHARES if _HEADROOM * memory_gb <= share * section.gpu_memory_gb), 1.0)


def trial_resources(recipe: Recipe, section: ResourcesSection, gpus: float, cluster: dict[str, float]) -> dict[str, float]:
    """What Ray Tune reserves for a cell's trial, such as `{"CPU": 1.0, "GPU": 0.25}`.

    Args:
        recipe: of the cell.
        section: of the sweep.
        gpus: from `gpu_share`.
        cluster: what there is , or may come to be (`training.on_ray.capacity.obtainable`).

    Raises:
        UserError: the cluster never has as much, so that the trial would wait for ever.
    """
    if not can_train_alone(recipe):
        return dict(DRIVER)
    needed = {"CPU": section.cpus}
    wants_gpu = recipe.scaling.gpu is True or (section.gpus != "auto" and section.gpus > 0)
    if gpus > 0 and recipe.scaling.gpu is not False and (wants_gpu or cluster.get("GPU", 0) > 0):
        needed["GPU"] = gpus
    _refuse_too_much(needed, cluster)
    return needed


def charged_resources(recipe: Recipe, cluster: dict[str, float]) -> dict[str, float] | None:
    """What each worker of a cell takes that is handed to Ray Train; None for one that trains in its trial's own process."""
    if can_train_alone(recipe):
        return None
    each = {"CPU": recipe.scaling.cpus_per_worker}
    if _with_gpus(recipe, cluster):
        each["GPU"] = 1.0
    return each


def _with_gpus(recipe: Recipe, cluster: dict[str, float]) -> bool:
    gpu = recipe.scaling.gpu
    return gpu is True or (gpu == "auto" and cluster.get("GPU", 0) >= recipe.scaling.least)


def parallel_trials(recipe: Recipe, section: ResourcesSection, cluster: dict[str, float]) -> int:
    """How many cells like `recipe` train at once, at least one.

    Of cells of one process, as many as the smallest would leave room for: Tune itself lets each wait for its share. Cells of
    several workers have theirs from Ray Train, which Tune does not see: only as many begin as have room for all of their
    workers, so that none waits for another for ever.

    Raises:
        UserError: there is no room for the workers of one.
    """
    most = section.parallel or math.inf
    if can_train_alone(recipe):
        rooms = [cluster.get("CPU", 0.0) / section.cpus]
        if cluster.get("GPU", 0) > 0 and recipe.scaling.gpu is not False and section.gpus != 0:
            rooms.append(cluster["GPU"] / (_SHARES[0] if section.gpus == "auto" else section.gpus))
        return max(int(min(*rooms, most) + _LEAST), 1)
    workers, each = recipe.scaling.least, recipe.scaling.cpus_per_worker
    needed = {"CPU": workers * each}
    if _with_gpus(recipe, cluster):
        needed["GPU"] = float(workers)
    _refuse_too_much(needed, cluster)
    return int(min(*(cluster[name] / amount for name, amount in needed.items()), most) + _LEAST)


def _refuse_too_much(needed: dict[str, float], cluster: dict[str, float]) -> None:
    for name, amount in needed.items():
        if amount > cluster.get(name, 0.0) + _LEAST:
            field = {"CPU": "resources.cpus, scaling.workers or scaling.cpus_per_worker", "GPU": "resources.gpus or scaling.gpu"}
            problem = f"a cell takes {amount:g} {name}, and the cluster has {cluster.get(name, 0.0):g}"
            raise UserError(problem, f"Lower {field[name]}, or connect to a larger cluster")
