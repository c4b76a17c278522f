"""A picture of a recording: power over time and frequency, with a box for every annotation.

Power is that of a Hann window's FFT, scaled so that a tone at full scale has 0 dB. Of a long recording every column is made
from a short run of frames at its place, so what is read is bounded, however long the recording.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import ScalarFormatter

from longhaul.errors import UserError
from longhaul.insight.curves import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, png
from longhaul.signals.recording import Annotation, Recording

COLOURS = (ORANGE, SKY, GREEN, PURPLE, RED, BLUE)
_DASHES: tuple[Literal["-", "--", ":"], ...] = ("-", "--", ":")  # the second mark of a label, when the colours are used up
_COLUMNS = 1400  # about the picture's width in dots
_WHOLE = 16  # frames a column up to which all samples are read
_SPREAD = 8  # frames of a column that is longer
_SHORTEST, _LONGEST = 64, 1024  # samples a frame
_NAMED_BOXES = 24  # more than these are told apart by the legend alone
_LEGEND = 12
_DPI = 150

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Waterfall:
    """Power over time and frequency.

    Attributes:
        power_db: (columns, bins), by time and by ascending frequency; 0 dB is a tone at full scale.
        start_s, stop_s: what of the recording it shows.
        share: of that stretch's samples, which part was read.
    """

    power_db: Floats
    start_s: float
    stop_s: float
    share: float


def draw_waterfall(recording: Recording, *, start_s: float = 0.0, duration_s: float | None = None) -> bytes:
    """A recording's waterfall with its annotations, as PNG.

    Args:
        recording: what to draw.
        start_s: where the stretch to draw begins.
        duration_s: its length; to the end without one.

    Raises:
        UserError: the stretch is not in the recording, too short to draw, or has samples that are NaN.
    """
    return png(waterfall_figure(recording, measure(recording, start_s=start_s, duration_s=duration_s)))


def measure(recording: Recording, *, start_s: float = 0.0, duration_s: float | None = None) -> Waterfall:
    """The power of a stretch of a recording; arguments and errors as for `draw_waterfall`."""
    first, last = _stretch(recording, start_s, duration_s)
    length = last - first
    # a frame of about the square root of the samples resolves time and frequency alike
    size = int(np.clip(2 ** round(np.log2(length) / 2), _SHORTEST, _LONGEST))
    columns = min(_COLUMNS, max(1, 2 * length // size - 1))
    places = np.linspace(first, last, columns + 1).astype(np.int64)
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    out = np.empty((columns, size), dtype=np.float32)
    read = 0
    for column, (begin, end) in enumerate(pairwise(places.tolist())):
        frames = -(-(end - begin) // size)
        frames = min(frames if frames <= _WHOLE else _SPREAD, length // size)
        samples = recording.read(max(first, min(begin, last - frames * size)), frames * size).reshape(-1, size)
        spectrum = np.fft.fft(samples * window, axis=1)
        out[column] = np.mean(spectrum.real**2 + spectrum.imag**2, axis=0)
        read += samples.size
    power = np.fft.fftshift(out, axes=1) / window.sum() ** 2
    rate = recording.sample_rate_hz
    return Waterfall(10 * np.log10(np.maximum(power, 1e-20)), first / rate, last / rate, min(1.0, read / length))


def waterfall_figure(recording: Recording, waterfall: Waterfall) -> Figure:
    """The figure: time from left to right, frequency upwards, in MHz at RF where the centre is known."""
    figure, axes = power_figure(recording, waterfall)
    _draw_boxes(figure, axes, recording, waterfall)
    return figure


def power_figure(recording: Recording, waterfall: Waterfall) -> tuple[Figure, Axes]:
    """The figure without boxes, and its axes: seconds and MHz."""
    figure = Figure(figsize=(12, 6.6), layout="constrained", dpi=_DPI)
    axes = figure.add_subplot()
    center = recording.center_hz or 0.0
    half = recording.sample_rate_hz / 2
    low, high = np.percentile(waterfall.power_db, (25, 99.8))  # most of the noise stays pale, so boxes and bursts stand out
    image = axes.imshow(
        waterfall.power_db.T,
        origin="lower",
        aspect="auto",
        cmap="Greys",
        vmin=low,
        vmax=max(high, low + 20),
        extent=(waterfall.start_s, waterfall.stop_s, (center - half) / 1e6, (center + half) / 1e6),
    )
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.015)
    bar.set_label("power a bin (dB, a full-scale tone is 0)")
    bar.outline.set_visible(False)
    axes.set_xlabel("time (s)")
    axes.set_ylabel("frequency (MHz)" if recording.center_hz is not None else "frequency from the centre (MHz)")
    axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    axes.set_title(_title(recording, waterfall), fontsize=11, loc="left")
    return figure, axes


def _stretch(recording: Recording, start_s: float, duration_s: float | None) -> tuple[int, int]:
    length = recording.duration_s if duration_s is None else start_s + duration_s
    if not 0 <= start_s < recording.duration_s or not length > start_s:
        wanted = f"from {start_s:g} s" if duration_s is None else f"from {start_s:g} s for {duration_s:g} s"
        raise UserError(
            f"{recording.path.name}: nothing lies {wanted} in a recording of {recording.duration_s:g} s",
            "Give a start within it and a duration above 0",
        )
    first = round(start_s * recording.sample_rate_hz)
    last = min(recording.samples, round(length * recording.sample_rate_hz))
    if last - first < _SHORTEST:
        raise UserError(
            f"{recording.path.name}: {last - first} samples are too few to draw",
            f"Give a stretch of at least {_SHORTEST} samples",
        )
    return first, last


def _title(recording: Recording, waterfall: Waterfall) -> str:
    parts = [recording.name, f"{recording.datatype} at {recording.sample_rate_hz / 1e6:g} MS/s"]
    if recording.started is not None:
        parts.append(f"{recording.started:%Y-%m-%d %H:%M:%S} UTC")
    if waterfall.share < 0.99:
        parts.append(
            f"drawn from {waterfall.share:.2g} of the samples" if waterfall.share < 0.01 else f"drawn from {waterfall.share:.0%}"
        )
    return "   ".join(parts)


def _draw_boxes(figure: Figure, axes: Axes, recording: Recording, waterfall: Waterfall) -> None:
    """A box for each annotation in the stretch, in its label's colour, and a legend with how many of each there are."""
    rate, center = recording.sample_rate_hz, recording.center_hz or 0.0
    first, last = waterfall.start_s * rate, waterfall.stop_s * rate
    shown = [one for one in recording.annotations if one.start < last and one.stop > first]
    if not shown:
        return
    width = 1.2 if len(shown) <= _NAMED_BOXES else 0.8
    halo = [withStroke(linewidth=width + 0.8, foreground="white", alpha=0.7)]
    keys = []
    for number, label in enumerate(sorted({one.label for one in recording.annotations})):
        boxes = [annotation_box(one, rate, center) for one in shown if one.label == label]
        if not boxes:
            continue
        colour, dashes = COLOURS[number % len(COLOURS)], _DASHES[number // len(COLOURS) % len(_DASHES)]
        collection = PatchCollection(
            boxes, facecolor="none", edgecolor=colour, linewidth=width, linestyle=dashes, path_effects=halo
        )
        area = float(np.mean([box.get_width() * box.get_height() for box in boxes]))
        collection.set_zorder(2 + 1 / (1 + area))  # a small box is drawn over a large one
        axes.add_collection(collection, autolim=False)
        keys.append(Line2D([], [], color=colour, linestyle=dashes, linewidth=2, label=f"{short(label)} ({len(boxes)})"))
    if len(keys) > _LEGEND:
        keys[_LEGEND:] = [Line2D([], [], linestyle="none", label=f"and {len(keys) - _LEGEND} more")]
    figure.legend(handles=keys, loc="outside lower center", ncols=min(6, len(keys)), frameon=False, fontsize=10)
    if len(shown) <= _NAMED_BOXES and len(keys) > 1:
        name_boxes(axes, [(one.label, annotation_box(one, rate, center)) for one in shown])


def annotation_box(annotation: Annotation, rate: float, center: float) -> Rectangle:
    """An annotation's box in seconds and MHz; rate and centre of the recording in Hz."""
    corner = (annotation.start / rate, (center + annotation.low_hz) / 1e6)
    return Rectangle(corner, annotation.count / rate, (annotation.high_hz - annotation.low_hz) / 1e6)


def name_boxes(axes: Axes, boxes: list[tuple[str, Rectangle]]) -> None:
    """Each box's label above its left corner, unless another one is there already."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    taken: list[tuple[float, float, float]] = []
    for label, box in sorted(boxes, key=lambda named: named[1].get_x()):
        text = short(label)
        across = (max(box.get_x(), left) - left) / (right - left)
        up = min((box.get_y() + box.get_height() - bottom) / (top - bottom) + 0.006, 0.965)
        wide = 0.0075 * len(text)
        across = min(across, 1 - wide)
        if all(across > end or across + wide < begin or abs(up - height) > 0.035 for begin, end, height in taken):
            taken.append((across, across + wide, up))
            axes.text(
                across,
                up,
                text,
                transform=axes.transAxes,
                fontsize=8,
                va="bottom",
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )


def short(label: str) -> str:
    """A label that fits into a legend."""
    return label if len(label) <= 24 else label[:23] + "…"
