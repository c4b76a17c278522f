"""How well tracks keep emitters apart and together, where it is known who sent what.

Switches and fragmentations are those of the CLEAR MOT metrics (Bernardin and Stiefelhagen 2008, doi:10.1155/2008/246309) as
py-motmetrics counts them (`num_switches`, `num_fragmentations`); IDF1 is that of Ristani et al. 2016 (arXiv:1609.01775). An event
here is a sighting, a burst within a chunk, where theirs is an object in a video's frame.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.optimize import linear_sum_assignment


@dataclass(frozen=True)
class Sighting:
    """One event.

    Attributes:
        emitter: who sent it; None for a false alarm.
        track: the track that took it; None where nothing was detected, or no track took it.
    """

    emitter: str | None
    track: int | None


@dataclass(frozen=True)
class IdentityMetrics:
    """What a sequence of sightings says about its tracks.

    Attributes:
        sightings: of emitters, detected or not.
        emitters: that were sighted.
        tracks: that took something.
        tracked: emitters that a track took at least once.
        kept: those of them that a single track took, which took no other emitter.
        switches: how often an emitter's sighting went to another track than its last tracked one.
        fragmentations: how often an emitter was tracked, then missed, then tracked again.
        idf1: 2 IDTP / (2 IDTP + IDFP + IDFN) under the best pairing of emitters and tracks; 1 where there was nothing.
    """

    sightings: int
    emitters: int
    tracks: int
    tracked: int
    kept: int
    switches: int
    fragmentations: int
    idf1: float


def identity_metrics(sightings: Iterable[Sighting]) -> IdentityMetrics:
    """The metrics of sightings in order of time."""
    events = list(sightings)
    histories: dict[str, list[int | None]] = {}
    for event in events:
        if event.emitter is not None:
            histories.setdefault(event.emitter, []).append(event.track)
    shared = Counter((event.emitter, event.track) for event in events if event.emitter is not None and event.track is not None)
    owners: dict[int, set[str]] = {}
    for emitter, track in shared:
        owners.setdefault(track, set()).add(emitter)
    tracked = {name: {track for track in history if track is not None} for name, history in histories.items()}
    tracked = {name: ids for name, ids in tracked.items() if ids}
    return IdentityMetrics(
        sightings=sum(len(history) for history in histories.values()),
        emitters=len(histories),
        tracks=len({event.track for event in events} - {None}),
        kept=sum(len(ids) == 1 and all(owners[track] == {name} for track in ids) for name, ids in tracked.items()),
        tracked=len(tracked),
        switches=sum(_switches(history) for history in histories.values()),
        fragmentations=sum(_fragmentations(history) for history in histories.values()),
        idf1=_idf1(events, shared),
    )


def _switches(history: list[int | None]) -> int:
    tracked = [track for track in history if track is not None]
    return sum(now != before for before, now in pairwise(tracked))


def _fragmentations(history: list[int | None]) -> int:
    """Resumptions: misses before the first and after the last tracked sighting do not count."""
    begun, missing, count = False, False, 0
    for track in history:
        if track is None:
            missing = begun
        else:
            count += missing
            begun, missing = True, False
    return count


def _idf1(events: list[Sighting], shared: Counter[tuple[str, int]]) -> float:
    emitters = sorted({event.emitter for event in events if event.emitter is not None})
    tracks = sorted({event.track for event in events if event.track is not None})
    table = np.array([[shared[emitter, track] for track in tracks] for emitter in emitters]).reshape(len(emitters), len(tracks))
    rows, columns = linear_sum_assignment(table, maximize=True)
    paired = int(table[rows, columns].sum())
    truths = sum(event.emitter is not None for event in events)
    claims = sum(event.track is not None for event in events)
    return 2 * paired / (truths + claims) if truths + claims else 1.0
