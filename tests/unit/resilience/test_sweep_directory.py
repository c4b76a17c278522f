"""A sweep's folder: what was asked and how it stands come back as they were written, here and on S3."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sweep_maker import make_grid

from longhaul.errors import IntegrityError, UserError
from longhaul.recipe.load import parse_sweep
from longhaul.resilience.sweep_directory import CellRecord, SweepDirectory, SweepState

SWEEP = """
name: small
recipe: {model: {name: tiny_cnn}, data: {kind: digits}, training: {epochs: 1}}
grid: {data.resolution: [32, 64]}
"""


def state_of(direction: str = "max", **scores: float | None) -> SweepState:
    cells = [CellRecord(key=key, coordinates={"seed": key}, recipe="", score=score) for key, score in scores.items()]
    return SweepState(name="small", goal="val/top1", direction="max" if direction == "max" else "min", cells=cells)


def test_state_and_sweep_come_back_as_they_were_written(tmp_path: Path) -> None:
    sweep = parse_sweep(SWEEP)
    state = state_of(a=0.5, b=None)
    state.cells[0].scores = [(1.0, math.nan), (2.5, -math.inf), (3.0, 0.5)]
    state.cells[0].coordinates = {"training.schedule": {"name": "cosine"}, "model.drop_rate": 0.1, "data.resolution": 32}
    state.cells[1].standing, state.cells[1].reason, state.cells[1].forced = "failed", "out of <memory>", True
    state.notes, state.hours, state.dollars = ["one", "two"], 0.25, 3.5
    directory = SweepDirectory.at(f"{tmp_path}/", "small")
    assert not directory.exists
    directory.save(sweep, state)
    opened = SweepDirectory.open(str(tmp_path), "small")
    assert opened.recipe() == sweep
    read = opened.state()
    assert math.isnan(read.cells[0].scores[0][1])
    assert read.model_dump(exclude={"cells": {0: {"scores"}}}) == state.model_dump(exclude={"cells": {0: {"scores"}}})
    assert read.cells[0].scores[1:] == [(2.5, -math.inf), (3.0, 0.5)]
    state.cells[1].standing = "finished"
    opened.save_state(state)
    assert opened.state().cells[1].standing == "finished"


@pytest.mark.parametrize(("direction", "best"), [("max", "b"), ("min", "a")])
def test_the_best_cell_is_the_one_with_the_best_score(direction: str, best: str) -> None:
    found = state_of(direction, a=-1.0, none=None, b=0.0).best
    assert found is not None
    assert found.key == best
    assert state_of(none=None).best is None


def test_cells_are_found_by_their_key_and_called_by_their_values() -> None:
    state = state_of(a=1.0)
    assert state.cell("a") is state.cells[0]
    with pytest.raises(KeyError):
        state.cell("b")
    record = CellRecord(key="k", coordinates={"model.name": "resnet18", "data.resolution": 64}, recipe="")
    assert (record.label, record.open) == ("resnet18 64", True)


def test_no_damaged_or_missing_sweep_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sweep .*small: no sweep is there"):
        SweepDirectory.open(str(tmp_path), "small")
    for name in ("a/b", "..", ""):
        with pytest.raises(UserError, match="not a plain name"):
            SweepDirectory.at(str(tmp_path), name)
    with pytest.raises(UserError, match="'cells': all cells lie in the folder of that name"):
        SweepDirectory.at(str(tmp_path), "cells")
    directory = SweepDirectory.at(str(tmp_path), "small")
    directory.save(parse_sweep(SWEEP), state_of(a=1.0))
    file = tmp_path / "small" / "sweep.json"
    file.write_text(file.read_text().replace('"planned"', '"plannd"'))
    with pytest.raises(IntegrityError, match=r"sweep\.json: cells\.0\.standing: .*Move it away and run the sweep again"):
        directory.state()
    file.write_text(file.read_text()[:40])
    with pytest.raises(IntegrityError, match="Move it away"):
        directory.state()


def test_all_sweeps_are_those_with_a_state_and_their_runs_those_that_have_begun(tmp_path: Path) -> None:
    root = str(tmp_path)
    first, second = make_grid(root, "b", models=["vgg11", "tiny_cnn"]), make_grid(root, "a", models=["tiny_cnn"])
    (tmp_path / "stray").mkdir()
    assert [sweep.name for sweep in SweepDirectory.all(root)] == ["a", "b"]
    assert SweepDirectory.all(f"{root}/nowhere") == []
    begun = [(cell.label, run.name) for cell, run in first.runs(first.state().cells)]
    assert [label for label, _ in begun] == ["vgg11 32", "vgg11 48", "vgg11 64", "tiny_cnn 32", "tiny_cnn 48", "tiny_cnn 64"]
    assert {name for _, name in begun} >= {run.name for _, run in second.runs(second.state().cells)}  # shared


def test_a_table_is_replaced_whole(tmp_path: Path) -> None:
    import pyarrow as pa

    directory = SweepDirectory.at(str(tmp_path), "small")
    for length in (5, 2):
        directory.save_table(pa.table({"a": list(range(length))}))
        assert pq.read_table(tmp_path / "small" / "table.parquet").num_rows == length
