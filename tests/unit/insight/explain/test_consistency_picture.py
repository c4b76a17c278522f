"""The chart of agreement over resolution: what chance is must be told however few points there are."""

from __future__ import annotations

import pytest

from longhaul.insight.explain.consistency import Agreement, Estimate
from longhaul.insight.explain.consistency_picture import consistency_figure


def _points(sides: tuple[int, ...], chance: float | None) -> list[tuple[int, Agreement]]:
    one = Estimate(mean=0.6, low=0.5, high=0.7, chance=chance, images=(0.6,) * 6)
    return [(side, Agreement(rank_correlation=one, top_iou={20: one})) for side in sides]


@pytest.mark.parametrize(("lines", "sides"), [(1, (24,)), (2, (24, 32)), (3, (24, 32))])
def test_what_chance_looks_like_is_among_the_names_once(lines: int, sides: tuple[int, ...]) -> None:
    drawn = {f"model {number}": _points(sides, 0.24) for number in range(lines)}
    figure = consistency_figure(drawn, title="saliency", images=6)
    legends = figure.legends or [legend for axes in figure.axes if (legend := axes.get_legend()) is not None]
    assert legends
    for legend in legends:
        assert [text.get_text() for text in legend.get_texts()] == [*drawn, "chance"]


def test_without_pairs_of_images_there_is_no_chance_to_name() -> None:
    figure = consistency_figure({"model": _points((24,), None)}, title="saliency", images=1)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["model"]
