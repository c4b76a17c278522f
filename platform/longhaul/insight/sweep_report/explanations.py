"""How explanations hold across resolutions: one chart over all models, and a gallery of heat maps for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from longhaul.errors import LonghaulError
from longhaul.insight.curves import GREY
from longhaul.insight.explain.across import Consistency, compare, draw_across
from longhaul.insight.explain.attribution import METHODS, Method
from longhaul.insight.explain.run_pictures import TITLES
from longhaul.insight.sweep_report.gathering import Explained
from longhaul.insight.sweep_report.look import dress, mark, panels, resolution_axis

TOP_PERCENT = 20


def consistency_of(line: Sequence[Explained]) -> Consistency | None:
    """Of one model over its resolutions; None where it has only one, or the maps fit nowhere together."""
    if len(line) < 2:
        return None
    try:
        found = compare([one.explanation for one in line], [one.kept for one in line])
    except LonghaulError:  # other images, or a grid of another size: nothing to compare
        return None
    return found if found.pairs else None


def consistency_figure(lines: Mapping[str, Consistency]) -> Figure | None:
    """A panel a method: rank correlation with the maps at the highest resolution, a line a model, its 95 % interval.

    Grey is chance, the same comparison between different images: from the lowest to the highest of the models.

    Args:
        lines: by what a model's line is called.
    """
    methods = [method for method in METHODS if any(one.to_highest(method) for one in lines.values())]
    if not methods:
        return None
    resolutions = sorted({pair.low for one in lines.values() for pair in one.pairs if pair.high == max(one.runs)})
    figure, grid = panels(len(methods), width=4.6)
    for method, axes in zip(methods, grid, strict=True):
        _draw_chance(axes, lines, method, resolutions)
        for number, (name, one) in enumerate(lines.items()):
            _draw_line(axes, one, method, name, number, len(lines))
        axes.axhline(0, color=GREY, linewidth=0.7)
        dress(axes, title=TITLES[method], y="rank correlation with the highest")
        resolution_axis(axes, resolutions)
        axes.set_ylim(top=1.03)
    many = len(lines) > 8
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=8, loc="outside lower center", ncols=5 if many else min(len(names), 4))
    return figure


def gallery(line: Sequence[Explained]) -> dict[Method, bytes]:
    """For each method a PNG: the same images (rows) over the resolutions (columns), the maps on them."""
    drawn = draw_across([one.explanation for one in line], [one.kept for one in line], None)
    return {method: drawn[f"explain_{method}.png"] for method in METHODS if f"explain_{method}.png" in drawn}


def _draw_line(axes: Axes, one: Consistency, method: Method, name: str, number: int, count: int) -> None:
    pairs = one.to_highest(method)
    if not pairs:
        return
    look = mark(number)
    estimates = [pair.agreement.rank_correlation for pair in pairs]
    means = np.asarray([estimate.mean for estimate in estimates])
    aside = 1 + 0.012 * (number - (count - 1) / 2)  # intervals of several models beside each other
    x = [pair.low * aside for pair in pairs]
    low = means - np.asarray([e.mean if e.low is None else e.low for e in estimates])
    high = np.asarray([e.mean if e.high is None else e.high for e in estimates]) - means
    axes.plot(x, means, linewidth=1.6, markersize=5, label=name, **look)
    axes.errorbar(x, means, yerr=[low, high], fmt="none", ecolor=look["color"], elinewidth=0.8, alpha=0.6)


def _draw_chance(axes: Axes, lines: Mapping[str, Consistency], method: Method, resolutions: Sequence[int]) -> None:
    chances: dict[int, list[float]] = {}
    for one in lines.values():
        for pair in one.to_highest(method):
            if pair.agreement.rank_correlation.chance is not None:
                chances.setdefault(pair.low, []).append(pair.agreement.rank_correlation.chance)
    there = [size for size in resolutions if size in chances]
    if there:
        low, high = [min(chances[size]) for size in there], [max(chances[size]) for size in there]
        axes.fill_between(there, low, high, color=GREY, alpha=0.25, linewidth=0)
        means = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
        axes.plot(there, means, color=GREY, linestyle="--", marker="_", markersize=12, label="chance")
        if len(there) == 1:  # no width to fill
            axes.vlines(there, low, high, color=GREY, alpha=0.25, linewidth=12)
