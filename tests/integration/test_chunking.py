"""Recordings to folders of tiles: the same bytes in one process and on Ray, taken up again, bad ones listed, memory bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from longhaul.cli.chunk import chunk
from longhaul.cluster.chunking import convert
from longhaul.errors import UserError
from longhaul.signals.front_end import FrontEnd
from longhaul.signals.recording import Annotation, open_recording, write_recording
from longhaul.signals.tile_folder import TileSettings, boxes_path, read_front_end, read_tiles

SETTINGS = TileSettings(front_end=FrontEnd(nfft=256, hop=128, tile=64), chunk_s=0.01)
STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STAMP = "20260102_030405"


def record(folder: Path, name: str, *, samples: int = 45_000, started: datetime | None = STARTED, **changes: object) -> Path:
    rng = np.random.default_rng(sum(name.encode()))
    iq = 0.01 * (rng.normal(size=samples) + 1j * rng.normal(size=samples))
    iq[12_000:23_000] += 0.2 * np.exp(2j * np.pi * 0.2 * np.arange(11_000))
    annotation = Annotation("wifi", 12_000, int(changes.get("count", 11_000)), 150e3, 250e3)  # type: ignore[call-overload]
    return write_recording(folder / name, iq.astype(np.complex64), sample_rate_hz=1e6, annotations=[annotation], started=started)


def without_checksum(file: Path) -> None:
    """As of a recorder that writes none: the data are not what they were."""
    meta = file.with_suffix(".sigmf-meta")
    content = json.loads(meta.read_text())
    del content["global"]["core:sha512"]
    meta.write_text(json.dumps(content))


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    for name in ("one", "two", "three"):
        record(tmp_path / "recordings", name)
    return tmp_path / "recordings"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.usefixtures("ray_cluster")
def test_a_folder_is_the_same_to_the_byte_in_one_process_and_on_ray(recordings: Path, tmp_path: Path) -> None:
    done: list[tuple[int, int, int]] = []
    alone = convert([recordings], tmp_path / "alone", SETTINGS, workers=0)
    ray = convert(
        [recordings], tmp_path / "ray", SETTINGS, workers=2, progress=lambda now, all_, t: done.append((now, all_, t.written))
    )
    assert alone.folder == tmp_path / "alone" / "spec_image" / STAMP
    assert contents(alone.folder) == contents(ray.folder)
    assert (ray.tally, ray.recordings, ray.left_out_s, ray.failed) == (alone.tally, 3, 0.0, [])
    assert done[-1] == (15, 15, 15)
    assert [tile.recording for tile in read_tiles(ray.folder)] == ["one"] * 5 + ["three"] * 5 + ["two"] * 5
    settings = read_front_end(tmp_path / "ray")
    assert settings is not None
    assert settings.front_end == SETTINGS.front_end
    assert settings.sample_rates_hz == (1e6,)


def test_the_same_command_goes_on_and_takes_what_is_new(recordings: Path, tmp_path: Path) -> None:
    whole = contents(convert([recordings], tmp_path / "whole", SETTINGS, workers=0).folder)
    folder = convert([recordings / "one.sigmf-meta"], tmp_path / "out", SETTINGS, workers=0, stamp="20200101_000000").folder
    tiles = read_tiles(folder)
    boxes_path(tiles[1].png).unlink()  # stopped between a PNG and its JSON
    tiles[2].png.write_bytes(b"half")
    boxes_path(tiles[2].png).unlink()
    (folder / ".chunk_one_003.png.9.partial").write_bytes(b"half")
    again = convert(
        [recordings], tmp_path / "out", SETTINGS, workers=0
    )  # without the stamp: the folder is found by what it holds
    assert again.folder == folder
    assert (again.tally.written, again.tally.kept) == (12, 3)
    assert contents(folder) == whole


def test_a_recording_without_a_date_goes_on_in_the_folder_of_the_first_try(tmp_path: Path) -> None:
    path = record(tmp_path, "undated", started=None)
    first = convert([path], tmp_path / "out", SETTINGS, workers=0)
    assert (
        abs((datetime.strptime(first.folder.name, "%Y%m%d_%H%M%S") - datetime.now(UTC).replace(tzinfo=None)).total_seconds())
        < 600
    )
    yesterday = first.folder.rename(first.folder.with_name("20260101_120000"))
    again = convert([path], tmp_path / "out", SETTINGS, workers=0)
    assert (again.folder, again.tally.written, again.tally.kept) == (yesterday, 0, 5)


def test_tiles_from_elsewhere_are_not_mixed_with_new_ones(recordings: Path, tmp_path: Path) -> None:
    folder = convert([recordings], tmp_path / "out", SETTINGS, workers=0).folder
    (folder / "front_end.json").unlink()
    with pytest.raises(UserError, match=r"has tiles from elsewhere, without front_end.json"):
        convert([recordings], tmp_path / "out", SETTINGS, workers=0)


def test_a_changed_setting_is_refused_by_name_and_nothing_is_touched(recordings: Path, tmp_path: Path) -> None:
    folder = convert([recordings], tmp_path / "out", SETTINGS, workers=0).folder
    before = contents(folder)
    for changes, words in (
        ({"chunk_s": 0.02}, "chunk_s is 0.01 and not 0.02"),
        ({"remainder": "drop"}, "remainder is half and not drop"),
    ):
        with pytest.raises(UserError, match=rf"front_end.json: {words}"):
            convert([recordings], tmp_path / "out", SETTINGS.model_copy(update=changes), workers=0)
    other = SETTINGS.model_copy(update={"front_end": SETTINGS.front_end.model_copy(update={"hop": 64})})
    with pytest.raises(UserError, match=r"front_end.hop is 128 and not 64"):
        convert([recordings], tmp_path / "out", other, workers=0)
    assert contents(folder) == before
    elsewhere = convert([recordings], tmp_path / "out", other, workers=0, stamp="20260102_030406")
    assert elsewhere.tally.written == 15


def test_bad_recordings_are_listed_and_the_others_converted(recordings: Path, tmp_path: Path) -> None:
    nan = record(recordings, "nan").with_suffix(".sigmf-data")
    samples = np.fromfile(nan, dtype=np.complex64)
    samples[25_000] = np.nan
    samples.tofile(nan)
    without_checksum(nan)
    odd = record(recordings, "odd").with_suffix(".sigmf-data")
    os.truncate(odd, odd.stat().st_size - 3)
    record(recordings, "short", samples=24_000).with_suffix(".sigmf-data").unlink()
    convert([record(recordings, "changed")], tmp_path / "out", SETTINGS, workers=0)
    record(recordings, "changed", count=9_000)

    app = typer.Typer()
    app.command()(chunk)
    settings = ["--chunk-s", "0.01", "--nfft", "256", "--tile", "64", "--workers", "0"]
    command = [str(recordings), "--out", str(tmp_path / "out"), *settings]
    shown = CliRunner().invoke(app, command, terminal_width=300)
    assert shown.exit_code == 1, shown.output
    assert "19 tiles of 4 recordings written" in shown.output
    failed = [line for line in shown.output.splitlines() if line.startswith("failed")]
    assert len(failed) == 4, shown.output
    assert any("nan.sigmf-data: sample 25000 is" in line for line in failed)
    assert any("odd.sigmf-data: 359997 bytes are no whole number" in line for line in failed)
    assert any("short" in line for line in failed)
    assert any("changed.sigmf-meta: is not as it was when tiles were made of it" in line for line in failed)
    names = [tile.png.stem for tile in read_tiles(tmp_path / "out") if tile.recording == "nan"]
    assert names == ["chunk_nan_000", "chunk_nan_001", "chunk_nan_003", "chunk_nan_004"]


def test_a_wrong_stamp_is_refused_before_anything_is_written(recordings: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--stamp today: is not of the form"):
        convert([recordings / "one.sigmf-meta"], tmp_path / "out", SETTINGS, workers=0, stamp="today")
    assert not (tmp_path / "out").exists()
    one = recordings / "one.sigmf-meta"
    assert convert([one, one, recordings / "one.sigmf-data"], tmp_path / "out", SETTINGS, workers=0).tally.written == 5


def test_of_two_recordings_of_one_name_the_second_is_listed_and_the_rest_converted(recordings: Path, tmp_path: Path) -> None:
    record(recordings / "again", "two")
    result = convert([recordings], tmp_path / "out", SETTINGS, workers=0)
    assert result.tally.written > 0
    assert [line for line in result.failed if "has the same name as" in line and "two.sigmf-meta" in line]


def test_data_that_are_not_those_of_the_metadata_are_listed(recordings: Path, tmp_path: Path) -> None:
    """Of the same length, so that only the checksum tells: replaced before the conversion, and after it."""
    data = recordings / "two.sigmf-data"
    assert open_recording(recordings / "two.sigmf-meta").sha512 is not None
    whole = data.read_bytes()
    data.write_bytes(bytes(len(whole)))
    result = convert([recordings], tmp_path / "out", SETTINGS, workers=0)
    assert [line for line in result.failed if "are not those that core:sha512 describes" in line]
    assert "two" not in {tile.recording for tile in read_tiles(tmp_path / "out")}


BOUNDED = """
import resource, sys
from pathlib import Path
from longhaul.cluster.chunking import convert
from longhaul.signals.front_end import FrontEnd
from longhaul.signals.recording import open_recording
from longhaul.signals.tile_folder import TileSettings

