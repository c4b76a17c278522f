"""Parts of a sample set."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from longhaul.data.samples import SampleSet
from longhaul.errors import UserError


def excluded_indices(samples: SampleSet, ids: Sequence[str]) -> list[int]:
    """The indices of the samples `ids`, ascending.

    They stay in the set and in its order, which steps over them: so every other sample keeps its turn.

    Raises:
        UserError: one is not in the set; the message names the nearest.
    """
    places = {name: index for index, name in enumerate(samples.ids)} if ids else {}
    for name in ids:
        if name not in places:
            near = difflib.get_close_matches(name, places, n=1, cutoff=0.0)
            raise UserError(f"data.excluded {name!r}: no training sample has this id", f"Did you mean {near[0]!r}?")
    return sorted(places[name] for name in ids)
