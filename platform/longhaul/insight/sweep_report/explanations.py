"""How explanations hold across resolutions: a chart a method over all models, and galleries of heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from longhaul.errors import LonghaulError
from longhaul.insight.explain.across import Consistency, compare, draw_across
from longhaul.insight.explain.attribution import METHODS, Method
from longhaul.insight.explain.consistency import Agreement
from longhaul.insight.explain.consistency_picture import consistency_picture
from longhaul.insight.explain.run_pictures import TITLES
from longhaul.insight.sweep_report.gathering import Explained

TOP_PERCENT = 20


def consistency_of(line: Sequence[Explained]) -> Consistency | None:
    """Of one model over its resolutions; None where it has only one, or the maps fit nowhere together."""
    if len(line) < 2:
        return None
    try:
        found = compare([one.explanation for one in line], [one.kept for one in line])
    except LonghaulError:  # `gathering.load_explained` has said why
        return None
    return found if found.pairs else None


def agreements(lines: Mapping[str, Consistency], method: Method) -> dict[str, list[tuple[int, Agreement]]]:
    """By a line's name, which says what it is measured against: each lower resolution in pixels, and its agreement with that.

    Args:
        lines: by what a model's line is called.
        method: lines without it are left out.
    """
    return {
        f"{name}, against {max(one.runs)} px": [(pair.low, pair.agreement) for pair in one.to_highest(method)]
        for name, one in lines.items()
        if one.to_highest(method)
    }


def consistency_pictures(lines: Mapping[str, Consistency]) -> dict[Method, bytes]:
    """For each method a PNG: agreement with the maps at each model's highest resolution, a line a model, and chance."""
    drawn = {}
    for method in METHODS:
        found = agreements(lines, method)
        if found:
            images = max(len(one.images) for one in lines.values() if one.to_highest(method))
            drawn[method] = consistency_picture(found, title=TITLES[method], images=images)
    return drawn


def gallery(line: Sequence[Explained]) -> dict[Method, bytes]:
    """For each method a PNG: the same images (rows) over the resolutions (columns), the maps on them."""
    drawn = draw_across([one.explanation for one in line], [one.kept for one in line], None)
    return {method: drawn[f"explain_{method}.png"] for method in METHODS if f"explain_{method}.png" in drawn}
