"""Scenes as SigMF recordings, and `longhaul signals make`."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from longhaul.cli import scenes
from longhaul.errors import UserError
from longhaul.signals.chunks import origin_of
from longhaul.signals.recording import find_recordings, open_recording
from longhaul.signals.scene_files import write_scene, write_scenes
from longhaul.signals.scene_settings import SceneSettings, preset
from longhaul.signals.scenes import Scene


def brief(kind: str) -> SceneSettings:
    return preset(kind, small=True).model_copy(update={"duration_s": 0.02})


def make(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(scenes.make)
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, list(arguments))


def test_a_scene_comes_back_from_its_recording(tmp_path: Path) -> None:
    scene = Scene(brief("lte_uplink"), seed=3, number=7)
    with open_recording(write_scene(scene, tmp_path), verify=True) as recording:
        assert recording.name == "lte_uplink_007"
        assert recording.samples == scene.samples
        assert (recording.sample_rate_hz, recording.center_hz) == (20e6, scene.center_hz)
        assert not [note for note in recording.notes if "overlap" not in note]
        assert len(recording.annotations) == len(scene.annotations)
        for read, planned in zip(recording.annotations, sorted(scene.annotations, key=lambda one: one.start), strict=True):
            assert (read.label, read.start, read.count) == (planned.label, planned.start, planned.count)
            assert (read.low_hz, read.high_hz) == pytest.approx((planned.low_hz, planned.high_hz), abs=1)
        expected = np.concatenate(list(scene.blocks()))
        assert np.abs(recording.read(0, recording.samples) - expected).max() < 1 / 32767


def test_senders_are_named_in_the_comments_and_read_back(tmp_path: Path) -> None:
    scene = Scene(brief("mixed"), seed=3)
    path = write_scene(scene, tmp_path)
    comments = [one["core:comment"] for one in json.loads(path.read_text())["annotations"]]
    planned = sorted(scene.annotations, key=lambda one: one.start)
    assert comments == [f"emitter {one.emitter}" for one in planned]
    with open_recording(path) as recording:
        assert [one.emitter for one in recording.annotations] == [one.emitter for one in planned]


@pytest.mark.parametrize("comment", [None, "", "emitter", "emitter ", "an emitter wifi/6/0", "emitter of the second floor"])
def test_a_comment_that_people_wrote_names_no_sender(tmp_path: Path, comment: str | None) -> None:
    path = write_scene(Scene(brief("creamy_chicken"), seed=3), tmp_path)
    meta = json.loads(path.read_text())
    for entry in meta["annotations"]:
        del entry["core:comment"]
        if comment is not None:
            entry["core:comment"] = comment
    path.write_text(json.dumps(meta))
    with open_recording(path) as recording:
        assert {one.emitter for one in recording.annotations} == {None}
        written = origin_of(recording)
    assert written == origin_of(open_recording(write_scene(Scene(brief("creamy_chicken"), seed=3), tmp_path)))


def test_the_metadata_say_that_it_is_synthetic_and_at_which_snr(tmp_path: Path) -> None:
    path = write_scene(Scene(brief("creamy_chicken"), seed=3), tmp_path, "cf32_le")
    about = json.loads(path.read_text())["global"]
    assert about["core:hw"] == "synthetic"
    assert about["core:author"] == "Longhaul"
    assert "SNR 15 to 30 dB" in about["core:description"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["creamy_chicken_000.sigmf-data", "creamy_chicken_000.sigmf-meta"]


def test_the_files_are_the_same_however_many_processes_write_them(tmp_path: Path) -> None:
    settings = brief("lte_uplink")
    alone = list(write_scenes(settings, tmp_path / "alone", count=2, seed=1, workers=0))
    together = list(write_scenes(settings, tmp_path / "together", count=2, seed=1, workers=2))
    assert {path.name for path in alone} == {path.name for path in together} == {path.name for path in find_recordings(tmp_path)}
    for file in sorted((tmp_path / "alone").iterdir()):
        assert file.read_bytes() == (tmp_path / "together" / file.name).read_bytes()


def test_make_writes_recordings_and_says_what_comes_next(tmp_path: Path) -> None:
    out = tmp_path / "made"
    result = make("wifi_bluetooth", "--small", "--out", str(out), "--recordings", "1", "--duration-s", "0.02", "--snr-db", "5,20")
    assert result.exit_code == 0, result.output
    assert "1 recording of 0.02 s at 40 MS/s" in result.output
    assert f"longhaul signals chunk {out} --chunk-s 0.01" in result.output
    with open_recording(out / "wifi_bluetooth_000.sigmf-meta") as recording:
        assert recording.datatype == "ci16_le"
        assert recording.samples == 800_000
    assert "SNR 5 to 20 dB" in (out / "wifi_bluetooth_000.sigmf-meta").read_text()


def test_make_puts_a_detectors_signals_beside_the_others_at_a_rate_of_choice(tmp_path: Path) -> None:
    out = tmp_path / "made"
    result = make(
        "lte_uplink",
        "--small",
        "--sample-rate",
        "40e6",
        "--clutter",
        "--out",
        str(out),
        "--recordings",
        "1",
        "--duration-s",
        "0.02",
    )
    assert result.exit_code == 0, result.output
    with open_recording(out / "lte_uplink_000.sigmf-meta") as recording:
        assert recording.sample_rate_hz == 40e6
        assert recording.center_hz is not None
        assert 2_422e6 <= recording.center_hz <= 2_452e6
        assert {one.label for one in recording.annotations} == {"lte_uplink"}
    assert "unlabelled clutter of wifi, bluetooth, creamy_chicken" in (out / "lte_uplink_000.sigmf-meta").read_text()


def test_make_writes_over_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.sigmf-meta").write_text("{}")
    result = make("lte_uplink", "--small", "--out", str(tmp_path))
    assert isinstance(result.exception, UserError)
    assert "holds recordings already, mine.sigmf-meta" in str(result.exception)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.sigmf-meta"]


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--snr-db", "30,15", "lowest first"),
        ("--snr-db", "loud", "not a pair of numbers"),
        ("--duration-s", "0", "shorter than a burst"),
        ("--sample-rate", "40", "not within 2e6 to 1e9 Hz"),
        ("--sample-rate", "nan", "not within 2e6 to 1e9 Hz"),
        ("--datatype", "ci17", "ci17"),
        ("--datatype", "ci16", "ci16_le or ci16_be"),
    ],
)
def test_make_refuses_by_the_options_name_and_leaves_nothing(tmp_path: Path, option: str, value: str, says: str) -> None:
    result = make("lte_uplink", "--small", "--out", str(tmp_path / "made"), option, value)
    assert isinstance(result.exception, UserError)
    assert str(result.exception).startswith(f"{option} {value}")
    assert says in str(result.exception)
    assert not (tmp_path / "made").exists()
