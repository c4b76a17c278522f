"""Networks side by side: rows that say what is missing, and files that read back."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import timm

from longhaul.errors import UserError
from longhaul.insight.curves import png
from longhaul.insight.profile import Conditions
from longhaul.insight.profile_picture import cost_figure
from longhaul.insight.profile_table import BACKBONES, Row, check_file, check_names, flat, rows, write

QUICK = Conditions("cpu", 2, budget_s=0.01)


@pytest.fixture(scope="module")
def measured() -> list[Row]:
    return list(rows(["test_resnet", "test_vit"], [8, 32], 10, QUICK))


def test_a_row_for_each_network_and_resolution_and_a_reason_where_one_does_not_work(measured: list[Row]) -> None:
    assert [(row.model, row.resolution) for row in measured] == [
        ("test_resnet", 8), ("test_resnet", 32), ("test_vit", 8), ("test_vit", 32),
    ]  # fmt: skip
    assert [row.profile is not None for row in measured] == [True, True, False, True]
    assert measured[2].problem is not None
    assert "'test_vit' cannot work at it" in measured[2].problem
    assert measured[2].count is None


def test_counting_alone_gives_the_same_counts(measured: list[Row]) -> None:
    counted = list(rows(["test_resnet", "test_vit"], [8, 32], 10, None))
    assert [row.count for row in counted] == [row.count for row in measured]
    assert all(row.profile is None for row in counted)


def test_the_backbones_of_localization_are_ten_that_timm_has() -> None:
    check_names(BACKBONES)
    assert len(set(BACKBONES)) == 10
    assert set(BACKBONES) <= set(timm.list_models())


def test_unknown_names_and_detectors_are_refused() -> None:
    with pytest.raises(UserError, match=r"Did you mean .*resnet50"):
        check_names(["resnet18", "resnet-50"])
    with pytest.raises(UserError, match="detectors are not profiled"):
        check_names(["fasterrcnn_resnet18_fpn"])


def test_json_holds_the_rows_whole(measured: list[Row], tmp_path: Path) -> None:
    write(tmp_path / "t.json", measured)
    assert [Row.model_validate(row) for row in json.loads((tmp_path / "t.json").read_text())] == measured


def test_csv_and_parquet_hold_the_same_figures(measured: list[Row], tmp_path: Path) -> None:
    write(tmp_path / "t.csv", measured)
    write(tmp_path / "t.parquet", measured)
    expected = [flat(row) for row in measured]
    assert pq.read_table(tmp_path / "t.parquet").to_pylist() == expected
    with (tmp_path / "t.csv").open() as file:
        read = list(csv.DictReader(file))
    assert read == [{name: "" if value is None else str(value) for name, value in row.items()} for row in expected]


def test_a_table_of_counts_has_the_columns_of_a_measured_one(measured: list[Row], tmp_path: Path) -> None:
    counted = [row.model_copy(update={"profile": None}) for row in measured]
    write(tmp_path / "counted.parquet", counted)
    write(tmp_path / "measured.parquet", measured)
    assert pq.read_schema(tmp_path / "counted.parquet") == pq.read_schema(tmp_path / "measured.parquet")


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends in \.csv, \.parquet, \.json"):
        check_file(tmp_path / "t.txt")
    with pytest.raises(UserError, match="its folder does not exist"):
        check_file(tmp_path / "nowhere" / "t.csv")


def test_the_picture_has_a_line_a_network_through_its_resolutions(measured: list[Row]) -> None:
    figure = cost_figure(measured)
    lines = figure.axes[0].get_lines()
    assert [(line.get_label(), len(line.get_xdata())) for line in lines] == [("test_resnet", 2), ("test_vit", 1)]
    first = measured[0].profile
    assert first is not None
    assert lines[0].get_xdata()[0] == first.count.flops / 1e9
    assert lines[0].get_ydata()[0] == first.single.p50_ms
    assert png(figure).startswith(b"\x89PNG")


def test_there_is_no_picture_of_counts() -> None:
    with pytest.raises(UserError, match="nothing was measured"):
        cost_figure([Row(model="a", resolution=8)])
