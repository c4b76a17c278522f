"""Detections of successive chunks as tracks: who has been on the air since when, on which frequency, hopping or not.

Assignment is the Hungarian solver's (`association.py`); what happens to a track between its bursts is said here.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace

from pydantic import BaseModel, ConfigDict, Field

from longhaul.serving.detection.answers import ChunkAnswer, Status
from longhaul.serving.detection.association import AssociationSettings, assign, continuation_cost, is_hop, rounds, shape_cost
from longhaul.serving.detection.bursts import Burst, bursts_of


class Track(BaseModel):
    """An emitter as far as its bursts tell.

    Attributes:
        id: stable for the length of the stream, from 1, and never used again.
        label: the one that its detections' scores speak for.
        first_s, last_s: from the beginning of its first burst to the end of its last one, in the stream.
        center_hz: of its last frequency, smoothed while it stays there.
        bandwidth_hz: smoothed.
        hops: how often it changed its frequency.
        bursts: how many were seen; what runs over the end of a chunk is one.
        score: the mean of its bursts' scores.
        active: whether it may go on; false once it has been silent for too long.
    """

    model_config = ConfigDict(frozen=True)

    id: int = Field(examples=[7])
    label: str = Field(examples=["bluetooth"])
    first_s: float = Field(examples=[0.0125])
    last_s: float = Field(examples=[2.318])
    center_hz: float = Field(examples=[2_426e6])
    bandwidth_hz: float = Field(examples=[1e6])
    hops: int = Field(0, ge=0, examples=[41])
    bursts: int = Field(1, ge=1, examples=[44])
    score: float = Field(ge=0, le=1, examples=[0.97])
    active: bool = True


class TrackerSettings(BaseModel):
    """How tracks begin and end.

    Attributes:
        association: what a burst may differ in from its track.
        confirm: sightings before a track is told: bursts, and chunks that a burst lasts through.
        timeout_s: silence after which a track has ended; only time in which its model looked counts.
        timeouts_s: the same for single labels.
        edge_px: how near to the end of a chunk a box must reach to go on in the next one.
        smoothing: weight of the newest burst in centre and bandwidth.
        active_most, ended_most: how many tracks are held; beyond that the longest silent end, and the oldest ended are forgotten.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    association: AssociationSettings = AssociationSettings()
    confirm: int = Field(2, ge=1)
    timeout_s: float = Field(1.0, gt=0)
    timeouts_s: dict[str, float] = {}
    edge_px: float = Field(3.0, ge=0)
    smoothing: float = Field(0.3, gt=0, le=1)
    active_most: int = Field(256, ge=1)
    ended_most: int = Field(1024, ge=0)


@dataclass(eq=False)
class _Emitter:
    """A track while it lives."""

    id: int
    burst: Burst  # the latest
    first_s: float
    last_s: float
    center_hz: float
    bandwidth_hz: float
    labels: dict[str, float] = field(default_factory=dict)  # sums of scores
    scores: float = 0.0
    hops: int = 0
    bursts: int = 0
    sightings: int = 0
    silent_s: float = 0.0
    running: bool = False  # its burst was on the air when the last chunk ended

    @property
    def label(self) -> str:
        return max(self.labels, key=lambda label: (self.labels[label], label))

    def track(self, active: bool) -> Track:
        return Track(
            id=self.id,
            label=self.label,
            first_s=self.first_s,
            last_s=self.last_s,
            center_hz=self.center_hz,
            bandwidth_hz=self.bandwidth_hz,
            hops=self.hops,
            bursts=self.bursts,
            score=min(1.0, self.scores / self.bursts),
            active=active,
        )


