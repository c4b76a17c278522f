"""What is where in a recording: annotations in time and frequency, read from SigMF's metadata and checked."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from longhaul.errors import UserError

_ROUNDING = 1e-6  # of the sample rate: what an edge may be past the band without a word, by arithmetic alone
_EMITTER = "emitter "  # begins a comment that names the sender


@dataclass(frozen=True)
class Annotation:
    """A signal in a recording: from sample `start`, `count` samples long, between two frequencies.

    Attributes:
        label: what it is.
        start, count: in samples of the recording; the file's first sample is 0.
        low_hz, high_hz: edges relative to the capture's centre.
        emitter: who sent it, where that is known: bursts with the same name are one sender's.
    """

    label: str
    start: int
    count: int
    low_hz: float
    high_hz: float
    emitter: str | None = None

    @property
    def stop(self) -> int:
        """The first sample after it."""
        return self.start + self.count


@dataclass(frozen=True)
class Frame:
    """What annotations are measured against.

    Attributes:
        name: of the file with the metadata, for messages.
        sample_rate_hz: of the recording.
        center_hz: the RF frequency in the middle of the band, or None: then edges are relative to it already.
        first: the index that the metadata gives to the file's first sample (`core:offset`).
        samples: how many samples there are.
        segments: where captures begin, in samples of the file, ascending.
    """

    name: str
    sample_rate_hz: float
    center_hz: float | None
    first: int
    samples: int
    segments: tuple[int, ...] = ()

    def capture_end(self, start: int) -> int:
        """Where the capture that holds a sample ends."""
        return next((segment for segment in self.segments if segment > start), self.samples)


def parse_annotations(entries: Sequence[dict[str, Any]], frame: Frame) -> tuple[tuple[Annotation, ...], list[str]]:
    """Annotations from the entries of the metadata (valid by SigMF's schema), and notes on what is odd about them.

    Raises:
        UserError: an annotation without a label, empty, inverted, out of the band or past the end of the data.
    """
    found, oddities = [], Counter[str]()
    for number, entry in enumerate(entries):
        where = f"{frame.name}: annotations[{number}]"
        label = _label(entry, where, oddities)
        start, count = _extent(entry, where, frame, oddities)
        low, high = _edges(entry, where, frame, oddities)
        found.append(Annotation(label, start, count, low, high, _emitter(entry)))
    notes = [f"{many} of {len(found)} annotations {what}" for what, many in oddities.items()]
    return tuple(found), notes + overlap_notes(found)


def overlap_notes(annotations: Iterable[Annotation]) -> list[str]:
    """A line for each label whose annotations lie over one another in time and frequency: real signals do, mistakes too."""
    pairs: Counter[str] = Counter()
    first: dict[str, int] = {}
    running: dict[str, list[tuple[int, int, Annotation]]] = {}
    for number, one in enumerate(sorted(annotations, key=lambda annotation: annotation.start)):
        heap = running.setdefault(one.label, [])
        while heap and heap[0][0] <= one.start:
            heapq.heappop(heap)
        over = sum(other.low_hz < one.high_hz and one.low_hz < other.high_hz for _, _, other in heap)
        if over:
            pairs[one.label] += over
            first.setdefault(one.label, one.start)
        heapq.heappush(heap, (one.stop, number, one))
    return [
        f"{many} pair{'s' * (many > 1)} of annotations {label!r} overlap{'s' * (many == 1)}, first at sample {first[label]}"
        for label, many in pairs.items()
    ]


def emitter_comment(emitter: str) -> str:
    """What `core:comment` says about a sender; SigMF has no field for one."""
    return f"{_EMITTER}{emitter}"


def _emitter(entry: dict[str, Any]) -> str | None:
    """The sender that a comment names and nothing else; whatever people wrote is theirs."""
    comment = str(entry.get("core:comment", ""))
    name = comment.removeprefix(_EMITTER)
    return name if name != comment and name and not any(character.isspace() for character in name) else None


def _label(entry: dict[str, Any], where: str, oddities: Counter[str]) -> str:
    for field in ("core:label", "core:description", "core:comment"):
        value = entry.get(field)
        if isinstance(value, str) and value.strip():
            if field != "core:label":
                oddities[f"have no core:label; {field} was taken"] += 1
            return value.strip().splitlines()[0]
    # leaving it out would teach a detector that nothing is there
    raise UserError(f"{where} has no core:label", "Give it one, or remove the annotation")


def _extent(entry: dict[str, Any], where: str, frame: Frame, oddities: Counter[str]) -> tuple[int, int]:
    start = int(entry["core:sample_start"]) - frame.first
    if start < 0:
        raise UserError(
            f"{where}: core:sample_start {start + frame.first} is before the file's first sample, core:offset {frame.first}",
            "Correct one of the two",
        )
    if start >= frame.samples:
        raise UserError(
            f"{where}: core:sample_start {start + frame.first} is past the end of the data ({frame.samples} samples)",
            "Fetch the whole data file, or remove the annotation",
        )
    given = entry.get("core:sample_count")
    if given is None:
        oddities["have no core:sample_count; they reach to the end of their capture"] += 1
        return start, frame.capture_end(start) - start
    if given <= 0:
        raise UserError(f"{where}: core:sample_count is {given}", "Give a length of at least 1, or remove the annotation")
    if start + given > frame.samples:
        raise UserError(
            f"{where} ends at sample {start + given}, past the end of the data ({frame.samples} samples)",
            "Fetch the whole data file, or correct core:datatype or core:sample_count",
        )
    return start, int(given)


def _edges(entry: dict[str, Any], where: str, frame: Frame, oddities: Counter[str]) -> tuple[float, float]:
    half = frame.sample_rate_hz / 2
    low, high = entry.get("core:freq_lower_edge"), entry.get("core:freq_upper_edge")
    if low is None and high is None:
        oddities["have no frequency edges; they cover the whole band"] += 1
        return -half, half
    if low is None or high is None:
        missing = "core:freq_lower_edge" if low is None else "core:freq_upper_edge"
        raise UserError(f"{where} has one frequency edge alone: {missing} is missing", "Give both edges or neither")
    if high <= low:
        raise UserError(
            f"{where} is inverted: core:freq_upper_edge {high:.12g} is not above core:freq_lower_edge {low:.12g}",
            "Swap or correct the edges",
        )
    center = frame.center_hz or 0.0
    below, above = low - center, high - center
    if below >= half or above <= -half:
        _refuse_out_of_band(where, low, high, frame)
    slack = _ROUNDING * frame.sample_rate_hz
    if below < -half - slack or above > half + slack:
        oddities["reach over the edge of the band; they are cut there"] += 1
    return max(below, -half), min(above, half)


def _refuse_out_of_band(where: str, low: float, high: float, frame: Frame) -> None:
    center, half = frame.center_hz or 0.0, frame.sample_rate_hz / 2
    relative = frame.center_hz is not None and -half <= low < high <= half
    fix = (
        "The edges look relative to the centre: add core:frequency of the capture to both"
        if relative
        else "Correct core:freq_lower_edge and core:freq_upper_edge, or core:frequency of the capture"
    )
    raise UserError(
        f"{where}: {low:.12g} to {high:.12g} Hz is outside the recorded band, {center - half:.12g} to {center + half:.12g} Hz",
        fix,
    )
