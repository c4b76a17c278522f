"""The picture of detections: boxes in their labels' colours, over dashed annotations, with the numbers of tracks."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgba
from PIL import Image

from longhaul.errors import UserError
from longhaul.insight.detections import Mark, detections_figure, draw_detections
from longhaul.insight.waterfall import COLOURS, measure, waterfall_figure
from longhaul.signals.recording import Annotation, Recording, open_recording, write_recording

RATE, CENTER = 1e6, 100e6
WIFI = Annotation("wifi", start=20_000, count=10_000, low_hz=-2e5, high_hz=2e5)
CHIRP = Annotation("chirp", start=60_000, count=10_000, low_hz=1e5, high_hz=3e5)
FOUND = Mark("wifi", 0.021, 0.029, CENTER - 1e5, CENTER + 2e5, track=7)
LATER = Mark("lte", 0.080, 0.090, CENTER + 1e5, CENTER + 2e5, track=8)


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    """100 ms of noise with two annotations."""
    noise = 1e-3 * np.random.default_rng(0).standard_normal((100_000, 2)).astype(np.float32).view(np.complex64)[:, 0]
    options = {"sample_rate_hz": RATE, "center_hz": CENTER, "annotations": [WIFI, CHIRP]}
    return open_recording(write_recording(tmp_path / "roof", noise, **options))


def collections(figure):
    """(marks by colour, annotations) of the figure's boxes."""
    boxes = [one for one in figure.axes[0].collections if isinstance(one, PatchCollection)]
    dashed = [one for one in boxes if one.get_linestyle()[0][1] is not None]
    return {tuple(one.get_edgecolor()[0]): one for one in boxes if one not in dashed}, dashed


def test_a_mark_is_a_box_in_seconds_and_megahertz_in_the_colour_that_its_label_has_among_annotations(
    recording: Recording,
) -> None:
    waterfall = measure(recording)
    solid, dashed = collections(detections_figure(recording, waterfall, [FOUND, LATER]))
    labels = ["chirp", "lte", "wifi"]
    assert set(solid) == {to_rgba(COLOURS[labels.index(label)]) for label in ("lte", "wifi")}
    (box,) = solid[to_rgba(COLOURS[2])].get_paths()
    np.testing.assert_allclose(box.get_extents().extents, [0.021, 99.9, 0.029, 100.2])
    assert len(dashed) == 1
    assert len(dashed[0].get_paths()) == 2
    assert all(one.get_zorder() > dashed[0].get_zorder() for one in solid.values()), "a mark is hidden by an annotation"
    alone = collections(waterfall_figure(recording, waterfall))[0]
    assert to_rgba(COLOURS[0]) in alone


def test_tracks_are_numbered_and_the_legend_counts(recording: Recording) -> None:
    figure = detections_figure(
        recording, measure(recording), [FOUND, LATER, Mark("lte", 0.01, 0.02, CENTER, CENTER + 1e5)], "part"
    )
    assert {text.get_text() for text in figure.axes[0].texts} == {"#7", "#8"}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["lte (2)", "wifi (1)", "annotated (2)"]
    assert figure.axes[0].get_title(loc="right") == "part"


def test_what_lies_outside_of_the_stretch_is_not_drawn(recording: Recording) -> None:
    figure = detections_figure(recording, measure(recording, start_s=0.05, duration_s=0.04), [FOUND, LATER])
    solid, dashed = collections(figure)
    assert len(solid) == 1
    assert len(dashed[0].get_paths()) == 1
    assert {text.get_text() for text in figure.axes[0].texts} == {"#8"}


def test_nothing_found_in_a_recording_without_annotations_is_a_picture_too(tmp_path: Path) -> None:
    noise = np.ones(10_000, np.complex64)
    silent = open_recording(write_recording(tmp_path / "silent", noise, sample_rate_hz=RATE, center_hz=None))
    with Image.open(io.BytesIO(draw_detections(silent, []))) as picture:
        assert picture.format == "PNG"
    with pytest.raises(UserError, match="nothing lies"):
        draw_detections(silent, [], start_s=5.0)
