"""Heat maps of a classifier by captum: Grad-CAM, integrated gradients, saliency.

| method | source | map | values |
|---|---|---|---|
| `gradcam` | Selvaraju et al., 2017; captum `LayerGradCam` | the layer's channels weighted, bilinear to R x R | >= 0, by ReLU |
| `integrated_gradients` | Sundararajan et al., 2017; captum `IntegratedGradients` | sum over the channels | signed, in logits |
| `saliency` | Simonyan et al., 2013; captum `Saliency` | largest absolute gradient of the channels | >= 0 |

All explain one logit an image, before softmax, in evaluation mode. No map is scaled: two images' maps have their own units.
A map of integrated gradients sums up to the logit's rise over its baseline (completeness).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from captum.attr import IntegratedGradients, LayerGradCam, Saliency
from torch import Tensor, nn
from torch.nn import functional

from longhaul.insight.explain.layers import evaluating, grad_cam_layer, tapped

Method = Literal["gradcam", "integrated_gradients", "saliency"]
METHODS: tuple[Method, ...] = ("gradcam", "integrated_gradients", "saliency")
SIGNED: frozenset[Method] = frozenset({"integrated_gradients"})
PIXELS_AT_ONCE = 2**21
"""Pixels of the images in one pass: 8 images of 512 px, 41 of 224 px; bounds the memory whatever the number of images."""
_IMAGES_AT_ONCE = 256

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Integration:
    """How the path integral of integrated gradients is taken (Gauss-Legendre).

    Attributes:
        first_steps: points on the path at first; doubled for the images that miss `tolerance`.
        most_steps: the doubling's bound.
        tolerance: largest error of completeness, |sum of the map - rise| over |rise| of the logit from baseline to image.
        baseline: of the normalised image, the same in every pixel. 0 is the mean colour that preprocessing subtracts: what a
            network sees where there is nothing particular. A black baseline would give dark objects no attribution at all,
            since each pixel's is multiplied by its distance from the baseline (Sturmfels et al., Distill, 2020).
    """

    first_steps: int = 32
    most_steps: int = 1024
    tolerance: float = 0.01
    baseline: float = 0.0


@dataclass(frozen=True)
class Maps:
    """What a method says of N images.

    Attributes:
        method: its name.
        values: (N, R, R); see the module for units and signs.
        targets: (N,) the class that each map explains.
        layer, side: of Grad-CAM: the layer looked at and its cells along a side.
        error: of integrated gradients, (N,): what completeness misses by, relative to the logit's rise.
        steps: of integrated gradients, (N,): points on the path.
        complete: of integrated gradients, (N,): whether the error is within the tolerance.
    """

    method: Method
    values: Floats
    targets: npt.NDArray[np.int64]
    layer: str | None = None
    side: int | None = None
    error: npt.NDArray[np.float64] | None = None
    steps: npt.NDArray[np.int64] | None = None
    complete: npt.NDArray[np.bool_] | None = None

    @property
    def strength(self) -> Floats:
        """(N, R, R) >= 0: how much each pixel matters, for or against."""
        return np.abs(self.values)


def explain(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    method: Method,
    integration: Integration | None = None,
    layer: str | None = None,
) -> Maps:
    """The maps of one method.

    Args:
        model: from (N, 3, R, R) to logits (N, C), on the device of `images`; given back in the mode it was in.
        images: (N, 3, R, R) float32, normalised.
        targets: (N,) int64, the class of each to explain.
        method: which.
        integration: of integrated gradients.
        layer: that Grad-CAM looks at; None: the deepest that suits the images' resolution (`grad_cam_layer`).

    Raises:
        UserError: the network has no layer for Grad-CAM, or not this one.
    """
    if method == "gradcam":
        return _grad_cam(model, images, targets, layer)
    if method == "saliency":
        return _saliency(model, images, targets)
    return _integrated_gradients(model, images, targets, integration or Integration())


@torch.no_grad()
def probabilities(model: nn.Module, images: Tensor) -> Floats:
    """(N, C): what the model answers, by softmax."""
    with evaluating(model):
        answers = [model(images[part]).float().softmax(dim=1) for part in _parts(images)]
    return torch.cat(answers).cpu().numpy()


def _grad_cam(model: nn.Module, images: Tensor, targets: Tensor, named: str | None) -> Maps:
    layer = grad_cam_layer(model, images.shape[-1], named=named)
    found = []
    with evaluating(model), tapped(layer) as tap:
        method = LayerGradCam(model, tap)
        for part in _parts(images):
            coarse = method.attribute(images[part], target=targets[part], relu_attributions=True)
            fine = functional.interpolate(coarse.detach(), images.shape[-2:], mode="bilinear", align_corners=False)
            found.append(fine[:, 0])
    return Maps("gradcam", _numpy(found), _classes(targets), layer=layer.name, side=layer.side)


def _saliency(model: nn.Module, images: Tensor, targets: Tensor) -> Maps:
    method, found = Saliency(model), []
    with evaluating(model):
        for part in _parts(images):
            gradient = method.attribute(images[part].clone().requires_grad_(), target=targets[part], abs=True)
            found.append(gradient.detach().amax(dim=1))
    return Maps("saliency", _numpy(found), _classes(targets))


def _integrated_gradients(model: nn.Module, images: Tensor, targets: Tensor, how: Integration) -> Maps:
    values = torch.zeros(len(images), *images.shape[-2:])
    error, steps = np.full(len(images), np.inf), np.zeros(len(images), dtype=np.int64)
    with evaluating(model):
        for part in _parts(images):
            pending, count = np.arange(len(images))[part], how.first_steps
            while len(pending):
                chosen = torch.from_numpy(pending)
                found, missed = _path_integral(model, images[chosen], targets[chosen], how.baseline, count)
                values[chosen], error[pending], steps[pending] = found, missed, count
                pending = pending[missed > how.tolerance] if 2 * count <= how.most_steps else pending[:0]
                count *= 2
    maps = values.numpy().astype(np.float32, copy=False)
    return Maps("integrated_gradients", maps, _classes(targets), error=error, steps=steps, complete=error <= how.tolerance)


def _path_integral(
    model: nn.Module, images: Tensor, targets: Tensor, baseline: float, steps: int
) -> tuple[Tensor, npt.NDArray[np.float64]]:
    """Maps (N, R, R) on the CPU, and how far (N,) each misses completeness."""
    found: Any = IntegratedGradients(model).attribute(
        images,
        baselines=baseline,
        target=targets,
        n_steps=steps,
        internal_batch_size=max(_at_once(images), len(images)),
        return_convergence_delta=True,
    )
    attribution, delta = found
    with torch.no_grad():
        logits = model(images) - model(torch.full_like(images, baseline))
    rise = logits.gather(1, targets[:, None])[:, 0].double()
    missed = delta.detach().double().abs() / rise.abs().clamp_min(torch.finfo(torch.float64).tiny)
    return attribution.detach().sum(dim=1).float().cpu(), missed.cpu().numpy()


def _at_once(images: Tensor) -> int:
    return min(max(PIXELS_AT_ONCE // (images.shape[-1] * images.shape[-2]), 1), _IMAGES_AT_ONCE)


def _parts(images: Tensor) -> Iterator[slice]:
    count = _at_once(images)
    return (slice(start, start + count) for start in range(0, len(images), count))


def _numpy(parts: list[Tensor]) -> Floats:
    return torch.cat(parts).float().cpu().numpy()


def _classes(targets: Tensor) -> npt.NDArray[np.int64]:
    return targets.cpu().numpy().astype(np.int64)
