"""How many samples go through which batch size, where a model exists for a few sizes only."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """Some samples of a batch, for one call of the model.

    Attributes:
        start: the first sample's place in the batch.
        count: how many samples.
        size: the batch size of the model that takes them; what `count` does not fill is padding.
    """

    start: int
    count: int
    size: int


def least_padding(samples: int, sizes: Collection[int]) -> list[Piece]:
    """Split so that nothing is padded but what the smallest size cannot avoid: 6 samples by (1, 4, 8) are 4 + 1 + 1.

    For a processor on which a padded sample costs as much as a real one.
    """
    pieces: list[Piece] = []
    start = 0
    while start < samples:
        left = samples - start
        size = max((size for size in sizes if size <= left), default=min(sizes))
        pieces.append(Piece(start, min(size, left), size))
        start += size
    return pieces


def smallest_holding(samples: int, sizes: Collection[int]) -> int:
    """The smallest size that holds all samples, the rest of it padding: for 6 samples and (1, 4, 8) it is 8.

    For a processor on which a larger batch takes little longer than a small one, and a second call as long as the first.

    Raises:
        ValueError: none does.
    """
    return min(size for size in sizes if size >= samples)
