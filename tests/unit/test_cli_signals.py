"""`longhaul signals inspect` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from longhaul.cli import signals
from longhaul.errors import UserError
from longhaul.signals.recording import Annotation, write_recording

SAMPLES = np.full(20_000, 0.25 + 0.1j, dtype=np.complex64)
BOXES = [Annotation("wifi", 100, 5000, -4e6, 4e6), Annotation("wifi", 8000, 200, -4e6, 4e6), Annotation("[red]", 0, 9, -1e6, 1e6)]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    top = typer.Typer()
    top.add_typer(signals.app, name="signals")
    return CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"}).invoke(top, ["signals", "inspect", *arguments])


def written(name: str = "data/capture") -> Path:
    return write_recording(
        Path(name), SAMPLES, sample_rate_hz=10e6, center_hz=2.44e9, datatype="ci16_be", annotations=BOXES, description="x"
    )


def test_inspect_prints_what_a_recording_holds_and_draws_it() -> None:
    result = run(str(written()))
    assert result.exit_code == 0, result.output
    for words in ("ci16_be", "10 MS/s", "2440 MHz", "0.002 s, 20,000 samples", "80 kB", "2 wifi", "1 [red]", "not given"):
        assert words in result.output
    assert "drawn to capture-waterfall.png" in result.output
    assert Image.open("capture-waterfall.png").size == (1800, 990)


def test_inspect_draws_a_stretch_where_it_is_told() -> None:
    result = run(str(written()), "--out", "pictures/part.png", "--start-s", "0.001", "--duration-s", "0.0005", "--verify")
    assert result.exit_code == 0, result.output
    assert Image.open("pictures/part.png").size == (1800, 990)


def test_a_recording_that_cannot_be_used_is_an_error_of_one_line_and_draws_nothing() -> None:
    meta = written()
    meta.with_suffix(".sigmf-data").unlink()
    result = run(str(meta))
    assert isinstance(result.exception, UserError)
    assert "capture.sigmf-data is missing" in str(result.exception)
    assert list(Path().glob("*.png")) == []


def test_a_folder_is_listed_with_notes_and_with_what_cannot_be_used() -> None:
    written("data/good")
    odd = written("data/odd")
    content = json.loads(odd.read_text())
    del content["captures"][0]["core:frequency"]
    content["annotations"] = [{"core:sample_start": 5, "core:comment": "hop"}]
    odd.write_text(json.dumps(content))
    written("data/bad").with_suffix(".sigmf-data").write_bytes(b"123")
    result = run("data")
    assert result.exit_code == 2
    lines = result.output.splitlines()
    assert any("good.sigmf-meta" in line and "2 wifi" in line for line in lines)
    assert any("bad.sigmf-meta" in line and "cannot be used" in line for line in lines)
    assert any(line.startswith("note odd.sigmf-meta: 1 of 1 annotations have no core:label") for line in lines)
    assert any(line.startswith("error ") and "bad.sigmf-data" in line for line in lines)
    assert list(Path().glob("*.png")) == []


def test_out_for_a_folder_is_refused() -> None:
    written()
    assert "--out" in str(run("data", "--out", "x.png").exception)
