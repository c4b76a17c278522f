"""The goal against the resolution: lines of a grid, points of a search."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sweep_maker import GOAL, make_detection, make_grid, make_search

from longhaul.insight.sweep_report.accuracy import accuracy_figure
from longhaul.insight.sweep_report.cells import read_cells


def test_of_a_search_over_resolution_each_trial_is_a_point_of_its_models_colour(tmp_path: Path) -> None:
    sweep = make_search(str(tmp_path), trials=12)
    cells = read_cells(sweep, sweep.state(), searched=True)
    sizes = (32, 64, 48, 96)
    spread = [replace(cell, resolution=sizes[i % 4], model=("tiny_cnn", "simple_cnn")[i % 2]) for i, cell in enumerate(cells)]
    figure = accuracy_figure(spread, GOAL)
    assert figure is not None
    (axes,) = figure.axes
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["tiny_cnn", "simple_cnn"]
    assert not axes.get_lines()  # nothing joins trials that differ in more than the resolution
    assert sum(len(points.get_offsets()) for points in axes.collections) == 12


def test_of_a_grid_each_line_is_a_model_and_its_variant(tmp_path: Path) -> None:
    sweep = make_grid(str(tmp_path), models=("tiny_cnn",), resolutions=(32, 48), ends={})
    figure = accuracy_figure(read_cells(sweep, sweep.state()), GOAL)
    assert figure is not None
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["tiny_cnn", "test/top1"]


@pytest.mark.parametrize("resolutions", [(64, 128), (128, 160, 192)])  # the latter's numbers stand aslant, and take more room
def test_many_names_cover_neither_lines_nor_the_axis_and_are_all_in_the_picture(
    tmp_path: Path, resolutions: tuple[int, ...]
) -> None:
    sweep = make_detection(str(tmp_path), resolutions=resolutions, rates=(1e-2, 1e-3))
    figure = accuracy_figure(read_cells(sweep, sweep.state()), "val/map50")
    assert figure is not None
    figure.draw_without_rendering()
    (axes,) = figure.axes
    legend = axes.get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 5
    names, label = legend.get_window_extent(), axes.xaxis.label.get_window_extent()
    assert not names.overlaps(axes.get_window_extent())
    assert not names.overlaps(label)
    assert names.y0 >= 0
    assert axes.get_window_extent().height > 200  # the panel keeps its height
