"""Pictures of heat maps: over the images of one run, method by method; over the same images at several resolutions.

The image is grey, the map lies over it in one hue (for signed maps two: orange for the class, blue against it), the stronger
the more opaque. Each map is scaled by its own 99.5th percentile: maps of different images or methods have no common unit.
Colours are those of Okabe and Ito, readable with any colour vision; right and wrong are also told in words.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from longhaul.insight.curves import BLUE, RED, png

_FOR, _AGAINST = np.array([0.902, 0.624, 0.0]), np.array([0.0, 0.447, 0.698])  # Okabe and Ito's orange and blue
_OPAQUE = 0.9
_CELL_IN = 1.45  # inches a picture, with its caption
_DPI = 150
_FULL = 99.5  # percentile of a map's strength that gets the full colour: one odd pixel must not hide the rest

Floats = npt.NDArray[np.floating]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Panel:
    """One image with a map over it, or alone.

    Attributes:
        image: (S, S, 3) as the network saw it.
        heat: (S, S), or None.
        signed: whether the map's sign counts.
        caption: below the picture.
        right: whether the answer is right; None where that is not known or not told here.
    """

    image: Pixels
    heat: Floats | None = None
    signed: bool = False
    caption: str = ""
    right: bool | None = None


def panels_picture(
    rows: Sequence[Sequence[Panel]], columns: Sequence[str], names: Sequence[str], *, title: str, note: str
) -> bytes:
    """A PNG of panels.

    Args:
        rows: of panels, equally long.
        columns: what stands above each column.
        names: what stands before each row.
        title: above all.
        note: below all: what the colours mean.
    """
    signed = [panel.signed for row in rows for panel in row if panel.heat is not None]
    kinds = sorted(set(signed))
    width = max(len(columns) * _CELL_IN + 0.9 + 0.6 * len(kinds), 4.5)
    above, below = _folded(title, width, 11), _folded(f"{note}; each map by its own scale", width, 8)
    more_lines = above.count("\n") * 0.22 + below.count("\n") * 0.16
    figure = Figure(figsize=(width, len(rows) * (_CELL_IN + 0.12) + 1.0 + more_lines), layout="constrained", dpi=_DPI)
    figure.suptitle(above, fontsize=11)
    figure.supxlabel(below, fontsize=8, color="#555555")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for place, row in enumerate(rows):
        for column, panel in enumerate(row):
            axes: Axes = grid[place, column]
            _draw(axes, panel)
            if place == 0:
                axes.set_title(columns[column], fontsize=10)
        first: Axes = grid[place, 0]
        name = names[place].replace("$", r"\$")
        first.text(-0.06, 0.5, name, transform=first.transAxes, fontsize=9, ha="right", va="center")
    for kind in kinds:
        bar = figure.colorbar(_scale(signed=kind), ax=grid, fraction=0.02, pad=0.01, aspect=40 if len(rows) > 2 else 15)
        bar.set_ticks([-1, 0, 1] if kind else [0, 1], labels=["against", "0", "for"] if kind else ["0", "largest"])
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)
    return png(figure)


def caption(answer: str, truth: str | None, probability: float) -> str:
    """What is written below an image: `7, 98 %`; of a wrong answer `1, not 7, 60 %`."""
    said = answer if truth is None or answer == truth else f"{answer}, not {truth}"
    return f"{said}, {probability:.0%}"


def overlay(image: Pixels, heat: Floats, *, signed: bool) -> Floats:
    """(S, S, 3) in 0..1: the image in grey with the map over it.

    Args:
        image: (S, S, 3).
        heat: (S, S).
        signed: whether what is below zero speaks against the class.
    """
    grey = 0.15 + 0.7 * (image.astype(np.float64) / 255) @ np.array([0.299, 0.587, 0.114])
    full = float(np.percentile(np.abs(heat), _FULL)) or float(np.abs(heat).max()) or 1.0
    share = np.clip(heat.astype(np.float64) / full, -1 if signed else 0, 1)
    colour = np.where((share < 0)[..., None], _AGAINST, _FOR)
    opacity = _OPAQUE * np.abs(share)[..., None]
    mixed: Floats = (1 - opacity) * grey[..., None] + opacity * colour
    return mixed


def _folded(text: str, width: float, points: float) -> str:
    """The text in lines that fit `width` inches in a letter's size; a letter takes 0.55 of its height, more than on average."""
    plain = text.replace("$", r"\$")
    return textwrap.fill(plain, max(int(width * 72 / (0.55 * points)), 1))


def _draw(axes: Axes, panel: Panel) -> None:
    shown = panel.image if panel.heat is None else overlay(panel.image, panel.heat, signed=panel.signed)
    axes.imshow(shown, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if panel.caption:
        # A dollar sign in a class name would start mathematics.
        text = panel.caption.replace("$", r"\$")
        axes.set_xlabel(text, fontsize=8, labelpad=2, color={True: BLUE, False: RED, None: "black"}[panel.right])


def _scale(*, signed: bool) -> ScalarMappable:
    """The colours as they lie over middle grey."""
    middle = np.full(3, 0.5)
    ends = [(1 - _OPAQUE) * middle + _OPAQUE * colour for colour in (_AGAINST, _FOR)]
    colours = [ends[0], middle, ends[1]] if signed else [middle, ends[1]]
    colour_map = LinearSegmentedColormap.from_list("heat", [tuple(colour) for colour in colours])
    return ScalarMappable(Normalize(-1 if signed else 0, 1), colour_map)
