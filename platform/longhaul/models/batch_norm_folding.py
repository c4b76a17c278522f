"""Batch norm folded into the convolution before it, which in evaluation computes the same with half the layers."""

from __future__ import annotations

import copy
import itertools

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d


@torch.no_grad()
def folded(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode in which each convolution that a batch norm follows has taken it in.

    Follows means: registered next in the same parent, with as many channels. That is so in torchvision's networks; the
    caller compares outputs where the module comes from elsewhere.
    """
    copied = copy.deepcopy(module).eval()
    for parent in list(copied.modules()):
        children = list(parent.named_children())
        for (name, layer), (norm_name, norm) in itertools.pairwise(children):
            if isinstance(layer, nn.Conv2d) and _fits(layer, norm):
                setattr(parent, name, _fused(layer, norm))
                setattr(parent, norm_name, nn.Identity())
    return copied


def _fits(layer: nn.Conv2d, norm: nn.Module) -> bool:
    if not isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
        return False
    return norm.running_var is not None and norm.running_var.shape == (layer.out_channels,)


def _fused(layer: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    assert isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    fused = copy.deepcopy(layer)
    fused.weight, fused.bias = weight, bias
    return fused
