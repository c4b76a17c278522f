"""What training reads: an indexed set of samples, and a batch of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

Batch = dict[str, Tensor]
"""Named tensors whose first dimension is the sample, such as `image` (N, 3, H, W) float32 and `label` (N,) int64."""


class SampleSet(Protocol):
    """Samples by index.

    Attributes:
        ids: a stable name for each sample, such as a path relative to the data set's folder.
        fingerprint: SHA-256 over ids and contents' sizes; another fingerprint is another data set.
    """

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def read(self, index: int, seed: int | None) -> dict[str, Tensor]:
        """Sample `index`, without a batch dimension; augmented as a function of `seed` alone, not at all for None.

        Raises:
            UserError: the sample's file is missing or broken.
        """
        ...


class Splits(Protocol):
    """The three parts of a data set, disjoint by sample."""

    @property
    def train(self) -> SampleSet: ...

    @property
    def validation(self) -> SampleSet: ...

    @property
    def test(self) -> SampleSet: ...
