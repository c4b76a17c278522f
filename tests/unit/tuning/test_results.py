"""The table of a sweep: one row a cell, which pandas and others can read."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from sweep_maker import ENDS, make_grid, make_search

from longhaul.tuning.results import results_table


def test_a_table_has_a_row_for_every_cell_however_it_stands(tmp_path: Path) -> None:
    sweep = make_grid(str(tmp_path))
    state = sweep.state()
    sweep.save_table(results_table(sweep, state))
    table = pq.read_table(tmp_path / "grid" / "table.parquet")
    rows = table.to_pylist()
    assert [row["key"] for row in rows] == [cell.key for cell in state.cells]
    assert table.column_names[:5] == ["key", "run", "family", "model", "resolution"]
    by_cell = {(row["model"], row["resolution"]): row for row in rows}
    for place, (standing, reason) in ENDS.items():
        assert (by_cell[place]["standing"], by_cell[place]["reason"]) == (standing, reason)
    whole = by_cell["resnet18", 64]
    assert (whole["family"], whole["epochs"], whole["steps"]) == ("resnet", 8.0, 144)
    assert whole["score"] > whole["test/top1"] > 0.5
    assert whole["run"].endswith(f"/cells/{whole['key']}")
    never = by_cell["tiny_cnn", 96]
    assert (never["score"], never["epochs"], never["test/top1"]) == (None, 0.0, None)
    assert table.schema.field("model.name").type == pa.string()
    assert table.schema.field("data.resolution").type == pa.int64()


def test_values_of_several_kinds_are_one_kind_of_column(tmp_path: Path) -> None:
    sweep = make_search(str(tmp_path), trials=4, folds=2)
    state = sweep.state()
    assert len(state.cells) == 8
    lr, schedule, mixed, flag = (f"training.{name}" for name in ("lr", "schedule", "mixed", "flag"))
    for place, cell in enumerate(state.cells):
        cell.coordinates[lr] = 1 if place == 0 else 0.5
        cell.coordinates[schedule] = None if place == 0 else {"name": "cosine"}
        cell.coordinates[mixed] = place if place else "a"
        cell.coordinates[flag] = bool(place)
    table = results_table(sweep, state).to_pydict()
    assert table[lr] == [1.0, *[0.5] * 7]
    assert table[schedule] == [None, *['{"name": "cosine"}'] * 7]
    assert table[mixed][:2] == ['"a"', "1"]
    assert table[flag] == [False, *[True] * 7]
    assert table["data.fold"] == [0, 1] * 4


def test_a_sweep_that_has_drawn_nothing_yet_has_an_empty_table(tmp_path: Path) -> None:
    sweep = make_search(str(tmp_path), trials=1)
    assert results_table(sweep, sweep.state().model_copy(update={"cells": []})).num_rows == 0