settings = TileSettings(front_end=FrontEnd(nfft=4096, hop=4096, tile=64), chunk_s=0.1)
convert([Path(sys.argv[1])], Path(sys.argv[3]), settings, workers=0)  # libraries are loaded, pools are made
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
limit = int(status["VmData"].split()[0]) * 1024 + int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
recording = open_recording(Path(sys.argv[2]))
try:
    recording.read(0, recording.samples)
    sys.exit("the limit does not hold")
except MemoryError:
    pass
print(convert([recording.path], Path(sys.argv[3]), settings, workers=0).tally)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA")
def test_a_capture_larger_than_memory_is_converted(tmp_path: Path) -> None:
    small = write_recording(
        tmp_path / "small", np.zeros(2_000_000, np.complex64), sample_rate_hz=20e6, datatype="ci8", started=STARTED
    )
    large = write_recording(
        tmp_path / "large", np.zeros(2_000_000, np.complex64), sample_rate_hz=20e6, datatype="ci8", started=STARTED
    )
    os.truncate(large.with_suffix(".sigmf-data"), 256 << 20)  # sparse
    without_checksum(large)
    headroom = 96 << 20
    command = [sys.executable, "-c", BOUNDED, str(small), str(large), str(tmp_path / "out"), str(headroom)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "written=67, kept=0" in done.stdout
    tiles = [tile for tile in read_tiles(tmp_path / "out") if tile.recording == "large"]
    assert len(tiles) == 67
    assert json.loads(boxes_path(tiles[0].png).read_text())["bboxes"] == []
