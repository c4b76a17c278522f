"""What the report's charts have in common: their size, their colours, their axes.

Colours are those of `insight.curves`; where resolution is drawn as a colour it goes from light to dark of one hue family.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from longhaul.insight.curves import CYCLE
from longhaul.insight.sweep_report.groups import is_share

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DPI = 130
CELL_DPI = 96  # of pictures on cells' own pages: a dot a pixel
_CROWDED = 1.25  # a factor between neighbouring resolutions at which their labels would touch
_DARKEST, _LIGHTEST = 0.88, 0.12


def panels(count: int, *, columns: int = 3, width: float = 4.3, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, a few a row; four stand two by two."""
    across = 2 if count == 4 else min(count, columns)
    rows = -(-count // across)
    room = ConstrainedLayoutEngine(h_pad=0.09)  # inches: a title keeps off the axis above it
    figure = Figure(figsize=(max(width * across, 5.2), height * rows), layout=room, dpi=DPI)
    flat = list(figure.subplots(rows, across, squeeze=False).flat)
    for spare in flat[count:]:
        figure.delaxes(spare)
    return figure, flat[:count]


def dress(axes: Axes, *, title: str = "", x: str = "", y: str = "", metric: str = "") -> None:
    """Quiet axes; `metric` decides whether the vertical one is in percent."""
    axes.set_title(title, fontsize=10.5)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, color="#E5E5E5", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if metric and is_share(metric):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{100 * value:g} %"))


def resolution_axis(axes: Axes, resolutions: Sequence[int]) -> None:
    """A logarithmic horizontal axis with the resolutions as its only ticks."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(resolutions)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:.0f}"))
    axes.set_xlim(min(resolutions) / 1.15, max(resolutions) * 1.15)
    axes.set_xlabel("resolution (px)")
    if any(high / low < _CROWDED for low, high in pairwise(sorted(resolutions))):
        axes.tick_params(axis="x", labelsize=8, rotation=60)


def log_axis(axes: Axes, room: float = 2000.0) -> None:
    """A logarithmic horizontal axis for what is drawn, with plain numbers.

    Args:
        axes: with everything on it.
        room: its ends may be such a factor apart for ticks at 1, 2 and 5 of each decade; else they are at 1.
    """
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < room else (1.0,)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))


def mark(number: int) -> dict[str, Any]:
    """Colour and marker of the number-th of several lines."""
    return {"color": CYCLE[number % len(CYCLE)], "marker": MARKERS[number % len(MARKERS)]}


def shades(count: int) -> list[Any]:
    """So many colours in an order that the eye sees, light first."""
    return [colormaps["viridis_r"](_LIGHTEST + (_DARKEST - _LIGHTEST) * place / max(count - 1, 1)) for place in range(count)]
