"""What is read of a sweep's cells, and how they are named and grouped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sweep_maker import EPOCHS, make_grid, make_search

from longhaul.insight.sweep_report.cells import families, models, read_cells
from longhaul.insight.sweep_report.groups import grouped, spread, test_metric
from longhaul.insight.sweep_report.search import Field, varied_fields
from longhaul.insight.sweep_report.tables import by_score, csv_bytes
from longhaul.resilience.run_directory import event_row
from longhaul.resilience.sweep_directory import SweepDirectory

test_metric.__test__ = False  # type: ignore[attr-defined]  # pytest takes it for one


def test_a_cell_holds_what_its_run_has_reached(small_grid: SweepDirectory) -> None:
    state = small_grid.state()
    first, _, _, skipped = read_cells(small_grid, state)
    assert (first.family, first.model, first.resolution, first.folder) == ("cnn", "simple_cnn", 32, "cnn/simple_cnn/32")
    assert first.learning is not None
    np.testing.assert_array_equal(first.learning.epochs, np.arange(1, EPOCHS + 1))
    np.testing.assert_allclose(first.learning.values, [score for _, score in state.cells[0].scores])
    assert first.confusion is not None
    assert first.confusion.matrix.sum() == 360
    assert (first.share_trained, skipped.share_trained) == (1.0, 0.0)
    assert skipped.run is None
    assert not first.problems


def test_a_curve_leaves_out_what_a_restart_undid(small_grid: SweepDirectory) -> None:
    state = small_grid.state()
    with small_grid.run(state.cells[0].key).metric_writer() as writer:
        for epoch in (7, 8):
            row = {"segment": 2, "step": epoch * 18, "epoch": float(epoch), "samples": 1, "time_s": 2e9, "name": state.goal}
            writer.append(**row, value=0.5)
    learning = read_cells(small_grid, state)[0].learning
    assert learning is not None
    assert learning.epochs.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert learning.values[-2:].tolist() == [0.5, 0.5]


def test_the_newest_confusion_matrix_of_the_test_split_counts(small_grid: SweepDirectory) -> None:
    state = small_grid.state()
    run = small_grid.run(state.cells[0].key)
    with run.event_writer() as events:
        for split, count in (("test", 7), ("val", 9)):
            detail = {"split": split, "classes": ["a", "b"], "matrix": [[count, 0], [0, count]]}
            events.append(**(event_row("confusion", "", segment=1, step=200, **detail) | {"time_s": 3e9 + count}))
    confusion = read_cells(small_grid, state)[0].confusion
    assert confusion is not None
    assert confusion.matrix.tolist() == [[7, 0], [0, 7]]


@pytest.mark.parametrize(
    "detail",
    [
        "[]",
        "7",
        "null",
        '"text"',
        '{"split": "test"}',
        '{"classes": ["a"], "matrix": [["x"]]}',
        '{"classes": 1, "matrix": [[1]]}',
        '{"classes": ["a", "b"], "matrix": [[1], [2, 3]]}',
        '{"classes": ["a"], "matrix": [[NaN]]}',
    ],
)
def test_an_event_of_another_content_is_told_and_costs_the_matrix_alone(small_grid: SweepDirectory, detail: str) -> None:
    state = small_grid.state()
    with small_grid.run(state.cells[0].key).event_writer() as events:
        events.append(**(event_row("confusion", "", segment=1, step=200) | {"time_s": 3e9, "detail": detail}))
    cell = read_cells(small_grid, state)[0]
    assert cell.confusion is None
    assert cell.learning is not None
    (problem,) = cell.problems
    assert problem.startswith("its events cannot be read: ")


def test_folds_share_a_group_and_have_folders_of_their_own(tmp_path: Path) -> None:
    sweep = make_grid(str(tmp_path), models=("tiny_cnn",), resolutions=(32, 64), ends={}, folds=3)
    cells = read_cells(sweep, sweep.state())
    assert [len(group.cells) for group in grouped(cells)] == [3, 3]
    assert len({cell.folder for cell in cells}) == 6
    assert cells[1].label == "tiny_cnn 32 px fold 1"
    together = grouped(cells)[0].score()
    assert together is not None
    assert together.deviation == pytest.approx(np.std([cell.record.score or 0 for cell in cells[:3]], ddof=1))


def test_a_search_numbers_its_trials_whatever_their_folds(tmp_path: Path) -> None:
    sweep = make_search(str(tmp_path), trials=3, folds=2)
    cells = read_cells(sweep, sweep.state(), searched=True)
    assert [cell.label for cell in cells[:3]] == ["trial 1 fold 0", "trial 1 fold 1", "trial 2 fold 0"]
    assert varied_fields(sweep.recipe(), cells)[:3] == [
        Field("training.optimizer.lr", "log"),
        Field("model.drop_rate", "linear"),
        Field("data.augment", "choices"),
    ]


def test_without_a_recipe_the_cells_tell_what_varies(tmp_path: Path) -> None:
    sweep = make_search(str(tmp_path), trials=6)
    found = {field.name: field.kind for field in varied_fields(None, read_cells(sweep, sweep.state()))}
    assert found["training.optimizer.lr"] == "log"
    assert found["data.augment"] == "choices"


def test_families_and_models_stand_in_their_own_order(tmp_path: Path) -> None:
    names = ("tiny_cnn", "convnext_tiny", "resnet34", "resnet18")
    ends = {(name, 32): ("planned", None) for name in names}
    sweep = make_grid(str(tmp_path), models=names, resolutions=(32,), ends=ends)  # type: ignore[arg-type]
    cells = read_cells(sweep, sweep.state())
    assert families(cells) == ["resnet", "cnn", "convnext"]
    assert models(cells) == ["resnet18", "resnet34", "tiny_cnn", "convnext_tiny"]


def test_scores_that_are_no_number_come_last(small_grid: SweepDirectory) -> None:
    state = small_grid.state()
    state.cells[0].score = float("nan")
    ordered = by_score(read_cells(small_grid, state), state)
    assert [cell.record.score is not None and cell.record.score > 0 for cell in ordered] == [True, True, False, False]
    state.direction = "min"
    scores = [cell.record.score or 0 for cell in by_score(read_cells(small_grid, state), state)[:2]]
    assert scores == sorted(scores)


def test_a_text_that_looks_like_a_formula_is_none_in_the_table(small_grid: SweepDirectory) -> None:
    state = small_grid.state()
    state.cells[0].reason = "=HYPERLINK(1)"
    assert b"'=HYPERLINK(1)" in csv_bytes(read_cells(small_grid, state), state)


def test_a_spread_is_of_the_finite_values() -> None:
    assert spread([None, float("nan")]) is None
    one = spread([0.5, None])
    assert one is not None
    assert (one.mean, one.deviation, one.count) == (0.5, 0.0, 1)
    assert test_metric("val/top1") == "test/top1"
