"""Annotations as a detector would answer them, chunk by chunk: cut at the chunks' edges, some missed, moved or made up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from longhaul.serving.detection.answers import ChunkAnswer, Detection, ModelStatus, Status
from longhaul.signals.annotations import Annotation


@dataclass(frozen=True)
class DetectorModel:
    """How good the detector is.

    Attributes:
        drop: share of the pieces of bursts that it misses.
        jitter_px: standard deviation of each edge of a box.
        false_alarms: expected made-up detections a chunk.
        side_px: of the tile that a chunk is seen on.
        least_px: shorter pieces than that at a chunk's edge are not seen.
        seed: of its mistakes.
    """

    drop: float = 0.0
    jitter_px: float = 0.0
    false_alarms: float = 0.0
    side_px: int = 160
    least_px: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Seen:
    """A chunk's answer and the truth about it.

    Attributes:
        answer: as the ensemble gives it.
        truths: for each piece of a burst in the chunk its annotation, and the detection's place in the answer or None for a miss.
    """

    answer: ChunkAnswer
    truths: tuple[tuple[Annotation, int | None], ...]


def answers(
    annotations: Sequence[Annotation], chunks: int, chunk_samples: int, rate_hz: float, detector: DetectorModel = DetectorModel()
) -> Iterator[Seen]:
    """What the detector sees in chunk after chunk of a recording whose centre is at 0 Hz."""
    rng = np.random.default_rng(detector.seed)
    chunk_s = chunk_samples / rate_hz
    pixel_s, pixel_hz = chunk_s / detector.side_px, rate_hz / detector.side_px
    labels = sorted({one.label for one in annotations})
    for index in range(chunks):
        first, last = index * chunk_samples, (index + 1) * chunk_samples
        found: list[tuple[Annotation | None, Detection]] = []
        missed: list[Annotation] = []
        for one in annotations:
            begin, end = max(one.start, first), min(one.stop, last)
            if end - begin < detector.least_px * pixel_s * rate_hz:
                continue
            if rng.random() < detector.drop:
                missed.append(one)
                continue
            edges = np.array([(begin - first) / rate_hz / pixel_s, (end - first) / rate_hz / pixel_s])
            band = np.array([(rate_hz / 2 - one.high_hz) / pixel_hz, (rate_hz / 2 - one.low_hz) / pixel_hz])
            noise = detector.jitter_px * rng.standard_normal(4)
            found.append((one, _detection(one.label, edges + noise[:2], band + noise[2:], index, detector, rate_hz, chunk_s)))
        for _ in range(int(rng.poisson(detector.false_alarms))):
            label = labels[int(rng.integers(len(labels)))]
            corner, size = rng.uniform(0, 0.9 * detector.side_px, 2), rng.uniform(3, 0.1 * detector.side_px, 2)
            edges, band = np.array([corner[0], corner[0] + size[0]]), np.array([corner[1], corner[1] + size[1]])
            found.append((None, _detection(label, edges, band, index, detector, rate_hz, chunk_s)))
        found.sort(key=lambda pair: (pair[1].start_s, pair[1].low_hz))
        truths = [(one, place) for place, (one, _) in enumerate(found) if one is not None]
        answer = ChunkAnswer(
            index=index,
            start_s=index * chunk_s,
            duration_s=chunk_s,
            degraded=False,
            seconds=0.0,
            models=(ModelStatus(model="all", version="1", status=Status.ON_TIME, seconds=0.0),),
            detections=tuple(detection for _, detection in found),
        )
        yield Seen(answer, (*truths, *((one, None) for one in missed)))


def _detection(
    label: str, edges: np.ndarray, band: np.ndarray, index: int, detector: DetectorModel, rate_hz: float, chunk_s: float
) -> Detection:
    left, right = np.sort(np.clip(edges, 0, detector.side_px))
    top, bottom = np.sort(np.clip(band, 0, detector.side_px))
    pixel_s, pixel_hz = chunk_s / detector.side_px, rate_hz / detector.side_px
    return Detection(
        label=label,
        model="all",
        score=0.9,
        box_px=(float(left), float(top), float(right), float(bottom)),
        start_s=index * chunk_s + float(left) * pixel_s,
        end_s=index * chunk_s + float(right) * pixel_s,
        low_hz=rate_hz / 2 - float(bottom) * pixel_hz,
        high_hz=rate_hz / 2 - float(top) * pixel_hz,
    )
