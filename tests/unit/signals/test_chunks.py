"""Recordings cut into chunks, annotations dealt out to their tiles, and what is left out is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from longhaul.errors import UserError
from longhaul.signals.chunks import Tally, divide, label_tile, origin_of, stretches, write_chunk
from longhaul.signals.front_end import FrontEnd
from longhaul.signals.recording import Annotation, Recording, open_recording, write_recording
from longhaul.signals.tile_folder import TileSettings, read_tiles

RATE = 1e6
SETTINGS = TileSettings(front_end=FrontEnd(nfft=256, hop=128, tile=64), chunk_s=0.01)  # 10,000 samples


def make(folder: Path, samples: int, *annotations: Annotation) -> Recording:
    rng = np.random.default_rng(0)
    iq = (0.1 * (rng.normal(size=samples) + 1j * rng.normal(size=samples))).astype(np.complex64)
    return open_recording(write_recording(folder / "rec", iq, sample_rate_hz=RATE, center_hz=1e9, annotations=annotations))


@pytest.mark.parametrize(
    ("samples", "counts", "left_out"),
    [
        (30_000, [10_000] * 3, 0),
        (35_000, [10_000] * 3 + [5_000], 0),
        (34_999, [10_000] * 3, 4_999),
        (5_000, [5_000], 0),
    ],
)
def test_the_end_is_a_chunk_if_half_of_one_is_there(tmp_path: Path, samples: int, counts: list[int], left_out: int) -> None:
    division = divide(make(tmp_path, samples), SETTINGS)
    assert [chunk.count for chunk in division.chunks] == counts
    assert [chunk.start for chunk in division.chunks] == [10_000 * index for index in range(len(counts))]
    assert division.left_out == left_out


def test_the_end_can_be_left_out_and_is_counted(tmp_path: Path) -> None:
    division = divide(make(tmp_path, 39_999), SETTINGS.model_copy(update={"remainder": "drop"}))
    assert (len(division.chunks), division.left_out) == (3, 9_999)


def test_recordings_and_chunks_that_are_too_short_are_refused(tmp_path: Path) -> None:
    recording = make(tmp_path, 4_000)
    with pytest.raises(UserError, match=r"rec.sigmf-meta: 4000 samples are too few for a chunk of 10000"):
        divide(recording, SETTINGS)
    with pytest.raises(UserError, match=r"chunk_s 0.0001 is 100 samples .* under nfft 256"):
        divide(recording, SETTINGS.model_copy(update={"chunk_s": 1e-4}))


def test_a_signal_over_a_chunks_edge_is_on_both_tiles(tmp_path: Path) -> None:
    recording = make(tmp_path, 20_000, Annotation("a", 8_000, 5_000, -100e3, 100e3))
    chunks = divide(recording, SETTINGS).chunks
    geometry = SETTINGS.front_end.geometry(10_000, RATE)
    (left,), (right,) = (label_tile(recording.annotations, chunk, geometry, SETTINGS).boxes for chunk in chunks)
    assert (left.x_max, right.x_min) == (64, 0)
    samples_per_pixel = geometry.samples_per_pixel
    assert (left.x_max - left.x_min) * samples_per_pixel == pytest.approx(2_000, abs=128)
    assert (right.x_max - right.x_min) * samples_per_pixel == pytest.approx(3_000, abs=128)
    assert (left.y_min, left.y_max) == (right.y_min, right.y_max)


def test_slivers_are_counted_and_what_is_elsewhere_is_not(tmp_path: Path) -> None:
    recording = make(
        tmp_path,
        20_000,
        Annotation("over the edge", 500, 9_600, -100e3, 100e3),  # 100 samples of it are in the second chunk
        Annotation("thin", 3_000, 20, -100e3, 100e3),
        Annotation("second", 15_000, 2_000, -100e3, 100e3),
    )
    first, second = divide(recording, SETTINGS).chunks
    geometry = SETTINGS.front_end.geometry(10_000, RATE)
    one = label_tile(recording.annotations, first, geometry, SETTINGS)
    assert ([box.label for box in one.boxes], one.slivers) == (["over the edge"], 1)
    two = label_tile(recording.annotations, second, geometry, SETTINGS)
    assert [box.label for box in two.boxes] == ["second"]


def test_a_cut_chunk_gives_numbered_tiles_with_the_boxes_of_each(tmp_path: Path) -> None:
    recording = make(tmp_path, 20_000, Annotation("a", 6_000, 2_000, 100e3, 200e3))
    settings = SETTINGS.model_copy(update={"front_end": SETTINGS.front_end.model_copy(update={"cut": (2, 2)})})
    folder = tmp_path / "tiles"
    folder.mkdir()
    tally = Tally()
    for chunk in divide(recording, settings).chunks:
        tally.add(write_chunk(recording, chunk, settings, folder))
    assert (tally.written, tally.boxes, tally.slivers) == (8, 1, 0)
    tiles = read_tiles(folder)
    assert [tile.png.stem for tile in tiles] == [f"chunk_rec_{number:03}" for number in range(8)]
    assert [len(tile.boxes.bboxes) for tile in tiles] == [0, 0, 1, 0, 0, 0, 0, 0]  # right half, upper half


def test_complete_tiles_are_kept_and_their_samples_not_even_read(tmp_path: Path) -> None:
    recording = make(tmp_path, 10_000)
    folder = tmp_path / "tiles"
    folder.mkdir()
    (chunk,) = divide(recording, SETTINGS).chunks
    assert write_chunk(recording, chunk, SETTINGS, folder).written == 1
    recording.data.unlink()
    again = write_chunk(recording, chunk, SETTINGS, folder)
    assert (again.written, again.kept) == (0, 1)
    next(folder.glob("*_bboxes.json")).unlink()  # a PNG alone is no tile
    with pytest.raises(UserError, match=r"rec.sigmf-data: cannot be read"):
        write_chunk(recording, chunk, SETTINGS, folder)


def test_an_origin_knows_changed_annotations(tmp_path: Path) -> None:
    one = origin_of(make(tmp_path, 10_000, Annotation("a", 0, 100, 0, 10e3)))
    two = origin_of(make(tmp_path, 10_000, Annotation("a", 0, 101, 0, 10e3)))
    assert one != two
    assert one == origin_of(make(tmp_path, 10_000, Annotation("a", 0, 100, 0, 10e3)))


def test_stretches_hold_every_chunk_once_and_enough_for_all_workers(tmp_path: Path) -> None:
    chunks = divide(make(tmp_path, 1_000_000), SETTINGS).chunks
    for workers in (1, 2, 7, 500):
        parts = stretches(chunks, workers)
        assert [chunk for part in parts for chunk in part] == list(chunks)
        assert len(parts) >= min(len(chunks), workers)
