"""`longhaul detect` and `longhaul token` as a user meets them, with a real server of detectors that can be reckoned by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grid_detector import CHUNK_SAMPLES, SAMPLE_RATE_HZ, publish_grid_detector
from listening import listening
from PIL import Image
from typer.testing import CliRunner

from longhaul.cli import detect as verb
from longhaul.cli import serve as serve_verb
from longhaul.cli.main import app
from longhaul.errors import UserError
from longhaul.export.registry import Registry
from longhaul.serving.client import Refused, Unreachable
from longhaul.serving.detection.answers import ChunkAnswer, Detection, ModelStatus, Status
from longhaul.serving.detection.tracks import Track
from longhaul.serving.http.api import build_api
from longhaul.serving.http.settings import ApiSettings
from longhaul.serving.http.tokens import TokenFile
from longhaul.serving.models.catalog import Catalog, choose, load
from longhaul.signals.recording import Annotation, write_recording

CENTER = 2.44e9
CHUNKS = 4
MARKED = Annotation("even", start=100, count=4000, low_hz=1e5, high_hz=3e5)
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    """Two detectors, `grid` and `wide`."""
    registry = Registry(str(tmp_path_factory.mktemp("models")))
    publish_grid_detector(registry, "grid")
    publish_grid_detector(registry, "wide", classes=("wide",), gain=0.8)
    loaded = load(registry, choose(registry))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def url(catalog: Catalog) -> Iterator[str]:
    with listening(build_api(catalog, ApiSettings(open_loopback=True))) as address:
        yield address


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Four chunks of noise with a strong tone in the first half of each, one of them annotated."""
    place = np.arange(CHUNKS * CHUNK_SAMPLES)
    tone = np.where(place % CHUNK_SAMPLES < CHUNK_SAMPLES // 2, 0.5, 0) * np.exp(2j * np.pi * 0.2 * place)
    noise = np.random.default_rng(0).normal(size=(place.size, 2)).astype(np.float32).view(np.complex64)[:, 0] * 1e-3
    samples = (tone + noise).astype(np.complex64)
    return write_recording(tmp_path / "roof", samples, sample_rate_hz=SAMPLE_RATE_HZ, center_hz=CENTER, annotations=[MARKED])


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(part) for part in arguments], env={"COLUMNS": "200", "NO_COLOR": "1"})


def answers_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_a_recording_gives_tables_answers_and_a_picture_the_same_in_one_piece_and_as_a_stream(
    recording: Path, url: str, tmp_path: Path
) -> None:
    answers = []
    for how in ([], ["--stream"]):
        picture = recording.with_name("roof.detections.png")
        picture.unlink(missing_ok=True)
        result = run("detect", recording, "--url", url, "--json", tmp_path / "answers.json", *how)
        assert result.exit_code == 0, result.output
        answers.append(answers_of(tmp_path / "answers.json"))
        found = [chunk["detections"] for chunk in answers[-1]["chunks"]]
        assert len(found) == CHUNKS
        assert f"{sum(map(len, found))} detections in {CHUNKS} chunks" in result.output
        assert f"{len(answers[-1]['tracks'])} tracks" in result.output
        assert "degraded" not in result.output
        with Image.open(picture) as drawn:
            assert drawn.width > 1000
    whole, streamed = answers
    assert whole["tracks"], "nothing was followed from chunk to chunk"
    assert [chunk["detections"] for chunk in whole["chunks"]] == [chunk["detections"] for chunk in streamed["chunks"]]
    assert whole["tracks"] == streamed["tracks"]
    numbers = {one["track"] for chunk in whole["chunks"] for one in chunk["detections"]}
    assert {track["id"] for track in whole["tracks"]} <= numbers


def test_a_stretch_and_a_model_can_be_chosen(recording: Path, url: str, tmp_path: Path) -> None:
    options = ["--start-s", "0.01", "--duration-s", "0.02", "--model", "wide", "--out", tmp_path / "part.png"]
    assert run("detect", recording, "--url", url, "--json", tmp_path / "a.json", *options).exit_code == 0
    chunks = answers_of(tmp_path / "a.json")["chunks"]
    assert [[one["model"] for one in chunk["models"]] for chunk in chunks] == [["wide"], ["wide"]]
    assert (tmp_path / "part.png").is_file()
    assert not list(tmp_path.glob("*.detections.png"))


def test_a_long_recording_is_streamed_without_being_asked(
    recording: Path, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(verb, "_MOST_SENT_BYTES", 1000)
    monkeypatch.setattr("longhaul.serving.client.Longhaul.detect_stretch", None)
    assert run("detect", recording, "--url", url, "--json", tmp_path / "a.json").exit_code == 0
    assert len(answers_of(tmp_path / "a.json")["chunks"]) == CHUNKS


def test_a_tile_gives_places_in_pixels_and_no_picture(tmp_path: Path, url: str) -> None:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[8:16, 16:24] = 255
    Image.fromarray(pixels).save(tmp_path / "tile.png")
    result = run("detect", tmp_path / "tile.png", "--url", url, "--model", "grid")
    assert result.exit_code == 0, result.output
    assert "x 16 to 24 px" in result.output
    assert "y 8 to 16 px" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["tile.png"]


def test_the_token_comes_from_a_file_or_from_the_environment(
    recording: Path, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run("token", "new", "laptop", "--file", tmp_path / "tokens.json")
    (tmp_path / "secret").write_text(made.stdout)
    with listening(build_api(catalog, ApiSettings(tokens=tmp_path / "tokens.json"))) as guarded:
        refused = run("detect", recording, "--url", guarded)
        assert isinstance(refused.exception, Refused)
        assert "401" in str(refused.exception)
        part = ["--duration-s", "0.01"]
        assert run("detect", recording, "--url", guarded, "--token-file", tmp_path / "secret", *part).exit_code == 0
        for secret in (made.stdout.strip(), made.stdout.strip() + "\n"):
            monkeypatch.setenv("LONGHAUL_TOKEN", secret)
            assert run("detect", recording, "--url", guarded, *part).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (["none.sigmf-meta"], UserError, "there is no such recording"),
        (["none.png"], UserError, "there is no such file"),
        (["RECORDING", "--start-s", "9"], UserError, "nothing lies"),
        (["RECORDING", "--token-file", "none"], UserError, "holds the token"),
        (["RECORDING", "--token-file", "RECORDING"], UserError, "no token has"),
        (["RECORDING", "--start-s", "inf"], UserError, "nothing lies"),
        (["RECORDING", "--duration-s", "nan"], UserError, "nothing lies"),
        (["RECORDING", "--out", "RECORDING/a/picture.png"], UserError, "Give a file in a folder that you can write, with --out"),
        (["RECORDING", "--json", "RECORDING/a.json"], UserError, "Give a file in a folder that you can write, with --json"),
        (["RECORDING", "--json", "/"], UserError, "is a folder"),
        (["RECORDING"], Unreachable, "longhaul serve"),
        (["RECORDING", "--stream"], Unreachable, "longhaul serve"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    arguments: Sequence[str], kind: type[UserError], words: str, recording: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    given = [part.replace("RECORDING", str(recording)) for part in arguments]
    result = run("detect", *given, "--url", "http://127.0.0.1:1")
    assert isinstance(result.exception, kind)
    assert words in str(result.exception)
    assert sorted(tmp_path.iterdir()) == before


def test_the_answers_are_kept_where_drawing_fails(
    recording: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "picture.png"

    def gone_meanwhile(*_: Any, **__: Any) -> bytes:
        picture.mkdir()
        return b""

    monkeypatch.setattr("longhaul.insight.detections.draw_detections", gone_meanwhile)
    result = run("detect", recording, "--url", url, "--out", picture, "--json", tmp_path / "new" / "answers.json")
    assert isinstance(result.exception, UserError)
    assert "--out" in str(result.exception)
    assert len(answers_of(tmp_path / "new" / "answers.json")["chunks"]) == CHUNKS


def test_serve_says_which_config_it_wants_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("serve", "--registry", tmp_path, "--port", "8123")
    assert isinstance(result.exception, UserError)
    assert "--config" in str(result.exception)
    assert "checkout" in str(result.exception)


@pytest.mark.parametrize(("host", "shown"), [("::1", "[::1]"), ("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("roof", "roof")])
def test_the_address_that_serve_tells_is_one_that_can_be_asked(host: str, shown: str) -> None:
    assert serve_verb._reachable(host) == shown


@pytest.mark.parametrize(
    ("config", "option", "host"),
    [
        ("http_options: {host: '::1'}", None, "::1"),
        ("http_options: {host: '::1'}", "0.0.0.0", "0.0.0.0"),
        ("http_options:", None, "127.0.0.1"),
        ("[]", None, "127.0.0.1"),
        ("{", None, "127.0.0.1"),
    ],
)
def test_the_address_to_listen_on_is_the_options_or_the_configs(tmp_path: Path, config: str, option: str, host: str) -> None:
    (tmp_path / "config.yaml").write_text(config)
    assert serve_verb._host_of(tmp_path / "config.yaml", option) == host


def status(model: str, became: Status, detail: str | None = None) -> ModelStatus:
    return ModelStatus(model=model, version="1", status=became, detail=detail)


def test_each_way_of_missing_is_counted_by_model_with_what_to_do() -> None:
    chunks = [
        ChunkAnswer(degraded=True, seconds=0.4, models=(status("a", Status.LATE), status("b", Status.ON_TIME)), detections=()),
        ChunkAnswer(degraded=True, seconds=0.4, models=(status("a", Status.SHED), status("b", Status.ON_TIME)), detections=()),
        ChunkAnswer(degraded=True, seconds=0.1, models=(status("a", Status.FAILED, "boom [x]"),), detections=()),
    ]
    lines = list(verb._missing(chunks))
    assert len(lines) == 3
    assert lines[0].startswith(r"a was failed in 1 of 3 chunks (boom \[x]); its engine failed")
    assert "--deadline-ms" in lines[1]
    assert "a was shed" in lines[2]


def test_only_tracks_of_the_table_are_named_on_the_picture() -> None:
    def found(track: int | None) -> Detection:
        place = {"start_s": 0.5, "end_s": 0.6, "low_hz": 9e6, "high_hz": 11e6}
        return Detection(label="wifi", model="m", score=0.9, box_px=(0, 0, 1, 1), track=track, **place)

    answer = ChunkAnswer(degraded=False, seconds=0.1, models=(), detections=tuple(found(track) for track in (2, 3, None)))
    told = Track(id=2, label="wifi", first_s=0, last_s=1, center_hz=10e6, bandwidth_hz=2e6, score=0.9)
    assert [mark.track for mark in verb._marks(verb._Found((answer,), (told,)), 1.0)] == [2, None, None]


def test_a_token_is_shown_once_listed_and_revoked(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    made = run("token", "new", "operator", "--scope", "predict", "--scope", "admin", "--file", file)
    secret = made.stdout.strip()
    entry = TokenFile.read(file).find(secret)
    assert entry is not None
    assert [str(scope) for scope in entry.scopes] == ["predict", "admin"]
    assert secret not in file.read_text()
    listed = run("token", "ls", "--file", file).output
    assert "operator" in listed
    assert secret not in listed
    assert run("token", "revoke", "operator", "--file", file).exit_code == 0
    assert TokenFile.read(file).find(secret) is None
    assert "no tokens" in run("token", "ls", "--file", file).output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["new", "a", "--scope", "everything"], "Scopes: predict, admin"),
        (["new", "no name", "--scope", "predict"], "cannot be"),
        (["revoke", "nobody"], "none of that name"),
    ],
)
def test_a_token_that_cannot_be_is_refused(tmp_path: Path, arguments: list[str], words: str) -> None:
    file = tmp_path / "tokens.json"
    TokenFile().write(file)
    result = run("token", *arguments, "--file", file)
    assert isinstance(result.exception, UserError)
    assert words in str(result.exception)
    assert TokenFile.read(file) == TokenFile()
