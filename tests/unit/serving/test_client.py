"""The client against servers that refuse, wait, break off and fall silent; and against the real one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answering import PROBLEM, Asked, busy, streaming
from fastapi import FastAPI, WebSocket
from fastapi.responses import PlainTextResponse, Response
from grid_detector import CHUNK_SAMPLES, SAMPLE_RATE_HZ, publish_grid_detector
from listening import listening
from recordings import CENTER, RATE, SAMPLES, written

from longhaul.errors import UserError
from longhaul.export.registry import Registry
from longhaul.serving.client import Longhaul, Refused, Unreachable
from longhaul.serving.http.api import build_api
from longhaul.serving.http.settings import ApiSettings
from longhaul.serving.http.tokens import TokenFile, new_token
from longhaul.serving.models.catalog import choose, load
from longhaul.signals.recording import open_recording, write_recording

Serve = Callable[[Any], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(app)`: the application on a port of loopback until the test ends."""
    with contextlib.ExitStack() as stack:
        yield lambda app: stack.enter_context(listening(app))


def test_importing_the_client_imports_no_ray() -> None:
    script = "import sys, longhaul.serving.client; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_samples_at_hand_are_sent_as_complex_floats_with_rate_and_centre(serve: Serve) -> None:
    asked = Asked()
    with Longhaul(serve(asked.app), "secret") as server:
        server.detect_iq(SAMPLES, RATE, CENTER, models=["a", "b"], deadline_s=0.25, tracks=True)
    request, body = asked.last
    assert np.array_equal(np.frombuffer(body, "<c8"), SAMPLES)
    assert request.headers["x-sigmf-datatype"] == "cf32_le"
    assert float(request.headers["x-sigmf-sample-rate"]) == RATE
    assert float(request.headers["x-sigmf-center-frequency"]) == CENTER
    assert request.headers["authorization"] == "Bearer secret"
    assert dict(request.query_params) == {"models": "a,b", "deadline_ms": "250", "tracks": "true"}


def test_of_a_stretch_only_its_bytes_are_sent_as_they_lie_in_the_file(tmp_path: Path, serve: Serve) -> None:
    asked = Asked()
    with Longhaul(serve(asked.app)) as server, open_recording(written(tmp_path, datatype="ci16_le")) as recording:
        server.detect_stretch(recording, start_s=1000 / RATE, duration_s=500 / RATE)
    request, body = asked.last
    assert body == recording.data.read_bytes()[4000:6000]
    assert request.headers["x-sigmf-datatype"] == "ci16_le"


def test_a_pair_is_sent_with_its_metadata_and_a_tile_as_what_it_is(tmp_path: Path, serve: Serve) -> None:
    asked = Asked(busy())
    meta = written(tmp_path)
    tile = tmp_path / "tile.png"
    tile.write_bytes(b"no picture, but the server does not look")
    with Longhaul(serve(asked.app), patience_s=5) as server:
        server.detect(meta)
        assert len(asked.requests) == 2, "the busy server was not asked again"
        assert meta.read_bytes() in asked.last[1], "the file is at its end when it is sent the second time"
        assert open_recording(meta).data.read_bytes() in asked.last[1]
        server.detect(tile)
        server.detect_reference("s3://bucket/capture")
    (sent, body), (pointed, uri) = asked.requests[-2:]
    assert (sent.headers["content-type"], body) == ("image/png", tile.read_bytes())
    assert (pointed.headers["content-type"], json.loads(uri)) == ("application/json", {"uri": "s3://bucket/capture"})


def test_a_stretch_outside_of_the_recording_and_a_missing_file_are_told_before_anything_is_sent(tmp_path: Path) -> None:
    with Longhaul("http://127.0.0.1:1") as server, open_recording(written(tmp_path)) as recording:
        with pytest.raises(UserError, match="nothing lies there"):
            server.detect_stretch(recording, start_s=1.0)
        with pytest.raises(UserError, match="there is no such"):
            server.detect(tmp_path / "none.sigmf-meta")
        with pytest.raises(UserError, match="there is no such file"):
            server.detect(tmp_path / "none.png")


def test_a_busy_server_is_asked_again_only_if_there_is_patience(serve: Serve) -> None:
    asked = Asked(busy())
    url = serve(asked.app)
    with Longhaul(url) as server, pytest.raises(Refused, match="Too much to do: Ask again") as caught:
        server.detect_iq(SAMPLES, RATE)
    assert (caught.value.status, caught.value.kind, caught.value.retry_after_s) == (503, "overloaded", 0.0)
    with Longhaul(url, patience_s=5) as server:
        assert server.detect_iq(SAMPLES, RATE).chunks == ()


def test_a_wait_longer_than_the_patience_is_not_begun(serve: Serve) -> None:
    asked = Asked(busy("3600"))
    with Longhaul(serve(asked.app), patience_s=5) as server, pytest.raises(Refused):
        server.detect_iq(SAMPLES, RATE)


