"""A picture of profiles: what operations on paper cost in time."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from longhaul.errors import UserError
from longhaul.insight.curves import CYCLE, GREY
from longhaul.insight.profile_table import Row

_MARKS = "os^Dv"


def cost_figure(table: Sequence[Row]) -> Figure:
    """Latency of one image (median) over GFLOPs, a line a network through its resolutions; both axes logarithmic.

    Raises:
        UserError: nothing was measured.
    """
    points: dict[str, list[tuple[float, float, int]]] = {}
    measured = [row for row in table if row.profile is not None]
    for row in measured:
        assert row.profile is not None
        points.setdefault(row.model, []).append((row.profile.count.flops / 1e9, row.profile.single.p50_ms, row.resolution))
    if not points:
        raise UserError("picture: nothing was measured", "Leave out --count-only")
    first = measured[0].profile
    assert first is not None
    resolutions = sorted({row.resolution for row in measured})
    several = len(resolutions) > 1
    figure = Figure(figsize=(9, 5.4), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    for number, (name, line) in enumerate(points.items()):
        xs, ys, sides = zip(*sorted(line), strict=True)
        colour, mark = CYCLE[number % len(CYCLE)], _MARKS[number // len(CYCLE) % len(_MARKS)]
        axes.plot(xs, ys, color=colour, marker=mark, markersize=6, linewidth=1.2, label=name)
        for x, y, side in zip(xs, ys, sides, strict=True) if several else ():
            axes.annotate(str(side), (x, y), xytext=(4, -9), textcoords="offset points", fontsize=7, color=GREY)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("GFLOPs of one image (1 multiply-add = 2)")
    axes.set_ylabel("latency of one image, median (ms)")
    shown = "numbers: resolution in px" if several else f"{resolutions[0]} px"
    axes.set_title(f"{first.device}, {first.precision}, CPU threads: {first.threads}; {shown}", fontsize=10)
    axes.grid(visible=True, which="major", color="#E5E5E5", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure
