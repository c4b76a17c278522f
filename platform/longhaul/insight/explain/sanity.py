"""Whether a heat map depends on what the model has learned (J. Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018).

The weights are drawn anew, from the output towards the input (cascading) or all at once, and the maps before and after are
compared by rank correlation on the common grid. A method whose map stays as it was draws the picture, not the model: it fails.

Drawn anew means: `reset_parameters` of every layer that has it, normalisation with its running statistics among them; other
tensors (class token, positions, layer scales) from a normal distribution with their own mean and deviation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from longhaul.insight.explain.attribution import Floats, Integration, Method, explain
from longhaul.insight.explain.consistency import RANKS, Estimate, estimate, rank_correlations, to_grid

BOUND = 0.5
"""Largest mean rank correlation that counts as another map."""
_FEW_STEPS = 32  # completeness of a random network's map is nobody's question

Mapping = Callable[[nn.Module, Tensor, Tensor], Floats]
"""(model, images (N, 3, R, R), targets (N,)) -> strength (N, R, R), each pixel's."""


class Randomised(BaseModel):
    """One stage of the cascade: `layers` of all were drawn anew; the maps' rank correlation with the trained model's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int
    rank_correlation: Estimate


class SanityCheck(BaseModel):
    """What became of a method's maps.

    Attributes:
        stages: with more and more layers drawn anew; the last has all.
        bound: largest mean rank correlation with all layers drawn anew that passes.
        passes: whether the maps depend on the model.
        between_images: mean rank correlation of the trained model's maps of different images: what all of them share, such as
            an empty border, and what random weights therefore need not change; None for a single image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: tuple[Randomised, ...]
    bound: float
    passes: bool
    between_images: float | None


def by_method(method: Method, layer: str | None = None) -> Mapping:
    """The strength of a method's maps, for `sanity_check`; `layer` as in `explain`."""

    def strength(model: nn.Module, images: Tensor, targets: Tensor) -> Floats:
        few = Integration(first_steps=_FEW_STEPS, most_steps=_FEW_STEPS)
        return explain(model, images, targets, method, few, layer).strength

    return strength


def sanity_check(
    mapping: Mapping, model: nn.Module, images: Tensor, targets: Tensor, *, shares: Sequence[float] = (1.0,), seed: int = 0
) -> SanityCheck:
    """Compare the model's maps with those of copies of it whose layers are drawn anew.

    Args:
        mapping: the method, such as `by_method("gradcam")`.
        model: a trained one; it stays as it is.
        images: (N, 3, R, R) normalised.
        targets: (N,) classes.
        shares: of the layers that are drawn anew, counted from the output; ascending, the last is 1. More than one cascade.
        seed: of the new weights.
    """
    trained = _cells(mapping(model, images, targets))
    layers = [module for module in model.modules() if _own_tensors(module)]
    stages = []
    for share in shares:
        count = max(round(share * len(layers)), 1)
        maps = _cells(mapping(randomised(model, count, seed), images, targets))
        stages.append(Randomised(layers=count, rank_correlation=estimate(rank_correlations(trained, maps), RANKS)))
    passes = abs(stages[-1].rank_correlation.mean) <= BOUND
    shared = estimate(rank_correlations(trained, trained), RANKS).chance
    return SanityCheck(stages=tuple(stages), bound=BOUND, passes=passes, between_images=shared)


def randomised(model: nn.Module, layers: int, seed: int) -> nn.Module:
    """A copy whose last `layers` layers, in the order of registration, have new weights; torch's random state stays."""
    new = copy.deepcopy(model)
    chosen = [module for module in new.modules() if _own_tensors(module)][-layers:]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: that would reset the GPU too
        for module in chosen:
            _draw_anew(module)
    return new


def _draw_anew(module: nn.Module) -> None:
    device = next(module.parameters(recurse=False)).device
    module.cpu()  # one stream of random numbers, whatever the device
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
    else:
        for parameter in module.parameters(recurse=False):
            spread = float(parameter.std(correction=0))
            parameter.copy_(float(parameter.mean()) + spread * torch.randn(parameter.shape))
    module.to(device)


def _own_tensors(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _cells(maps: Floats) -> Floats:
    cells: Floats = to_grid(maps).reshape(len(maps), -1).astype(np.float32)
    return cells