def test_an_error_that_waiting_does_not_mend_is_told_at_once_in_the_words_of_whoever_answered(serve: Serve) -> None:
    asked = Asked(PlainTextResponse("queue is full", 429), Response(status_code=502), Response(status_code=502))
    with Longhaul(serve(asked.app), patience_s=5) as server:
        with pytest.raises(Refused, match=r"\(429\): queue is full"):
            server.detect_iq(SAMPLES, RATE)
        with pytest.raises(Refused, match=r"\(502\): Bad Gateway"):
            server.detect_iq(SAMPLES, RATE)


def test_where_nobody_answers_the_error_says_what_to_start(tmp_path: Path) -> None:
    with Longhaul("http://127.0.0.1:1") as server, open_recording(written(tmp_path)) as recording:
        with pytest.raises(Unreachable, match="longhaul serve"):
            server.detect_iq(SAMPLES, RATE)
        with pytest.raises(Unreachable, match="longhaul serve"):
            list(server.stream(recording))


def test_a_recording_is_streamed_with_an_update_for_each_chunk_and_one_at_the_end(tmp_path: Path, serve: Serve) -> None:
    app, got = streaming({"type": "end", "tracks": [], "left_out_s": 0.25})
    with Longhaul(serve(app)) as server, open_recording(written(tmp_path)) as recording:
        updates = list(server.stream(recording, deadline_s=0.1, models=["a"]))
    assert got[0] == {
        "sample_rate_hz": RATE, "center_hz": CENTER, "datatype": "cf32_le", "deadline_ms": 100, "models": ["a"],
    }  # fmt: skip
    assert [update.answer is None for update in updates] == [False] * 5 + [True]
    assert updates[-1].left_out_s == 0.25


def test_a_stream_that_the_server_ends_tells_its_problem_though_more_was_on_its_way(serve: Serve) -> None:
    app, _ = streaming({"type": "error", "problem": {**PROBLEM, "status": 400, "title": "No"}}, read_all=False)
    blocks = (bytes(1 << 20) for _ in range(64))
    with Longhaul(serve(app)) as server, pytest.raises(Refused, match=r"\(400\): No: Ask again"):
        list(server.stream_iq(blocks, "cf32_le", RATE))


def test_no_more_than_two_chunks_are_on_their_way_unanswered(serve: Serve) -> None:
    app, waited = FastAPI(), []

    @app.websocket("/v1/stream")
    async def stream(door: WebSocket) -> None:
        await door.accept()
        await door.receive_text()
        await door.send_text(json.dumps({"type": "ready", "chunk_samples": 1000, "chunk_s": 0.01}))
        for _ in range(2):
            await door.receive_bytes()
        try:
            await asyncio.wait_for(door.receive(), 0.3)
        except TimeoutError:
            waited.append(True)

    with Longhaul(serve(app)) as server, pytest.raises(Unreachable):
        list(server.stream_iq([bytes(8000)] * 5, "cf32_le", RATE))
    assert waited


def test_a_busy_stream_is_begun_again_with_patience(serve: Serve) -> None:
    app, times = FastAPI(), []

    @app.websocket("/v1/stream")
    async def stream(door: WebSocket) -> None:
        await door.accept()
        await door.receive_text()
        times.append(1)
        if len(times) < 2:
            await door.send_text(json.dumps({"type": "error", "problem": {**PROBLEM, "retry_after_s": 0.1}}))
            return
        await door.send_text(json.dumps({"type": "ready", "chunk_samples": 1000, "chunk_s": 0.01}))
        while "bytes" in await door.receive():
            pass
        await door.send_text(json.dumps({"type": "end", "tracks": []}))

    with Longhaul(serve(app), patience_s=5) as server:
        assert len(list(server.stream_iq([bytes(80)], "cf32_le", RATE))) == 1
    assert len(times) == 2


@pytest.mark.parametrize(
    ("messages", "close", "words"),
    [
        ((), 1000, r"\(1000\): the stream was ended"),
        ((), None, "broke off"),
        (('{"type": "news"}',), 1000, "the server said something unknown"),
        (('{"type": "ready", "chunk_samples": 1, "chunk_s": 1}',), 1000, "said 'ready' in the middle"),
    ],
)
def test_a_stream_that_ends_otherwise_than_agreed_is_told(
    serve: Serve, messages: tuple[str, ...], close: int | None, words: str
) -> None:
    app, _ = streaming(*messages, close=close)
    with Longhaul(serve(app)) as server, pytest.raises((Refused, Unreachable), match=words):
        list(server.stream_iq([bytes(80)], "cf32_le", RATE))


