"""A recording's waterfall with what was detected: boxes by label, annotations beside them, tracks named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from longhaul.insight.curves import png
from longhaul.insight.waterfall import COLOURS, Waterfall, annotation_box, measure, name_boxes, power_figure, short
from longhaul.signals.recording import Recording

_ANNOTATED = "#202020"
_LEGEND = 10
_MANY = 40


@dataclass(frozen=True)
class Mark:
    """Something that was found in a recording.

    Attributes:
        label: what it is.
        start_s, end_s: when, from the recording's first sample.
        low_hz, high_hz: its band; from the centre where the recording does not say its own.
        track: the number of the track that it belongs to, where one is known.
    """

    label: str
    start_s: float
    end_s: float
    low_hz: float
    high_hz: float
    track: int | None = None


def draw_detections(
    recording: Recording, marks: Sequence[Mark], *, start_s: float = 0.0, duration_s: float | None = None, note: str = ""
) -> bytes:
    """The waterfall of a stretch as PNG: marks in their labels' colours, annotations thin and dashed.

    Args:
        recording: what they were found in.
        marks: what was found; those outside of the stretch are not drawn.
        start_s: where the stretch begins.
        duration_s: its length; to the end without one.
        note: stands at the picture's right above, such as that models were missing.

    Raises:
        UserError: as for `insight.waterfall.draw_waterfall`.
    """
    return png(detections_figure(recording, measure(recording, start_s=start_s, duration_s=duration_s), marks, note))


def detections_figure(recording: Recording, waterfall: Waterfall, marks: Sequence[Mark], note: str = "") -> Figure:
    """The figure of `draw_detections`, over a waterfall that was measured."""
    figure, axes = power_figure(recording, waterfall)
    shown = [mark for mark in marks if mark.start_s < waterfall.stop_s and mark.end_s > waterfall.start_s]
    keys = _draw_annotations(axes, recording, waterfall)
    labels = sorted({one.label for one in recording.annotations} | {mark.label for mark in marks})  # as annotations are drawn
    keys = [*_draw_marks(axes, shown, labels), *keys]
    if note:
        axes.set_title(note, fontsize=11, loc="right", color=COLOURS[0])
    if keys:
        figure.legend(handles=keys, loc="outside lower center", ncols=min(6, len(keys)), frameon=False, fontsize=10)
    _name_tracks(axes, shown)
    return figure


def _draw_annotations(axes: Axes, recording: Recording, waterfall: Waterfall) -> list[Line2D]:
    rate, center = recording.sample_rate_hz, recording.center_hz or 0.0
    first, last = waterfall.start_s * rate, waterfall.stop_s * rate
    boxes = [annotation_box(one, rate, center) for one in recording.annotations if one.start < last and one.stop > first]
    if not boxes:
        return []
    dashes = (0, (3, 2))
    collection = PatchCollection(boxes, facecolor="none", edgecolor=_ANNOTATED, linewidth=0.9, linestyle=[dashes])
    collection.set_path_effects([withStroke(linewidth=2.2, foreground="white", alpha=0.8)])  # seen on dark bursts, too
    collection.set_zorder(1.5)  # below the marks: what is dashed alone was missed
    axes.add_collection(collection, autolim=False)
    return [Line2D([], [], color=_ANNOTATED, linestyle=dashes, linewidth=1, label=f"annotated ({len(boxes)})")]


def _draw_marks(axes: Axes, marks: Sequence[Mark], labels: Sequence[str]) -> list[Line2D]:
    """A collection for each label, in its colour; returns the legend's entries."""
    counts = Counter(mark.label for mark in marks)
    width = 1.6 if len(marks) <= _MANY else 1.1
    halo = [withStroke(linewidth=width + 1, foreground="white", alpha=0.8)]
    keys = []
    for label in sorted(counts):
        boxes = [_box(mark) for mark in marks if mark.label == label]
        colour = COLOURS[labels.index(label) % len(COLOURS)]
        collection = PatchCollection(boxes, facecolor="none", edgecolor=colour, linewidth=width, path_effects=halo)
        area = float(np.mean([box.get_width() * box.get_height() for box in boxes]))
        collection.set_zorder(2 + 1 / (1 + area))  # a small box is drawn over a large one
        axes.add_collection(collection, autolim=False)
        keys.append(Line2D([], [], color=colour, linewidth=2, label=f"{short(label)} ({counts[label]})"))
    if len(keys) > _LEGEND:
        keys[_LEGEND:] = [Line2D([], [], linestyle="none", label=f"and {len(keys) - _LEGEND} more labels")]
    return keys


def _name_tracks(axes: Axes, marks: Sequence[Mark]) -> None:
    """The number of a mark's track above it, as far as there is room."""
    name_boxes(axes, [(f"#{mark.track}", _box(mark)) for mark in marks if mark.track is not None])


def _box(mark: Mark) -> Rectangle:
    return Rectangle((mark.start_s, mark.low_hz / 1e6), mark.end_s - mark.start_s, (mark.high_hz - mark.low_hz) / 1e6)
