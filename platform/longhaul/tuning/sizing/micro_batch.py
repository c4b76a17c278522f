"""The micro-batch of a cell from its memory: the global batch stays, and with it what the optimizer sees."""

from __future__ import annotations

from longhaul.errors import UserError
from longhaul.models.counting import Count
from longhaul.recipe import Recipe
from longhaul.tuning.sizing.memory_estimate import GB, fixed_bytes, sample_bytes

_HEADROOM = 0.9  # of the memory: the estimate is one


def fit_micro_batch(recipe: Recipe, counted: Count, gpu_memory_gb: float) -> int:
    """The largest micro-batch that fits, among those that cut a worker's share of the global batch into equal parts.

    The recipe's own is no bound: a cell at a low resolution takes more at once, one at a high resolution less.

    Args:
        recipe: with its global batch, optimizer, precision and least number of workers.
        counted: its network at its resolution.
        gpu_memory_gb: of the GPU, or of the share of it that the cell has, in 10^9 bytes; nine tenths are used.

    Raises:
        UserError: not even one sample fits.
    """
    training = recipe.training
    average = training.ema_decay is not None
    fixed = fixed_bytes(counted, training.optimizer, training.precision, average=average)
    one = sample_bytes(counted, training.precision)
    room = _HEADROOM * gpu_memory_gb * GB - fixed
    share = largest_share(recipe)
    fitting = [size for size in range(1, share + 1) if share % size == 0 and size * one <= room]
    if not fitting:
        need = (fixed + one) / _HEADROOM / GB
        problem = f"{recipe.model.name} at {recipe.data.resolution} px: one sample needs {need:.3g} GB of {gpu_memory_gb:g}"
        raise UserError(problem, "Lower data.resolution, take a smaller model, or raise resources.gpu_memory_gb or gpus")
    return max(fitting)


def largest_share(recipe: Recipe) -> int:
    """The most samples of a global batch that one worker can get: with the fewest workers that share it evenly."""
    batch, scaling = recipe.training.global_batch, recipe.scaling
    return batch // next(workers for workers in range(scaling.least, scaling.most + 1) if batch % workers == 0)
