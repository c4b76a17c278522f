"""Agreement of heat maps over resolution, with its confidence and with chance: of one model's methods, or of several models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from longhaul.insight.curves import CYCLE, GREY, png
from longhaul.insight.explain.consistency import Agreement, Estimate

_MARKERS = "os^Dv"  # five, of seven colours: 35 lines look differently
_TOP = 20  # percent
_APART = 0.012  # share of a resolution by which the lines' points stand apart, so that their bars do not cover each other
_CHANCE = "chance"
_BESIDE = 2  # more lines than these stand beside the panels: in them their names would cover the curves


def consistency_picture(agreements: Mapping[str, Sequence[tuple[int, Agreement]]], *, title: str, images: int) -> bytes:
    """`consistency_figure` as PNG."""
    return png(consistency_figure(agreements, title=title, images=images))


def consistency_figure(agreements: Mapping[str, Sequence[tuple[int, Agreement]]], *, title: str, images: int) -> Figure:
    """Rank correlation, and IoU of the top 20 %, with the maps at a resolution of reference.

    Args:
        agreements: by what a line is called, (resolution in pixels, agreement with the reference), ascending. Where lines have
            other references than the title says, each line's name says its own: `resnet18, against 96 px`.
        title: shown above.
        images: how many each point is a mean over, at most.
    """
    figure = Figure(figsize=(10 if len(agreements) <= _BESIDE else 12, 4.2), layout="constrained", dpi=150)
    figure.suptitle(title, fontsize=12)
    note = f"mean over {images} images with its 95 % interval (Student's t); chance: maps of different images"
    figure.supxlabel(note, fontsize=8, color="#555555")
    ranks, overlaps = figure.subplots(1, 2)
    for number, (name, points) in enumerate(agreements.items()):
        shift = 1 + _APART * (number - (len(agreements) - 1) / 2)
        look = {"color": CYCLE[number % len(CYCLE)], "marker": _MARKERS[number % len(_MARKERS)]}
        _line(ranks, [(side, one.rank_correlation) for side, one in points], name, shift, look)
        _line(overlaps, [(side, one.top_iou[_TOP]) for side, one in points], name, shift, look)
    sides = sorted({side for points in agreements.values() for side, _ in points})
    _dress(ranks, "rank correlation (Spearman)", sides)
    _dress(overlaps, f"IoU of the top {_TOP} %", sides)
    if len(agreements) > _BESIDE:
        figure.legend(handles=_handles(ranks), frameon=False, fontsize=8, loc="outside right upper")
    else:
        for axes in (ranks, overlaps):
            axes.legend(handles=_handles(axes), frameon=False, fontsize=9)
    overlaps.set_ylim(0, 1.02)
    found = [one.rank_correlation for points in agreements.values() for _, one in points]
    low = min(one.mean if one.low is None else one.low for one in found)
    ranks.set_ylim(min(low - 0.05, -0.05), 1.02)
    ranks.axhline(0, color=GREY, linewidth=0.7)
    return figure


def _handles(axes: Axes) -> list[Artist]:
    """The lines, and what chance looks like: of two resolutions it is one small mark, which nobody would take for dashed."""
    handles: list[Artist] = [*axes.get_legend_handles_labels()[0]]
    if any(line.get_gid() == _CHANCE for line in axes.get_lines()):
        small = Line2D([], [], color=GREY, linestyle="--", linewidth=1, marker="o", markersize=3, label=_CHANCE)
        handles.append(small)
    return handles


def _line(axes: Axes, points: Sequence[tuple[int, Estimate]], name: str, shift: float, look: Mapping[str, str]) -> None:
    sides, means = [side * shift for side, _ in points], [one.mean for _, one in points]
    below = [one.mean - (one.mean if one.low is None else one.low) for _, one in points]
    above = [(one.mean if one.high is None else one.high) - one.mean for _, one in points]
    colour, marker = look["color"], look["marker"]
    axes.errorbar(
        sides, means, yerr=[below, above], color=colour, marker=marker, markersize=5, linewidth=1.8, capsize=3, label=name
    )
    chance = [one.chance for _, one in points if one.chance is not None]
    if len(chance) == len(points):
        axes.plot(sides, chance, color=colour, linestyle="--", linewidth=1, marker=marker, markersize=3, alpha=0.8, gid=_CHANCE)


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
