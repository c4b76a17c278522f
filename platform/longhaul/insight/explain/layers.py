"""Which layer Grad-CAM looks at: the last map of features that the whole answer passes through.

The rule needs no table of networks. A forward pass lists every module that gives a map (N, C, H, W) inside the feature
extractor (timm's `forward_features`, else the whole network), in the order in which they end. From the last one backwards the
first is taken that

- has a side of at least `LEAST_SIDE`: a map of 1 x 1, which VGG or ResNet end with at 32 px, says nothing about where; and
- is passed by everything: with its output cut off from the gradient, no gradient reaches the input. A branch inside a residual
  block fails that, since the skip connection goes around it.

At their usual resolutions this gives the layers that people name by hand: VGG `features`, ResNet `layer4`, MobileNet and
EfficientNet the end of `blocks` or of the last convolution, ConvNeXt `stages`.

The rule moves with the resolution (ResNet-18: `layer2` at 32 px, `layer4` at 128 px), and maps of two layers are two questions.
Where several resolutions of one network are compared, `cell.common_layer` therefore takes the one of the lowest for all.

Transformers on tokens (ViT) are the exception, told by what `forward_features` gives: (N, tokens, width). For them it is
`norm1` of the last block, its patch tokens laid out as a grid without the class token; after that block's attention patch
tokens no longer influence a class token. How many tokens there are in front is told by what `norm1` gives: XCiT and CaiT put
the class token in after the blocks. So do J. Gildenblat and others' grad-cam package and its `reshape_transform`. The
grid is that of the patches, whatever its side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from longhaul.errors import UserError

Layout = Literal["channels first", "channels last", "tokens"]
LEAST_SIDE = 4
"""Cells along a side of the smallest map that says where."""
_LEAST_PATCHES = 2


@dataclass(frozen=True)
class GradCamLayer:
    """A layer and how its output becomes a map (N, C, side, side).

    Attributes:
        name: as `named_modules` has it.
        module: itself.
        layout: (N, C, H, W), (N, H, W, C) or (N, prefix + H * W, C).
        side: cells along a side.
        prefix: tokens before those of the patches, such as the class token.
    """

    name: str
    module: nn.Module
    layout: Layout
    side: int
    prefix: int = 0


def grad_cam_layer(model: nn.Module, resolution: int, least_side: int = LEAST_SIDE, named: str | None = None) -> GradCamLayer:
    """The layer of `model`, from (N, 3, resolution, resolution) to logits, that Grad-CAM looks at.

    Args:
        model: the network.
        resolution: in pixels.
        least_side: cells along a side that the layer must have.
        named: look at this one and no other, as where maps of several resolutions are compared.

    Raises:
        UserError: it has none, or the one that is named does not suit.
    """
    reference = next(model.parameters(), torch.empty(0))
    image = torch.zeros(1, 3, resolution, resolution, device=reference.device, dtype=reference.dtype)
    with evaluating(model):
        outputs, features = _trace(model, image)
        if features.dim() == 3:
            layer = _token_layer(model, outputs, features)
            if named in (None, layer.name):
                return layer
        else:
            for name, shape, layout in reversed(outputs):
                side = 0 if layout == "tokens" else shape[2]  # square in both layouts
                asked = named in (None, name) and side >= least_side
                if asked and _everything_passes(model, model.get_submodule(name), image):
                    return GradCamLayer(name, model.get_submodule(name), layout, side)
    wanted = f"map of {least_side} x {least_side} cells or more" + ("" if named is None else f" in {named}")
    raise UserError(
        f"Grad-CAM: {type(model).__name__} at {resolution} px has no {wanted} that its whole answer passes through",
        "Take a higher resolution, or another method: integrated_gradients, saliency",
    )


@contextmanager
def tapped(layer: GradCamLayer) -> Iterator[nn.Identity]:
    """A module that the layer's output runs through as (N, C, side, side) while the context lasts, for captum to watch."""
    tap = nn.Identity()

    def through(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        watched: Tensor
        if layer.layout == "channels first":
            watched = tap(output)
        elif layer.layout == "channels last":
            watched = tap(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        else:
            patches = output[:, layer.prefix :].transpose(1, 2).unflatten(2, (layer.side, layer.side))
            watched = torch.cat([output[:, : layer.prefix], tap(patches).flatten(2).transpose(1, 2)], dim=1)
        return watched

    handle = layer.module.register_forward_hook(through)
    try:
        yield tap
    finally:
        handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and parameters without gradient, both put back at the end."""
    training = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.eval().requires_grad_(requires_grad=False)
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was
        for parameter, was in wanted.items():
            parameter.requires_grad_(was)


_Output = tuple[str, tuple[int, ...], Layout]


def _trace(model: nn.Module, image: Tensor) -> tuple[list[_Output], Tensor]:
    """Names, shapes and layouts of square maps and of tokens in the feature extractor, as they end; and what it gives."""
    outputs: list[_Output] = []
    handles = [module.register_forward_hook(_recorder(name, outputs)) for name, module in model.named_modules() if name]
    extractor = getattr(model, "forward_features", model)
    try:
        with torch.no_grad():
            features: Tensor = extractor(image)
    finally:
        for handle in handles:
            handle.remove()
    return outputs, features


def _recorder(name: str, outputs: list[_Output]) -> Callable[[nn.Module, object, object], None]:
    def record(module: nn.Module, _inputs: object, output: object) -> None:
        # An identity repeats the map before it; adaptive pooling may blow a map of 1 x 1 up to one that is the same everywhere.
        if not isinstance(output, Tensor) or isinstance(module, nn.Identity | nn.AdaptiveAvgPool2d):
            return
        if output.dim() == 3:
            outputs.append((name, tuple(output.shape), "tokens"))
        if output.dim() != 4:
            return
        _, first, height, last = output.shape
        if height == last:
            outputs.append((name, tuple(output.shape), "channels first"))
        elif first == height:
            outputs.append((name, tuple(output.shape), "channels last"))

    return record


def _everything_passes(model: nn.Module, module: nn.Module, image: Tensor) -> bool:
    """Whether no gradient reaches the input once the module's output is cut off; parameters take none in this context."""
    handle = module.register_forward_hook(lambda _module, _inputs, output: output.detach())
    try:
        with torch.enable_grad():
            logits: Tensor = model(image.clone().requires_grad_())
    finally:
        handle.remove()
    return not logits.requires_grad


def _token_layer(model: nn.Module, outputs: list[_Output], features: Tensor) -> GradCamLayer:
    blocks = getattr(model, "blocks", None)
    last = len(blocks) - 1 if isinstance(blocks, nn.Sequential | nn.ModuleList) else -1
    name = f"blocks.{last}.norm1"
    counts = [shape[1] for found, shape, layout in outputs if found == name and layout == "tokens"]
    if counts:
        # XCiT and CaiT put the class token in after the blocks, so that not all of the answer's tokens pass the layer.
        prefix = max(int(getattr(model, "num_prefix_tokens", 0)) - (features.shape[1] - counts[-1]), 0)
        patches = counts[-1] - prefix
        side = math.isqrt(max(patches, 0))
        if side * side == patches and side >= _LEAST_PATCHES:
            return GradCamLayer(name, model.get_submodule(name), "tokens", side, prefix)
    told = f"{counts[-1]} tokens in {name}, which make no square grid" if counts else "tokens, and no norm1 in a last block"
    raise UserError(f"Grad-CAM: {type(model).__name__} has {told}", "Take another method: integrated_gradients, saliency")
