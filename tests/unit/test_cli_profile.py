"""`longhaul profile`: what it prints, writes and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import typer
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from longhaul.cli.profile import notes, profile, tables
from longhaul.errors import UserError
from longhaul.insight.profile import Conditions
from longhaul.insight.profile_table import Row, profile_row

CONDITIONS = Conditions(device="cpu", batch=3, budget_s=0.1)

app = typer.Typer(rich_markup_mode="rich")
app.command(name="profile")(profile)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200"}, prog_name="longhaul profile")


def refusal(*arguments: str) -> str:
    error = run(*arguments).exception
    assert isinstance(error, UserError)
    return str(error)


def test_counting_prints_exact_parameters_and_both_ways_to_count_operations() -> None:
    result = run("resnet50", "mobilenetv2_100", "--count-only", "--classes", "1000")
    assert result.exit_code == 0, result.output
    cells = [cell.strip() for line in result.output.splitlines() if "resnet50" in line for cell in line.split("│")]
    assert cells[1:-1] == ["resnet50", "224", "25,557,032", "2048", "97.7", "4.09", "8.18"]
    assert "3,504,872" in result.output
    assert "1 MAC = 2 FLOPs" in result.output
    assert "p50" not in result.output


def test_measuring_prints_times_writes_the_table_and_draws(tmp_path: Path) -> None:
    out, picture = tmp_path / "t.json", tmp_path / "t.png"
    files = ["--out", str(out), "--picture", str(picture)]
    result = run(
        "test_resnet", "test_vit", "--resolutions", "8,32", "--batch", "3", "--device", "cpu", "--seconds", "0.1", *files
    )
    assert result.exit_code == 0, result.output
    assert "p50 ms" in result.output
    assert "batch 3" in result.output
    assert "test_vit at 8 px" in result.output
    assert "no peak memory" in result.output
    assert f"CPU threads {torch.get_num_threads()}" in result.output
    read = [Row.model_validate(row) for row in json.loads(out.read_text())]
    assert [(row.model, row.resolution, row.profile is not None) for row in read] == [
        ("test_resnet", 8, True), ("test_resnet", 32, True), ("test_vit", 8, False), ("test_vit", 32, True),
    ]  # fmt: skip
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def measured() -> list[Row]:
    row = profile_row("test_resnet", 10, 8, CONDITIONS)
    return [row, row.model_copy(update={"model": "mobilenetv3_small_100"})]


@pytest.mark.parametrize(("width", "count"), [(200, 1), (80, 2), (40, 2)])
def test_no_figure_is_ever_cut(width: int, count: int, measured: list[Row]) -> None:
    console = Console(record=True, width=width, soft_wrap=True)
    shown = tables(measured, CONDITIONS, console)
    assert len(shown) == count
    for table in shown:
        console.print(table)
    text = console.export_text()
    assert "…" not in text
    assert width == 40 or max(map(len, text.splitlines())) <= width
    profiled, counted = measured[0].profile, measured[0].count
    assert profiled is not None
    assert counted is not None
    row = re.split(r"\s{2,}|\s*│\s*", " ".join(line for line in text.splitlines() if "mobilenetv3_small_100" in line))
    figures = (counted.parameters / 1e6, counted.macs / 1e9, profiled.single.p50_ms, profiled.batched.samples_per_s)
    read = [float(cell.strip("~ ").removesuffix(" M")) for cell in row if re.fullmatch(r"~?[0-9.]+( M)?", cell.strip())]
    for figure in figures:
        assert any(cell == pytest.approx(figure, rel=0.02) for cell in read), (figure, row)


def test_the_ten_backbones_stand_beside_the_named_ones_once_each() -> None:
    result = run("resnet50", "--backbones", "--count-only", "--resolutions", "8")
    assert result.exit_code == 0, result.output
    assert result.output.count("resnet50") == 1
    assert result.output.count("│ convnext_") == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no model is named"),
        (["resnet-50"], "Did you mean"),
        (["resnet18", "--resolutions", "64;128"], "not whole numbers with commas"),
        (["resnet18", "--resolutions", "4"], "Give 8 to 4096 pixels"),
        (["resnet18", "--out", "table.txt"], "no kind of table"),
        (["resnet18", "--picture", "x.jpg"], "ends in .png"),
        (["resnet18", "--picture", "x.png", "--count-only"], "contradict each other"),
        (["resnet18", "--device", "cuda:97"], "not on this machine"),
    ],
)
def test_mistakes_are_refused_before_anything_is_measured(arguments: list[str], message: str) -> None:
    assert message in refusal(*arguments)


def test_square_brackets_in_a_reason_are_text() -> None:
    console = Console(record=True, width=200)
    for line in notes([Row(model="a", resolution=8, problem="a layer of [bold] is too small")]):
        console.print(line)
    assert "a at 8 px: a layer of [bold] is too small" in console.export_text()


def test_help_gives_examples() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert "longhaul profile --backbones --count-only" in result.output
