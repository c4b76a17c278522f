"""What a network costs on paper: parameters, operations, and the memory that training keeps; nothing is computed or stored.

Everything is counted on torch's meta device, where tensors have shapes and no data: ViT-Large takes no memory and under a second.
A multiplication and an addition count as two operations (FLOPs); papers and torchvision's pages mostly give their pairs (MACs).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from longhaul.errors import UserError, first_line
from longhaul.models.zoo import build_image_model
from longhaul.recipe.networks import ModelSection

MIB = 2**20
_FLOAT_BYTES = 4
_FEW, _MORE = 2, 4  # samples; batch norm refuses to train on one


class Count(BaseModel):
    """A network at one input shape.

    Attributes:
        parameters: numbers that are learnt; those shared by layers once.
        buffers: numbers that are saved beside them, such as batch norm's running means.
        size_mb: parameters and buffers as a file holds them, in float32, in MiB (2**20 bytes).
        flops: operations of one sample's forward pass, a multiplication and an addition as two. Convolutions, matrix products
            and attention are counted; what works element by element (norms, activations, additions), pooling and
            resampling are left out, as papers do.
        activation_bytes: what one more sample in the batch makes a training step keep for its backward pass, in float32; each
            storage once, without parameters. Attention without a mask or dropout keeps no (T, T) matrix, as the fused kernels
            do not. A step's peak is higher: weights, gradients, the optimizer and each layer's own workspace come on top.
        feature_width: channels that the network's body gives to its head (timm's `num_features`), where it can be told.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: int
    buffers: int
    size_mb: float
    flops: float
    activation_bytes: int
    feature_width: int | None

    @property
    def macs(self) -> float:
        """Multiply-adds of one sample's forward pass: half the operations."""
        return self.flops / 2


def count(network: nn.Module | Callable[[], nn.Module], shape: Sequence[int]) -> Count:
    """Count a network on the meta device.

    Args:
        network: one that takes a batch of images alone, which stays as it is; or what builds it, which is called where
            new tensors have no data.
        shape: of one sample, such as (3, 224, 224).

    Raises:
        UserError: the network cannot work at this shape, or needs data to find its way through.
    """
    if isinstance(network, nn.Module):
        model = _without_data(network)
    else:
        with torch.device("meta"):
            model = network()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    buffers = _saved_buffers(model)
    size = parameters * _FLOAT_BYTES + sum(buffer.numel() * buffer.element_size() for buffer in buffers)
    try:
        flops = float(_forward_flops(model, shape))
        activations = _kept_for_backward(model, shape)
    except (AssertionError, RuntimeError, ValueError) as error:  # RuntimeError: NotImplementedError and torch's own too
        problem = f"a network cannot be counted at {' x '.join(map(str, shape))} ({first_line(error)})"
        raise UserError(problem, "Give a shape that fits it") from None
    return Count(
        parameters=parameters,
        buffers=sum(buffer.numel() for buffer in buffers),
        size_mb=size / MIB,
        flops=flops,
        activation_bytes=activations,
        feature_width=feature_width(model),
    )


def count_image_model(section: ModelSection, classes: int, resolution: int) -> Count:
    """Count a classifier of a recipe at (3, R, R); weights are neither downloaded nor read.

    Raises:
        UserError: an unknown name, or the network cannot work at this resolution.
    """
    bare = section.model_copy(update={"pretrained": False, "weights": None})
    return count(lambda: build_image_model(bare, classes, resolution), (3, resolution, resolution))


def feature_width(model: nn.Module) -> int | None:
    """`num_features`, which timm's networks have; else what the last linear layer takes; None without one."""
    own = getattr(model, "num_features", None)
    if isinstance(own, int):
        return own
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    return linear[-1].in_features if linear else None


def _without_data(model: nn.Module) -> nn.Module:
    """A copy on the meta device; the copy's tensors are put in while copying, so that the data are never there twice."""
    empty: dict[int, Any] = {}
    for parameter in model.parameters():
        empty[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        empty[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, empty)


def _saved_buffers(model: nn.Module) -> list[Tensor]:
    """The buffers that a state dict holds."""
    saved = model.state_dict().keys()
    return [buffer for name, buffer in model.named_buffers() if name in saved]


def _forward_flops(model: nn.Module, shape: Sequence[int]) -> int:
    image = torch.empty(1, *shape, device="meta")
    with _frozen(model), torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    return int(counter.get_total_flops())


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Parameters without gradient, put back at the end.

    The counter hooks every module's inputs into autograd as soon as one wants a gradient, which fails under `no_grad` where a
    block is given a parameter, such as the class token of CaiT and PiT.
    """
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_()


def _kept_for_backward(model: nn.Module, shape: Sequence[int]) -> int:
    """By how much one more sample makes the saved tensors grow; what does not grow (parameters, a norm's means) falls out."""
    model.train()
    few, more = (_saved_bytes(model, torch.empty(samples, *shape, device="meta")) for samples in (_FEW, _MORE))
    return (more - few) // (_MORE - _FEW)


def _saved_bytes(model: nn.Module, batch: Tensor) -> int:
    """Bytes of the distinct storages that autograd keeps after one forward pass, with the parameters among them."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # held, so that no later one takes its place in memory
        return tensor

    with torch.device("meta"), saved_tensors_hooks(keep, lambda tensor: tensor), _FusedAttention():
        answer = model(batch)
    del answer
    return sum(storage.nbytes() for storage in kept.values())


class _FusedAttention(TorchFunctionMode):
    """Sends attention to a fused kernel's operator: the meta device has no reason to choose one, and keeps (T, T) matrices."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        plain = not named.get("dropout_p") and not named.get("enable_gqa") and named.get("attn_mask") is None
        if function is functional.scaled_dot_product_attention and plain and len(args) == 3:
            fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return fused(*args, 0.0, bool(named.get("is_causal")), scale=named.get("scale"))[0]
        return function(*args, **named)
