"""Detectors in a report: precision over recall of the best ones, average precision against what varies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sweep_maker import DETECTORS, SIGNALS, make_detection, make_grid

from longhaul.insight.sweep_report.cells import Cell, read_cells
from longhaul.insight.sweep_report.precision_recall import (
    best_figure,
    best_groups,
    best_text,
    by_fields_figure,
    by_resolution_figure,
)
from longhaul.insight.sweep_report.report import write_report
from longhaul.insight.sweep_report.search import varied_fields
from longhaul.resilience.run_directory import event_row
from longhaul.resilience.sweep_directory import SweepDirectory

from .conftest import NOTHING_MORE, read_page

FIRST, SECOND = DETECTORS


def cells_of(sweep: SweepDirectory) -> list[Cell]:
    return read_cells(sweep, sweep.state())


def test_a_sweep_of_detectors_has_a_section_of_its_own_and_each_cell_its_curves(tmp_path: Path) -> None:
    address = write_report(make_detection(str(tmp_path)), NOTHING_MORE)
    page = read_page(address)
    assert "detection" in page.anchors
    assert "On the test split, at IoU 0.5: the best cell of each model." in page.text
    assert {"precision-recall.png", "average-precision-resolution.png"} <= set(page.pictures)
    assert "confusion" not in page.anchors
    cell = read_page(str(Path(address).parent / f"faster_rcnn/{FIRST}/64/index.html"))
    assert set(cell.pictures) == {"curves.png", "precision-recall.png"}


def test_a_sweep_of_classifiers_has_no_such_section(reported: str) -> None:
    assert "detection" not in read_page(reported).anchors


def test_the_best_of_each_model_is_shown_with_the_curves_that_its_run_has_saved(tmp_path: Path) -> None:
    cells = cells_of(make_detection(str(tmp_path)))
    assert [group.label for group in best_groups(cells, "max")] == [f"{FIRST} 128 px", f"{SECOND} 128 px"]
    assert [group.label for group in best_groups(cells, "min")] == [f"{FIRST} 64 px", f"{SECOND} 64 px"]
    figure = best_figure(cells, "max")
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == [f"{FIRST} 128 px", f"{SECOND} 128 px"]
    best = next(cell for cell in cells if cell.label == f"{FIRST} 128 px").precision_recall
    assert best is not None
    labels = [f"{name}: average precision {curve.mean():.3f}" for name, curve in zip(SIGNALS, best.curves, strict=True)]
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == labels


def test_of_one_model_the_best_at_each_resolution_is_shown_and_of_one_resolution_the_best_few(tmp_path: Path) -> None:
    rates = (1e-2, 1e-3)
    sizes = cells_of(make_detection(str(tmp_path), "sizes", models=[FIRST], resolutions=(128, 64), rates=rates))
    assert [group.label for group in best_groups(sizes, "max")] == [f"{FIRST} 0.001 64 px", f"{FIRST} 0.001 128 px"]
    alone = cells_of(make_detection(str(tmp_path), "alone", models=[FIRST], resolutions=(64,), rates=(*rates, 1e-4)))
    best, *others = best_groups(alone, "max")
    assert (best.label, len(others)) == (f"{FIRST} 0.001 64 px", 2)


def test_folds_are_drawn_as_the_mean_of_their_curves(tmp_path: Path) -> None:
    cells = cells_of(make_detection(str(tmp_path), models=[FIRST], resolutions=(64,), folds=3))
    figure = best_figure(cells, "max")
    assert figure is not None
    assert figure.axes[0].get_title() == f"{FIRST} 64 px\nmean of 3 folds"
    curves = [cell.precision_recall.curves for cell in cells if cell.precision_recall is not None]
    drawn = np.asarray(figure.axes[0].get_lines()[0].get_ydata())
    np.testing.assert_allclose(drawn, np.mean(curves, axis=0)[0][: len(drawn)])


def test_titles_lie_within_their_panels(tmp_path: Path) -> None:
    cells = cells_of(make_detection(str(tmp_path), models=[SECOND], resolutions=(64, 96, 128), rates=(1e-2, 1e-3), folds=3))
    figure = best_figure(cells, "max")
    assert figure is not None
    figure.draw_without_rendering()
    for axes in figure.axes:
        title, panel = axes.title.get_window_extent(), axes.get_window_extent()
        assert panel.x0 <= title.x0 < title.x1 <= panel.x1
        assert title.y1 <= figure.bbox.y1
    assert [axes.get_title() for axes in figure.axes][-1] == f"{SECOND} 0.001\n128 px\nmean of 3 folds"


def test_the_text_says_which_cells_are_shown(tmp_path: Path) -> None:
    rates = tuple(10.0**-place for place in range(1, 9))
    models = cells_of(make_detection(str(tmp_path), "models"))
    sizes = [cell for cell in models if cell.model == FIRST]
    alone = cells_of(make_detection(str(tmp_path), "alone", models=[FIRST], resolutions=(64,), rates=rates))
    assert best_text(models, "max") == "On the test split, at IoU 0.5: the best cell of each model."
    assert best_text(sizes, "max") == "On the test split, at IoU 0.5: the best cell of each resolution."
    assert best_text(alone, "max") == "On the test split, at IoU 0.5: the best 6 cells."
    assert best_text(alone[:3], "max") == "On the test split, at IoU 0.5: all cells, the best first."
    assert best_text(alone[:1], "max") == "On the test split, at IoU 0.5: the only cell."
    without = [replace(cell, precision_recall=None) for cell in models]
    assert best_text(without, "max") == "No curves were saved."


def _failed(cell: Cell) -> Cell:
    """As a cell that failed before it was tested."""
    return replace(cell, record=cell.record.model_copy(update={"standing": "failed"}), results={}, precision_recall=None)


def test_a_combination_of_which_a_fold_failed_is_neither_among_the_best_nor_drawn_as_finished(tmp_path: Path) -> None:
    cells = cells_of(make_detection(str(tmp_path), models=[FIRST], resolutions=(64, 128), rates=(1e-2, 1e-3), folds=2))
    place = f"{FIRST} 0.001 128 px"
    assert place in [group.label for group in best_groups(cells, "max")]
    cells = [_failed(cell) if (cell.place, cell.fold) == (place, 1) else cell for cell in cells]
    assert [group.label for group in best_groups(cells, "max")] == [f"{FIRST} 0.001 64 px", f"{FIRST} 0.01 128 px"]
    figure = by_resolution_figure(cells)
    assert figure is not None
    hollow = [line for line in figure.axes[0].get_lines() if line.get_markerfacecolor() == "white"]
    assert [np.asarray(line.get_xdata()).tolist() for line in hollow] == [[128]]
    only = [_failed(cell) if cell.fold == 1 else cell for cell in cells]
    assert best_text(only, "max") == "No cell with curves was trained to its end in all folds."


def test_average_precision_is_drawn_against_the_coordinate_that_varies(tmp_path: Path) -> None:
    both = cells_of(make_detection(str(tmp_path), "both"))
    figure = by_resolution_figure(both)
    assert figure is not None
    line = next(one for one in figure.axes[0].get_lines() if len(np.asarray(one.get_xdata())) == 2)
    told = {(cell.model, cell.resolution): cell.results["test/map"] for cell in both}
    assert np.asarray(line.get_ydata()).tolist() == [told[FIRST, 64], told[FIRST, 128]]
    assert by_fields_figure(both, varied_fields(None, both)) is None
    one_size = cells_of(make_detection(str(tmp_path), "one-size", resolutions=(64,), rates=(1e-2, 1e-3)))
    assert by_resolution_figure(one_size) is None
    fields = by_fields_figure(one_size, varied_fields(None, one_size))
    assert fields is not None
    assert [axes.get_xlabel() for axes in fields.axes] == ["model.name", "training.optimizer.lr"]
    assert {axes.get_ylabel() for axes in fields.axes} == {"test/map"}


def test_classifiers_have_neither_curves_nor_average_precision(tmp_path: Path) -> None:
    cells = cells_of(make_grid(str(tmp_path), models=("tiny_cnn",), resolutions=(32, 64), ends={}))
    assert best_figure(cells, "max") is None
    assert by_resolution_figure(cells) is None
    assert by_fields_figure(cells, varied_fields(None, cells)) is None


@pytest.mark.parametrize(
    "detail",
    [
        "[]",
        '{"classes": ["a"], "curves": []}',
        '{"classes": ["a"], "curves": [[0.5], [0.5]]}',
        '{"classes": ["a", "b"], "curves": [[1, 0.5], [1]]}',
        '{"classes": ["a"], "curves": [[NaN, 1]]}',
        '{"classes": ["a"], "curves": [[1]]}',
    ],
)
def test_curves_of_another_content_are_told_and_cost_that_cell_its_curves_alone(tmp_path: Path, detail: str) -> None:
    sweep = make_detection(str(tmp_path), models=[FIRST], resolutions=(64,))
    with sweep.run(sweep.state().cells[0].key).event_writer() as events:
        events.append(**(event_row("pr_curves", "", segment=1, step=200) | {"time_s": 3e9, "detail": detail}))
    (cell,) = cells_of(sweep)
    assert cell.precision_recall is None
    assert cell.learning is not None
    (problem,) = cell.problems
    assert problem.startswith("its events cannot be read: ")
