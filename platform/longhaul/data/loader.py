"""From the order of samples to batches on a rank: torch's DataLoader, running on over the ends of epochs."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from longhaul.data.order import SampleOrder
from longhaul.data.samples import Batch, SampleSet
from longhaul.errors import LonghaulError

_Address = tuple[int, int | None]  # (sample index, seed of its augmentation)


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is cut: `micro_batch * accumulation * world_size == global_batch`."""

    global_batch: int
    micro_batch: int
    accumulation: int
    rank: int = 0
    world_size: int = 1

    @classmethod
    def derive(cls, global_batch: int, largest_micro_batch: int, rank: int = 0, world_size: int = 1) -> BatchPlan:
        """Cut a global batch for `world_size` ranks into the largest equal micro-batches not over `largest_micro_batch`.

        Raises:
            ValueError: `world_size` does not divide `global_batch`; names the world sizes that do.
        """
        if global_batch % world_size:
            sizes = ", ".join(str(n) for n in range(1, min(global_batch, 64) + 1) if global_batch % n == 0)
            raise ValueError(f"a global batch of {global_batch} cannot be shared by {world_size} workers; {sizes} can share it")
        share = global_batch // world_size
        micro = max(size for size in range(1, min(share, largest_micro_batch) + 1) if share % size == 0)
        return cls(global_batch, micro, share // micro, rank, world_size)


@dataclass(frozen=True)
class StepBatch:
    """What one rank reads for one optimizer step.

    Attributes:
        micro_batches: `accumulation` batches of `micro_batch` samples; each has `index` (N,) int64 besides its tensors.
        cursor: the global position behind this step.
    """

    micro_batches: list[Batch]
    cursor: int


class _Reader(Dataset[Batch | LonghaulError]):
    """Reads by (index, seed); adds the sample's index, so that a step knows exactly what it saw.

    An error raised on purpose is handed over as a value: torch would turn one that leaves a loader process into its traceback.
    """

    def __init__(self, samples: SampleSet) -> None:
        self._samples = samples

    def __getitem__(self, address: _Address) -> dict[str, Tensor] | LonghaulError:
        index, seed = address
        try:
            return {**self._samples.read(index, seed), "index": torch.tensor(index)}
        except LonghaulError as error:
            return error


def training_steps(
    samples: SampleSet, order: SampleOrder, plan: BatchPlan, cursor: int, *, workers: int
) -> Generator[StepBatch, None, None]:
    """An endless stream of steps from `cursor` on, for the rank of `plan`.

    Args:
        samples: what to read.
        order: which sample stands where.
        plan: global batch, micro-batch, rank.
        cursor: the global position to start from.
        workers: loader processes; 0 reads in this one. The stream is the same for every number.

    Raises:
        UserError: a sample's file is missing or broken, also where a loader process was the one to read it.
    """

    def addresses() -> Iterator[list[_Address]]:
        at = cursor
        while True:
            stretch = order.take(at, plan.global_batch)
            at = stretch.cursor
            mine = range(plan.rank, plan.global_batch, plan.world_size)
            share: list[_Address] = [(int(stretch.indices[i]), order.sample_seed(int(stretch.positions[i]))) for i in mine]
            for start in range(0, len(share), plan.micro_batch):
                yield share[start : start + plan.micro_batch]

    read = _read(samples, addresses(), workers)
    while True:
        micro_batches = [next(read) for _ in range(plan.accumulation)]
        cursor = order.take(cursor, plan.global_batch).cursor
        yield StepBatch(micro_batches, cursor)


def batches(samples: SampleSet, batch_size: int, *, rank: int = 0, world_size: int = 1, workers: int = 0) -> Iterator[Batch]:
    """The set once, in order, without augmentation, for measuring; the last batch is smaller. Ranks take strides.

    Raises:
        UserError: as `training_steps`.
    """
    mine: Sequence[int] = range(rank, len(samples), world_size)
    addresses: Iterator[list[_Address]] = (
        [(i, None) for i in mine[at : at + batch_size]] for at in range(0, len(mine), batch_size)
    )
    return _read(samples, addresses, workers)


def _read(samples: SampleSet, addresses: Iterator[list[_Address]], workers: int) -> Generator[Batch, None, None]:
    loader: DataLoader[Batch | LonghaulError] = DataLoader(
        _Reader(samples),
        batch_sampler=addresses,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        # Of its own: each start of a loader draws a number, which from the global state would change dropout after a resume.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, LonghaulError):
            raise batch
        yield batch


def _collate(samples: list[dict[str, Tensor] | LonghaulError]) -> Batch | LonghaulError:
    for sample in samples:
        if isinstance(sample, LonghaulError):
            return sample
    batch: Batch = default_collate(samples)
    return batch
