"""How much of a GPU's memory training takes, estimated from shapes."""

from __future__ import annotations

from typing import Literal

from longhaul.models.counting import Count
from longhaul.recipe.schema import OptimizerSection

GB = 10**9
_FLOAT_BYTES = 4
_RESERVED_GB = 0.8  # CUDA's context and its libraries' handles
_WORKSPACE = 0.25  # of the activations: gradients on their way, layers' scratch, fragmentation


def memory_gb(
    counted: Count,
    micro_batch: int,
    optimizer: OptimizerSection,
    precision: Literal["fp32", "bf16", "fp16"],
    *,
    average: bool = False,
) -> float:
    """An estimate of what training takes of a GPU, in 10^9 bytes: to plan by, not to rely on.

        fixed = 0.8 GB + 4 B x buffers + parameters x (4 B weights + 4 B gradients + optimizer (8 B Adam, AdamW; 4 B SGD with
                momentum) + 4 B for a moving average + 2 B for autocast's copy under bf16 and fp16)
        each sample of the micro-batch = 1.25 x activations (half of them under bf16 and fp16) + the image

    DeepSpeed's stages take less; what they shard or offload is not reckoned.

    Args:
        counted: the network.
        micro_batch: samples at once.
        optimizer: decides what it keeps a parameter.
        precision: of forward and backward.
        average: a moving average of the weights is kept.
    """
    fixed = fixed_bytes(counted, optimizer, precision, average=average)
    return (fixed + micro_batch * sample_bytes(counted, precision)) / GB


def fixed_bytes(counted: Count, optimizer: OptimizerSection, precision: str, *, average: bool = False) -> float:
    """What `memory_gb` reckons whatever the batch."""
    state = 2 if optimizer.name != "sgd" else (1 if optimizer.momentum else 0)
    a_parameter = _FLOAT_BYTES * (2 + state + average) + (2 if precision != "fp32" else 0)
    return _RESERVED_GB * GB + a_parameter * counted.parameters + _FLOAT_BYTES * counted.buffers


def sample_bytes(counted: Count, precision: str) -> float:
    """What `memory_gb` reckons for each sample of the micro-batch."""
    return (1 + _WORKSPACE) * counted.activation_bytes * (1.0 if precision == "fp32" else 0.5)
