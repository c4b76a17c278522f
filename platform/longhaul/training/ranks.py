"""What ranks say to each other: a thin layer over `torch.distributed` that also works for a single process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among the training workers.

    Attributes:
        rank, world_size: of this process.
        device: where it computes.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes what is written once."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a floating-point tensor over all ranks."""
        if self.world_size > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
            value /= self.world_size
        return value

    def gather(self, value: T) -> list[T]:
        """The (small, picklable) values of all ranks, by rank, on all ranks."""
        if self.world_size == 1:
            return [value]
        values: list[T] = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: T) -> T:
        """Rank 0's value, on all ranks."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def mean_buffers(self, module: nn.Module) -> dict[str, Tensor]:
        """The mean over ranks of each floating-point buffer, by name (batch norm's running statistics differ by rank).

        One collective for all of them; the module's own buffers stay as they are.
        """
        buffers = {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point() and buffer.numel()}
        if not buffers:
            return {}
        flat = self.mean(torch.cat([buffer.detach().float().flatten() for buffer in buffers.values()]))
        parts = flat.split([buffer.numel() for buffer in buffers.values()])
        return {name: part.view_as(buffer) for (name, buffer), part in zip(buffers.items(), parts, strict=True)}

    def average_buffers(self, module: nn.Module) -> None:
        """Give all ranks the mean of each floating-point buffer."""
        if self.world_size > 1:
            means = self.mean_buffers(module)
            with torch.no_grad():
                for name, buffer in module.named_buffers():
                    if name in means:
                        buffer.copy_(means[name])
