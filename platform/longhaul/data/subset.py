"""Parts of a sample set: a share of every class, and samples that are left out."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

from longhaul.data.samples import SampleSet
from longhaul.errors import UserError


class Labelled(Protocol):
    """A sample set whose samples have classes."""

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def labels(self) -> Sequence[int]: ...

    def at(self: S, indices: Sequence[int]) -> S:
        """A set of the samples at `indices` alone, in that order, with a fingerprint of its own."""
        ...


S = TypeVar("S", bound=Labelled)


def share_of(samples: S, share: float, seed: int) -> S:
    """The same share of every class, rounded up, in the order of `samples`; all of them for 1.

    Which ones is decided by their names and `seed` alone, so that a smaller share lies within a larger one: a phase on more
    data has seen what the phase before it saw.

    Raises:
        ValueError: the share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share {share} is not above 0 and at most 1")
    if share == 1:
        return samples
    classes: dict[int, list[int]] = {}
    for index, label in enumerate(samples.labels):
        classes.setdefault(label, []).append(index)
    chosen: list[int] = []
    for indices in classes.values():
        drawn = sorted(indices, key=lambda index: hashlib.sha256(f"{seed}|share|{samples.ids[index]}".encode()).digest())
        # Rounding first: 0.07 of 100 is 7.000000000000001, and 8 would be one too many.
        chosen += drawn[: math.ceil(round(share * len(drawn), 9))]
    return samples.at(sorted(chosen))


def excluded_indices(samples: SampleSet, ids: Sequence[str], *, part: bool = False) -> list[int]:
    """The indices of the samples `ids`, ascending.

    Where the set is `part` of a larger one, ids may be of the rest. They stay in the set and in its order, which steps over
    them: so every other sample keeps its turn.

    Raises:
        UserError: one is not in the set; the message names the nearest.
    """
    places = {name: index for index, name in enumerate(samples.ids)} if ids else {}
    for name in ids:
        if name not in places and not part:
            near = difflib.get_close_matches(name, places, n=1, cutoff=0.0)
            raise UserError(f"data.excluded {name!r}: no training sample has this id", f"Did you mean {near[0]!r}?")
    return sorted(places[name] for name in ids if name in places)
