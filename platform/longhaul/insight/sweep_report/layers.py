"""A network layer by layer, as text: every layer's output shape and parameters, and what the whole costs.

Worked out on torch's meta device, where tensors have shapes and no data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longhaul.errors import UserError, first_line
from longhaul.models.counting import Count, count
from longhaul.models.zoo import build_image_model
from longhaul.recipe.networks import ModelSection

_NAME, _KIND, _SHAPE = 40, 22, 22  # widths of columns


@dataclass(frozen=True)
class Layer:
    """One layer: a module without modules in it, or with parameters of its own.

    Attributes:
        name, kind: as `named_modules` has it, and its class.
        shape: of its output for one sample, without the batch; of the last call, where there are several; None where it is
            not called as a module, or gives no tensor.
        parameters: of its own.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    parameters: int


@dataclass(frozen=True)
class Anatomy:
    """A network at one resolution, layer by layer, with what it costs."""

    model: str
    resolution: int
    layers: tuple[Layer, ...]
    count: Count

    def text(self) -> str:
        """The layers as a table, the totals below."""
        rule = "-" * (_NAME + _KIND + _SHAPE + 16)
        lines = [f"{self.model}, input 3 x {self.resolution} x {self.resolution}", rule]
        lines += [_line("layer", "kind", "output", "parameters"), rule]
        for layer in self.layers:
            shape = "-" if layer.shape is None else " x ".join(map(str, layer.shape))
            lines.append(_line(layer.name, layer.kind, shape, f"{layer.parameters:,}" if layer.parameters else ""))
        total = self.count
        lines += [rule, f"parameters            {total.parameters:,}", f"size in float32       {total.size_mb:,.2f} MiB"]
        lines.append(f"forward, one sample   {total.flops / 1e9:,.4f} GFLOPs (a multiplication and an addition are two)")
        lines.append(f"kept for backward     {total.activation_bytes / 2**20:,.2f} MiB a sample")
        return "\n".join(lines) + "\n"


def anatomy(section: ModelSection, classes: int, resolution: int, counted: Count | None = None) -> Anatomy:
    """Take a classifier apart; weights are neither downloaded nor read. `counted` saves the counting where it is done.

    Raises:
        UserError: an unknown name, or the network cannot work at this resolution.
    """
    bare = section.model_copy(update={"pretrained": False, "weights": None})
    with torch.device("meta"):
        model = build_image_model(bare, classes, resolution)
    shapes: dict[str, tuple[int, ...]] = {}
    handles = [module.register_forward_hook(_recorder(name, shapes)) for name, module in model.named_modules()]
    try:
        with torch.device("meta"), torch.no_grad():
            model.eval()(torch.empty(1, 3, resolution, resolution))
    except (AssertionError, RuntimeError, ValueError) as error:  # as `counting.count`
        raise UserError(f"model {section.name!r} cannot be taken apart at {resolution} px ({first_line(error)})") from None
    finally:
        for handle in handles:
            handle.remove()
    layers = [
        Layer(name, type(module).__name__, shapes.get(name), own)
        for name, module in model.named_modules()
        if (own := sum(parameter.numel() for parameter in module.parameters(recurse=False))) or _is_leaf(module)
    ]
    return Anatomy(section.name, resolution, tuple(layers), counted or count(model, (3, resolution, resolution)))


def _recorder(name: str, shapes: dict[str, tuple[int, ...]]) -> Callable[[nn.Module, object, object], None]:
    def record(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            shapes[name] = tuple(output.shape[1:])

    return record


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None and not isinstance(module, nn.Identity)


def _line(name: str, kind: str, shape: str, parameters: str) -> str:
    return f"{name:{_NAME}.{_NAME}}  {kind:{_KIND}.{_KIND}}  {shape:{_SHAPE}.{_SHAPE}}{parameters:>12}".rstrip()
