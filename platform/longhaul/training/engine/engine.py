"""The engine: what turns micro-batches into an optimizer step. Two stand behind this interface.

`torch_engine`: DistributedDataParallel, autocast, GradScaler. `deepspeed_engine`: ZeRO 1, 2, 3 and offload. The loop knows
only `Engine`; given the same recipe both compute the same losses in float32 up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from longhaul.data.loader import BatchPlan
from longhaul.data.samples import Batch
from longhaul.recipe import Recipe
from longhaul.training.ranks import Ranks

LossFunction = Callable[[nn.Module, Batch], Tensor]
Writer = Callable[[Path], None]


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, as seen by this rank; tensors stay on the device, so that looking is what waits.

    Attributes:
        loss: mean over this rank's samples, () float32.
        grad_norm: L2 norm of the whole gradient before clipping, () float32; None where it was not computed.
    """

    loss: Tensor
    grad_norm: Tensor | None


class Engine(Protocol):
    """Owns the model, its optimizer and the arithmetic's precision, on this rank."""

    @property
    def module(self) -> nn.Module:
        """The model itself, to be called in evaluation."""
        ...

    def step(self, micro_batches: Sequence[Batch], loss: LossFunction, rate: float) -> StepResult:
        """Forward and backward over the micro-batches, then one optimizer step at learning rate `rate`."""
        ...

    def autocast(self) -> AbstractContextManager[object]:
        """The recipe's precision, for evaluation."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Whole weights and buffers on the CPU, on rank 0; empty elsewhere. All ranks must call it."""
        ...

    def snapshot(self) -> Writer:
        """Copy this rank's state, but for the weights that `weights` gives, to the host's memory. All ranks must call it.

        Returns:
            What writes the copy into a local folder, later and in another thread, while training goes on.
        """
        ...

    def load(self, folder: Path) -> None:
        """Read back what all ranks saved, from one local folder that holds the files of all ranks and `model.safetensors`."""
        ...

    def set_clip_norm(self, norm: float) -> None:
        """From now on clip the gradient's global L2 norm to `norm`."""
        ...


def build_engine(recipe: Recipe, model: nn.Module, plan: BatchPlan, ranks: Ranks) -> Engine:
    """The recipe's engine around a freshly built model."""
    if recipe.training.engine == "torch":
        from longhaul.training.engine.torch_engine import TorchEngine

        return TorchEngine(recipe.training, model, ranks)
    from longhaul.training.engine.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(recipe.training, model, plan, ranks)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`, copied without waiting where its memory is pinned."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """`torch.autocast` for a recipe's precision; switched off for fp32."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")
