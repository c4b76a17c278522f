"""Which chunks a recording gives, which of its annotations are on which tile, and a chunk made into tiles on disk."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from longhaul.errors import UserError
from longhaul.signals.geometry import TileGeometry
from longhaul.signals.recording import Annotation, Recording
from longhaul.signals.tile_folder import Box, Origin, TileSettings, is_complete, tile_path, write_tile

_DIGITS = 3  # of a pixel, in the files


@dataclass(frozen=True)
class Chunk:
    """A stretch of a recording: `count` samples from `start`."""

    index: int
    start: int
    count: int


@dataclass(frozen=True)
class Division:
    """A recording cut into chunks.

    Attributes:
        chunks: one after the other, without gaps.
        left_out: samples at the end that are in none of them.
    """

    chunks: tuple[Chunk, ...]
    left_out: int


def divide(recording: Recording, settings: TileSettings) -> Division:
    """Cut a recording into chunks; the end that fills none is a chunk too, or left out, by `settings.remainder`.

    Raises:
        UserError: a chunk is shorter than a frame of the transform, or the recording gives no chunk at all.
    """
    length = settings.chunk_samples(recording.sample_rate_hz)
    nfft = settings.front_end.nfft
    if length < nfft:
        raise UserError(
            f"{recording.path}: chunk_s {settings.chunk_s:g} is {length} samples at {recording.sample_rate_hz:g} a second, under "
            f"nfft {nfft}",
            "Take longer chunks or a lower nfft",
        )
    whole, rest = divmod(recording.samples, length)
    chunks = [Chunk(index, index * length, length) for index in range(whole)]
    if settings.keeps_end(rest, recording.sample_rate_hz):
        chunks.append(Chunk(whole, whole * length, rest))
        rest = 0
    if not chunks:
        raise UserError(
            f"{recording.path}: {recording.samples} samples are too few for a chunk of {length} ({settings.chunk_s:g} s)",
            "Take shorter chunks, or leave it out",
        )
    return Division(tuple(chunks), rest)


@dataclass(frozen=True)
class Labelling:
    """What of the annotations is on a tile.

    Attributes:
        boxes: by time.
        slivers: annotations that reach onto the tile and are left out, being too thin or too small a part.
    """

    boxes: tuple[Box, ...]
    slivers: int


def label_tile(annotations: Iterable[Annotation], chunk: Chunk, geometry: TileGeometry, settings: TileSettings) -> Labelling:
    """The boxes of a recording's annotations on one tile; what goes over a chunk's edge is clipped there, in both chunks."""
    boxes, slivers = [], 0
    for one in annotations:
        if one.start >= chunk.start + chunk.count or one.stop <= chunk.start:
            continue
        place = (one.start - chunk.start, one.count, one.low_hz, one.high_hz)
        seen = geometry.box(*place, least_side_px=settings.least_side_px, least_share=settings.least_share)
        if seen is not None:
            x_min, y_min, x_max, y_max = (round(edge, _DIGITS) for edge in seen)
            boxes.append(Box(label=one.label, x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max))
        elif geometry.meets(*place):
            slivers += 1
    return Labelling(tuple(sorted(boxes, key=lambda box: (box.x_min, box.y_min, box.label))), slivers)


@dataclass
class Tally:
    """What a conversion did; tallies add up.

    Attributes:
        written: tiles.
        kept: tiles that were complete already.
        boxes: on the tiles, written and kept.
        slivers: parts of annotations that got no box.
        errors: what went wrong, a line a chunk.
    """

    written: int = 0
    kept: int = 0
    boxes: int = 0
    slivers: int = 0
    errors: tuple[str, ...] = ()

    def add(self, other: Tally) -> None:
        """Count what another one counted."""
        self.written += other.written
        self.kept += other.kept
        self.boxes += other.boxes
        self.slivers += other.slivers
        self.errors += other.errors


def write_chunk(recording: Recording, chunk: Chunk, settings: TileSettings, folder: Path) -> Tally:
    """Make the tiles of a chunk, but those that are complete.

    Raises:
        UserError: its samples cannot be read.
        OSError: a tile cannot be written.
    """
    front_end = settings.front_end
    tally, missing = Tally(), {}
    for piece in range(front_end.pieces):
        geometry = front_end.geometry(chunk.count, recording.sample_rate_hz, piece)
        labelling = label_tile(recording.annotations, chunk, geometry, settings)
        tally.boxes += len(labelling.boxes)
        tally.slivers += labelling.slivers
        png = tile_path(folder, recording.name, chunk.index * front_end.pieces + piece)
        if is_complete(png):
            tally.kept += 1
        else:
            missing[piece] = (png, labelling.boxes)
    if missing:
        iq = torch.from_numpy(_read(recording, chunk))
        tiles = front_end.to_uint8(iq).view(front_end.pieces, front_end.tile, front_end.tile).numpy()
        for piece, (png, boxes) in missing.items():
            write_tile(png, tiles[piece], boxes)
            tally.written += 1
    return tally


def _read(recording: Recording, chunk: Chunk) -> NDArray[np.complex64]:
    try:
        return recording.read(chunk.start, chunk.count)
    except OSError as error:  # apart from one on writing: this ends a recording, that ends all
        raise UserError(f"{recording.data}: cannot be read ({error.strerror or error})", "Restore the file") from error


def origin_of(recording: Recording) -> Origin:
    """What to know a recording by when its conversion is taken up again."""
    digest = hashlib.sha256()
    for one in recording.annotations:
        digest.update(f"{one.label!r} {one.start} {one.count} {one.low_hz!r} {one.high_hz!r}\n".encode())
    return Origin(
        sample_rate_hz=recording.sample_rate_hz,
        samples=recording.samples,
        annotations_sha256=digest.hexdigest(),
        sha512=recording.sha512,
    )


def stretches(chunks: Sequence[Chunk], workers: int, most: int = 32) -> list[tuple[Chunk, ...]]:
    """Chunks in runs for one task each: several a worker, so that all end about together."""
    size = min(most, max(1, math.ceil(len(chunks) / (4 * workers))))
    return [tuple(chunks[first : first + size]) for first in range(0, len(chunks), size)]