class Tracker:
    """The tracks of one stream. The same answers in the same order give the same tracks.

    Attributes:
        assigned: for each detection of the last answer, by its place there, the id of its track. A track that is not
            confirmed yet has its id already.
    """

    def __init__(self, settings: TrackerSettings | None = None) -> None:
        self.settings = settings = settings or TrackerSettings()
        self.assigned: dict[int, int] = {}
        self._active: list[_Emitter] = []
        self._ended: deque[Track] = deque(maxlen=settings.ended_most)
        self._next = 1
        self._end_s: float | None = None

    def update(self, answer: ChunkAnswer) -> list[Track]:
        """Take in the next chunk's answer; returns the tracks that it changed, the ended ones among them, by id."""
        bursts = bursts_of(answer.detections, edge_px=self.settings.edge_px, sweeping=self.settings.association.sweeping)
        end_s = answer.start_s + answer.duration_s
        self.assigned = {}
        seen: dict[int, _Emitter] = {}
        left = self._bridge(answer, bursts, seen)
        for together in rounds(left):
            self._associate(together, seen)
        for emitter in self._active:
            emitter.running = emitter.id in seen and emitter.last_s >= end_s - emitter.burst.slack_s
        self._end_s = end_s
        ended = self._silence(answer, end_s, seen) + self._crowd()
        changed = [one.track(active=True) for one in seen.values() if one in self._active and self._is_told(one)]
        return sorted([*changed, *ended], key=lambda track: track.id)

    def follow(self, answer: ChunkAnswer) -> tuple[ChunkAnswer, list[Track]]:
        """`update`, and the answer with the id of its track on each detection. A crowded chunk takes a while: use a thread."""
        changed = self.update(answer)
        marked = (one.model_copy(update={"track": self.assigned.get(place)}) for place, one in enumerate(answer.detections))
        return answer.model_copy(update={"detections": tuple(marked)}), changed

    def tracks(self) -> list[Track]:
        """All tracks, by id: those that go on, and the last `ended_most` that ended."""
        active = [one.track(active=True) for one in self._active if self._is_told(one)]
        return sorted([*self._ended, *active], key=lambda track: track.id)

    def _bridge(self, answer: ChunkAnswer, bursts: list[Burst], seen: dict[int, _Emitter]) -> list[Burst]:
        """Bursts that ran over the end of the chunk before go on; returns the others."""
        slack = max((burst.slack_s for burst in bursts), default=0.0)
        if self._end_s is None or abs(answer.start_s - self._end_s) > slack:
            return bursts
        running = [one for one in self._active if one.running]
        first = [burst for burst in bursts if burst.start_s <= answer.start_s + burst.slack_s]
        association = self.settings.association
        pairs, _ = assign(running, first, lambda emitter, burst: continuation_cost(emitter.burst, burst, association))
        for emitter, burst in pairs:
            whole = emitter.burst.with_part(burst, sweeping=burst.label in association.sweeping)
            if emitter.bursts == 1 or burst.label in association.sweeping:
                emitter.center_hz, emitter.bandwidth_hz = whole.center_hz, whole.bandwidth_hz
            # without the places in earlier answers, or a burst that never ends would grow
            emitter.burst, emitter.last_s = replace(whole, detections=()), max(emitter.last_s, burst.end_s)
            self._see(emitter, burst, seen)
        bridged = {id(burst) for _, burst in pairs}
        return [burst for burst in bursts if id(burst) not in bridged]

    def _associate(self, together: list[Burst], seen: dict[int, _Emitter]) -> None:
        """Bursts that are on the air at once go to one track each, or begin one."""
        pairs, new = assign(self._active, together, self._cost)
        for emitter, burst in pairs:
            weight = self.settings.smoothing
            if is_hop(burst, emitter.center_hz, emitter.bandwidth_hz, self.settings.association):
                emitter.hops += 1
                emitter.center_hz = burst.center_hz
            else:
                emitter.center_hz += weight * (burst.center_hz - emitter.center_hz)
            emitter.bandwidth_hz += weight * (burst.bandwidth_hz - emitter.bandwidth_hz)
            self._add(emitter, burst, seen)
        for burst in new:
            emitter = _Emitter(self._next, burst, burst.start_s, burst.end_s, burst.center_hz, burst.bandwidth_hz)
            self._next += 1
            self._active.append(emitter)
            self._add(emitter, burst, seen)

    def _cost(self, emitter: _Emitter, burst: Burst) -> float | None:
        """Of a burst for a track; None while the track transmits, and where the two have nothing in common."""
        if burst.start_s < emitter.last_s - max(burst.slack_s, emitter.burst.slack_s):
            return None
        settings = self.settings.association
        label = emitter.label
        if label != burst.label and label not in burst.others:
            return None
        shape = shape_cost(burst, emitter.center_hz, emitter.bandwidth_hz, settings)
        if shape is None:
            return None
        silence = settings.silence_cost * min(1.0, emitter.silent_s / self._timeout_s(emitter))
        doubt = settings.doubt_cost / math.sqrt(emitter.bursts)
        return shape + silence + doubt + (settings.label_cost if label != burst.label else 0.0)

    def _add(self, emitter: _Emitter, burst: Burst, seen: dict[int, _Emitter]) -> None:
        emitter.burst = burst
        emitter.first_s, emitter.last_s = min(emitter.first_s, burst.start_s), max(emitter.last_s, burst.end_s)
        emitter.bursts += 1
        emitter.labels[burst.label] = emitter.labels.get(burst.label, 0.0) + burst.score
        emitter.scores += burst.score
        self._see(emitter, burst, seen)

    def _see(self, emitter: _Emitter, burst: Burst, seen: dict[int, _Emitter]) -> None:
        emitter.sightings += 1
        emitter.silent_s = 0.0
        seen[emitter.id] = emitter
        self.assigned |= dict.fromkeys(burst.detections, emitter.id)

    def _silence(self, answer: ChunkAnswer, end_s: float, seen: dict[int, _Emitter]) -> list[Track]:
        """Count the time in which a track's model looked and found nothing of it; returns the told tracks that ended."""
        looked = {one.model for one in answer.models if one.status is Status.ON_TIME}
        for emitter in self._active:
            if emitter.id in seen:
                emitter.silent_s = max(0.0, end_s - emitter.last_s)
            elif emitter.burst.model in looked:
                emitter.silent_s += answer.duration_s
        return self._end([one for one in self._active if one.silent_s > self._timeout_s(one)])

    def _crowd(self) -> list[Track]:
        """End the longest silent, unconfirmed ones first, where there are too many."""
        over = len(self._active) - self.settings.active_most
        if over <= 0:
            return []
        order = sorted(self._active, key=lambda one: (self._is_told(one), -one.silent_s, one.id))
        return self._end(order[:over])

    def _end(self, emitters: list[_Emitter]) -> list[Track]:
        over = {one.id for one in emitters}
        self._active = [one for one in self._active if one.id not in over]
        told = [one.track(active=False) for one in emitters if self._is_told(one)]
        self._ended.extend(told)
        return told

    def _is_told(self, emitter: _Emitter) -> bool:
        return emitter.sightings >= self.settings.confirm

    def _timeout_s(self, emitter: _Emitter) -> float:
        return self.settings.timeouts_s.get(emitter.label, self.settings.timeout_s)
