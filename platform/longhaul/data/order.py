"""The order of samples: a pure function from a global position to a sample, the same for every world size.

Each epoch is a permutation of all samples, decided by (fingerprint of the data, seed, phase, epoch) alone; the epochs follow
one another without a gap, so position p is place `p % size` of epoch `p // size`. A global batch is the next
`global_batch` positions, wherever an epoch ends. Ranks take strides of it, micro-batches are cut from the strides; loader
workers only fetch. So world size, micro-batch and number of loader workers never change which samples a step sees, every
sample comes exactly once an epoch, and one integer, the cursor, says where a run stands.

Excluded samples (found poisonous in a run) are stepped over; positions and so every other sample's turn stay as they are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


class Slice(NamedTuple):
    """A stretch of the sequence: sample `indices`, their `positions`, and the `cursor` behind them."""

    indices: Indices
    positions: Indices
    cursor: int


@dataclass(frozen=True)
class SampleOrder:
    """The sequence of one phase of a run.

    Attributes:
        size: samples in the set.
        fingerprint: the set's fingerprint; other data are in another order.
        seed: the recipe's.
        phase: number of the run's phase.
        excluded: sample indices to step over.
    """

    size: int
    fingerprint: str
    seed: int
    phase: int = 0
    excluded: frozenset[int] = frozenset()
    _cache: dict[int, Indices] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.size <= len(self.excluded):
            raise ValueError(f"no sample is left: {self.size} samples, {len(self.excluded)} excluded")

    def epoch(self, number: int) -> Indices:
        """All sample indices in the order of epoch `number`, excluded ones too; (size,) int64."""
        if number not in self._cache:
            text = f"{self.fingerprint}|{self.seed}|{self.phase}|{number}"
            key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
            # Sorting raw Philox words instead of Generator.permutation: numpy promises the former's stream for good.
            words = np.random.Philox(key=key).random_raw(self.size)
            while len(self._cache) >= 2:
                self._cache.pop(next(iter(self._cache)))
            self._cache[number] = np.argsort(words, kind="stable").astype(np.int64)
        return self._cache[number]

    def take(self, cursor: int, count: int) -> Slice:
        """The next `count` samples from position `cursor` on, excluded ones stepped over."""
        indices: list[Indices] = []
        positions: list[Indices] = []
        missing = count
        skip = np.fromiter(self.excluded, np.int64, len(self.excluded))
        while missing:
            number, place = divmod(cursor, self.size)
            stretch = self.epoch(number)[place : place + missing]
            where = np.arange(cursor, cursor + len(stretch), dtype=np.int64)
            keep = ~np.isin(stretch, skip) if len(skip) else np.ones(len(stretch), dtype=bool)
            indices.append(stretch[keep])
            positions.append(where[keep])
            cursor += len(stretch)
            missing -= int(keep.sum())
        return Slice(np.concatenate(indices), np.concatenate(positions), cursor)

    def sample_seed(self, position: int) -> int:
        """The seed of whatever is random about the sample at `position` (augmentation), whoever reads it."""
        text = f"{self.seed}|{self.phase}|{position}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
