"""The waterfall: power where the signal is, boxes where the annotations are, and bounded reading however long the recording."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PatchCollection
from PIL import Image

from longhaul.errors import UserError
from longhaul.insight.waterfall import draw_waterfall, measure, waterfall_figure
from longhaul.signals.recording import Annotation, Recording, open_recording, write_recording

RATE, CENTER = 1e6, 100e6
TONE_HZ = 250e3


def recording(folder: Path, annotations: list[Annotation], samples: int = 200_000, center_hz: float | None = CENTER) -> Recording:
    """Faint noise, with a tone of amplitude 0.5 at +250 kHz in the second half."""
    rng = np.random.default_rng(1)
    iq = 1e-4 * (rng.standard_normal(samples) + 1j * rng.standard_normal(samples))
    late = np.arange(samples // 2, samples)
    iq[late] += 0.5 * np.exp(2j * np.pi * TONE_HZ / RATE * late)
    path = write_recording(
        folder / "tone", iq.astype(np.complex64), sample_rate_hz=RATE, center_hz=center_hz, annotations=annotations
    )
    return open_recording(path)


def test_a_tone_stands_at_its_frequency_its_time_and_its_power(tmp_path: Path) -> None:
    drawn = measure(recording(tmp_path, []))
    columns, bins = drawn.power_db.shape
    late = drawn.power_db[columns // 2 + 2 :]
    frequencies = np.fft.fftshift(np.fft.fftfreq(bins, 1 / RATE))
    assert set(frequencies[late.argmax(axis=1)]) == {TONE_HZ}
    np.testing.assert_allclose(late.max(axis=1), 20 * np.log10(0.5), atol=0.01)
    assert drawn.power_db[: columns // 2 - 2].max() < -80
    assert (drawn.start_s, drawn.stop_s, drawn.share) == (0, 0.2, 1)


def test_a_stretch_shows_that_part_alone(tmp_path: Path) -> None:
    source = recording(tmp_path, [])
    early, late = measure(source, start_s=0.02, duration_s=0.05), measure(source, start_s=0.15, duration_s=9)
    assert (early.start_s, early.stop_s) == (0.02, 0.07)
    assert early.power_db.max() < -80
    assert (late.start_s, late.stop_s) == (0.15, 0.2)
    assert late.power_db.max(axis=1).min() > -7


@pytest.mark.parametrize(("start_s", "duration_s"), [(-0.1, 0.1), (0.2, None), (0.3, 0.1), (0.1, 0), (0.1, -1), (0.1, 1e-5)])
def test_a_stretch_that_is_not_there_is_refused(tmp_path: Path, start_s: float, duration_s: float | None) -> None:
    with pytest.raises(UserError, match=r"tone\.sigmf-meta"):
        measure(recording(tmp_path, []), start_s=start_s, duration_s=duration_s)


@pytest.mark.parametrize("samples", [64, 65, 100, 1000, 4097])
def test_short_recordings_are_drawn_too(tmp_path: Path, samples: int) -> None:
    picture = Image.open(io.BytesIO(draw_waterfall(recording(tmp_path, [], samples))))
    assert picture.size == (1800, 990)


def test_a_long_recording_is_read_in_part_and_over_its_whole_length(tmp_path: Path) -> None:
    source = recording(tmp_path, [])
    with source.data.open("r+b") as file:
        file.truncate(8 * 2_000_000_000)  # sparse: no blocks on disk
    long = open_recording(source.path)
    drawn = measure(long)
    assert drawn.power_db.shape == (1400, 1024)
    assert drawn.share < 0.006
    assert drawn.stop_s == 2000
    assert "drawn from 0.0057 of the samples" in waterfall_figure(long, drawn).axes[0].get_title(loc="left")


def boxes(figure_recording: Recording, **stretch: float) -> tuple[list[tuple[float, ...]], list[str], list[str]]:
    """Corners of the drawn boxes, the legend's lines, and the names beside boxes."""
    figure = waterfall_figure(figure_recording, measure(figure_recording, **stretch))
    axes = figure.axes[0]
    corners = [
        tuple(np.round(path.get_extents().extents, 9))
        for collection in axes.collections
        if isinstance(collection, PatchCollection)
        for path in collection.get_paths()
    ]
    legend = [text.get_text() for key in figure.legends for text in key.get_texts()]
    return sorted(corners), legend, [text.get_text() for text in axes.texts]


TWO = [Annotation("a", 10_000, 20_000, -1e5, 2e5), Annotation("b", 150_000, 50_000, 3e5, 5e5)]


def test_boxes_stand_at_seconds_and_megahertz_with_a_legend_and_names(tmp_path: Path) -> None:
    corners, legend, names = boxes(recording(tmp_path, TWO))
    assert corners == [(0.01, 99.9, 0.03, 100.2), (0.15, 100.3, 0.2, 100.5)]
    assert legend == ["a (1)", "b (1)"]
    assert names == ["a", "b"]
    corners, _, _ = boxes(recording(tmp_path, TWO, center_hz=None))
    assert corners == [(0.01, -0.1, 0.03, 0.2), (0.15, 0.3, 0.2, 0.5)]


def test_boxes_outside_the_stretch_are_left_out(tmp_path: Path) -> None:
    corners, legend, _ = boxes(recording(tmp_path, TWO), start_s=0.02, duration_s=0.1)
    assert (len(corners), legend) == (1, ["a (1)"])


def test_a_hundred_boxes_and_twenty_labels_leave_the_picture_readable(tmp_path: Path) -> None:
    many = [Annotation(f"label {number % 20:02}", 1000 * number, 900, -1e5, 1e5) for number in range(100)]
    corners, legend, names = boxes(recording(tmp_path, many))
    assert len(corners) == 100
    assert legend == [f"label {number:02} (5)" for number in range(12)] + ["and 8 more"]
    assert names == []


def test_names_that_would_lie_over_one_another_are_left_out(tmp_path: Path) -> None:
    close = [Annotation("ab"[number % 2], 1000 + 500 * number, 400, -1e5, 1e5) for number in range(10)]
    _, _, names = boxes(recording(tmp_path, close))
    assert 1 <= len(names) < 5
