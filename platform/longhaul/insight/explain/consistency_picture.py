"""Agreement of heat maps over resolution, with its confidence and with chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from longhaul.insight.curves import BLUE, GREEN, GREY, ORANGE, png
from longhaul.insight.explain.consistency import Agreement, Estimate

_LOOKS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"))
_TOP = 20  # percent
_APART = 0.012  # share of a resolution by which the methods' points stand apart, so that their bars do not cover each other


def consistency_picture(agreements: Mapping[str, Sequence[tuple[int, Agreement]]], *, title: str, images: int) -> bytes:
    """A PNG: rank correlation, and IoU of the top 20 %, with the highest resolution, a line a method.

    Args:
        agreements: by the method's title, (resolution in pixels, agreement), ascending.
        title: shown above.
        images: how many each point is a mean over.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained", dpi=150)
    figure.suptitle(title, fontsize=12)
    note = f"mean over {images} images with its 95 % interval (bootstrap); dashed: chance, maps of different images"
    figure.supxlabel(note, fontsize=8, color="#555555")
    ranks, overlaps = figure.subplots(1, 2)
    for number, (name, points) in enumerate(agreements.items()):
        _line(ranks, [(side, one.rank_correlation) for side, one in points], name, number)
        _line(overlaps, [(side, one.top_iou[_TOP]) for side, one in points], name, number)
    sides = sorted({side for points in agreements.values() for side, _ in points})
    _dress(ranks, "rank correlation (Spearman)", sides)
    _dress(overlaps, f"IoU of the top {_TOP} %", sides)
    overlaps.set_ylim(0, 1.02)
    low = min((e.low if e.low is not None else e.mean for p in agreements.values() for _, a in p for e in [a.rank_correlation]))
    ranks.set_ylim(min(low - 0.05, -0.05), 1.02)
    ranks.axhline(0, color=GREY, linewidth=0.7)
    return png(figure)


def _line(axes: Axes, points: Sequence[tuple[int, Estimate]], name: str, number: int) -> None:
    colour, marker = _LOOKS[number % len(_LOOKS)]
    shift = 1 + _APART * (number - 1)
    sides, means = [side * shift for side, _ in points], [one.mean for _, one in points]
    below = [one.mean - (one.mean if one.low is None else one.low) for _, one in points]
    above = [(one.mean if one.high is None else one.high) - one.mean for _, one in points]
    axes.errorbar(
        sides, means, yerr=[below, above], color=colour, marker=marker, markersize=5, linewidth=1.8, capsize=3, label=name
    )
    chance = [one.chance for _, one in points if one.chance is not None]
    if len(chance) == len(points):
        axes.plot(sides, chance, color=colour, linestyle="--", linewidth=1, marker=marker, markersize=3, alpha=0.8)


def _dress(axes: Axes, label: str, sides: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(list(sides), [str(side) for side in sides])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(min(sides) * 0.9, max(sides) * 1.1)
    axes.set_xlabel("resolution in pixels")
    axes.set_ylabel(label)
    axes.grid(visible=True, color="#E5E5E5", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