def test_silence_in_a_stream_is_not_waited_for_without_end(serve: Serve) -> None:
    app = FastAPI()

    @app.websocket("/v1/stream")
    async def stream(door: WebSocket) -> None:
        await door.accept()
        await door.receive_text()
        await door.receive()

    with Longhaul(serve(app), timeout_s=0.3) as server, pytest.raises(Unreachable, match="fell silent"):
        list(server.stream_iq([bytes(80)], "cf32_le", RATE))


def test_a_refusal_before_the_stream_begins_is_the_same_as_one_over_http(serve: Serve) -> None:
    app = FastAPI()  # no such route: 403 from the WebSocket's side
    with Longhaul(serve(app)) as server, pytest.raises(Refused, match=r"\(403\)"):
        list(server.stream_iq([bytes(80)], "cf32_le", RATE))


@pytest.fixture
def real(tmp_path: Path, serve: Serve) -> Iterator[tuple[str, str]]:
    """A server of two detectors that asks for a token; its address, and a token."""
    registry = Registry(str(tmp_path / "models"))
    for name in ("grid", "wide"):
        publish_grid_detector(registry, name)
    secret, entry = new_token("tests", ["predict"])
    TokenFile(tokens=(entry,)).write(tmp_path / "tokens.json")
    catalog = load(registry, choose(registry))
    yield serve(build_api(catalog, ApiSettings(tokens=tmp_path / "tokens.json"))), secret
    catalog.close()


def noisy(chunks: float) -> Any:
    """Noise in which a strong tone fills the first half of each chunk."""
    place = np.arange(round(chunks * CHUNK_SAMPLES))
    tone = np.where(place % CHUNK_SAMPLES < CHUNK_SAMPLES // 2, 0.5, 0) * np.exp(2j * np.pi * 0.2 * place)
    noise = np.random.default_rng(0).normal(size=(place.size, 2)).astype(np.float32).view(np.complex64)[:, 0] * 1e-3
    return (tone + noise).astype(np.complex64)


def test_the_real_server_answers_the_same_however_a_recording_is_sent(tmp_path: Path, real: tuple[str, str]) -> None:
    samples = noisy(3.5)
    meta = write_recording(tmp_path / "roof", samples, sample_rate_hz=SAMPLE_RATE_HZ, center_hz=CENTER)
    with Longhaul(*real) as server, open_recording(meta) as recording:
        whole = server.detect(meta, tracks=True)
        answers = [
            server.detect_iq(samples, SAMPLE_RATE_HZ, CENTER, tracks=True).chunks,
            server.detect_stretch(recording, tracks=True).chunks,
            tuple(update.answer for update in server.stream(recording) if update.answer),
        ]
        tracks = list(server.stream(recording))[-1].tracks
    found = [[one.detections for one in chunks] for chunks in (whole.chunks, *answers)]
    assert len(found[0]) == 4  # the last half is a chunk of its own
    assert all(found[0])
    assert found[1:] == [found[0]] * 3
    assert whole.tracks == tracks
    assert whole.center_hz == CENTER


def test_the_real_server_lists_its_models_and_takes_no_wrong_token(real: tuple[str, str]) -> None:
    url, secret = real
    with Longhaul(url, secret) as server:
        assert sorted(model["name"] for model in server.models()) == ["grid", "wide"]
        assert server.model("grid")["manifest"]["name"] == "grid"
        assert server.health()["status"] == "ok"
        with pytest.raises(Refused) as unknown:
            server.detect_iq(noisy(1), SAMPLE_RATE_HZ, models=["nobody"])
        assert unknown.value.kind == "unknown-model"
    for token in ("wrong", None):
        with Longhaul(url, token) as stranger:
            with pytest.raises(Refused) as refused:
                stranger.models()
            assert refused.value.status == 401
            with pytest.raises(Refused) as refused:
                list(stranger.stream_iq([bytes(80)], "cf32_le", SAMPLE_RATE_HZ))
            assert refused.value.status == 401


def test_a_server_of_the_real_kind_tells_why_it_ends_a_stream(real: tuple[str, str]) -> None:
    samples = noisy(2)
    samples[12_345] = np.nan
    with Longhaul(*real) as server, pytest.raises(Refused, match="12345") as refused:
        list(server.stream_iq([samples.tobytes()], "cf32_le", SAMPLE_RATE_HZ))
    assert refused.value.status == 400


def test_the_readmes_example_runs(tmp_path: Path, real: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "Longhaul(" in block)
    (path,) = re.findall(r'"(\S+\.sigmf-meta)"', example)
    meta = tmp_path / path
    meta.parent.mkdir(parents=True)
    write_recording(meta.with_suffix(""), noisy(2), sample_rate_hz=SAMPLE_RATE_HZ, center_hz=CENTER)
    url, secret = real
    monkeypatch.chdir(tmp_path)
    exec(compile(example.replace('"http://127.0.0.1:8000"', repr(url) + f", {secret!r}"), "README.md", "exec"), {})
