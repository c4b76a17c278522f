"""`WS /v1/stream`: chunk by chunk what a request answers at once; whatever goes wrong ends it with a reason."""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
from http_signals import detect, tone
from starlette.websockets import WebSocketDisconnect

from longhaul.serving.http.answers import ChunkMessage, EndMessage
from longhaul.serving.http.tokens import TokenFile, new_token

START = {"sample_rate_hz": 1e6, "center_hz": 2.44e9, "datatype": "cf32_le", "deadline_ms": 20_000}


@contextmanager
def stream(client, start=START, **options):
    """An open stream whose first message has been answered."""
    with client.websocket_connect("/v1/stream", **options) as socket:
        socket.send_text(json.dumps(start))
        yield socket


def ready(socket) -> dict:
    message = socket.receive_json()
    assert message["type"] == "ready", message
    return message


def ended(socket, code: int, slug: str, words: str = "") -> None:
    """That the server ends the stream so."""
    message = socket.receive_json()
    assert message["type"] == "error", message
    assert message["problem"]["type"] == f"urn:longhaul:problem:{slug}", message
    assert words in message["problem"]["detail"]
    with pytest.raises(WebSocketDisconnect) as end:
        socket.receive_json()
    assert end.value.code == code


def test_a_stream_answers_as_a_request_does(client) -> None:
    samples = tone(3.6)
    expected = detect(client, samples, deadline_ms=20_000, tracks=True).json()
    raw = samples.tobytes()
    answers, changed = [], []
    with stream(client) as socket:
        assert ready(socket) == {"type": "ready", "chunk_samples": 10_000, "chunk_s": 0.01}
        for start in range(0, len(raw), 12_345):  # borders of messages fall within samples
            socket.send_bytes(raw[start : start + 12_345])
        socket.send_text('{"type": "end"}')
        while (message := socket.receive_json())["type"] == "chunk":
            ChunkMessage.model_validate(message)
            answers.append(message["answer"])
            changed += message["tracks"]
        end = EndMessage.model_validate(message)
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
    assert closed.value.code == 1000
    assert [answer["index"] for answer in answers] == [0, 1, 2, 3]
    for mine, theirs in zip(answers, expected["chunks"], strict=True):
        assert mine["start_s"] == theirs["start_s"]
        assert len(mine["detections"]) == len(theirs["detections"]) > 3
        for one, other in zip(mine["detections"], theirs["detections"], strict=True):
            assert one["box_px"] == other["box_px"]
            assert one["score"] == other["score"]
    assert [track.model_dump(mode="json") for track in end.tracks] == expected["tracks"]
    assert {track["id"] for track in changed} == {track.id for track in end.tracks}


def test_the_end_of_a_stream_that_is_no_half_chunk_is_left_out(client) -> None:
    with stream(client) as socket:
        ready(socket)
        socket.send_bytes(tone(1.3).tobytes())
        socket.send_text('{"type": "end"}')
        assert socket.receive_json()["type"] == "chunk"
        assert socket.receive_json()["left_out_s"] == pytest.approx(0.003)


@pytest.mark.parametrize(
    ("start", "slug", "words"),
    [
        ("hello", "invalid-parameter", "JSON"),
        ([], "invalid-parameter", "Send JSON of sample_rate_hz"),
        ({}, "invalid-parameter", "sample_rate_hz"),
        (START | {"extra": 1}, "invalid-parameter", "extra"),
        (START | {"sample_rate_hz": 0}, "invalid-parameter", "sample_rate_hz"),
        (START | {"sample_rate_hz": 1e200}, "broken-signal", "1e+200"),
        (START | {"sample_rate_hz": 2000}, "broken-signal", "under the 64 of a frame"),
        (START | {"datatype": "rf32_le"}, "invalid-parameter", "real samples"),
        (START | {"models": ["gird"]}, "unknown-model", "Did you mean 'grid'?"),
        (START | {"models": ["tiny"]}, "wrong-task", "no detector"),
        (START | {"models": []}, "invalid-parameter", "names none"),
        (START | {"deadline_ms": 1e9}, "invalid-parameter", "deadline_ms"),
    ],
)
def test_a_first_message_that_cannot_be(client, start, slug, words) -> None:
    with stream(client, start) as socket:
        ended(socket, 1007, slug, words)


def test_a_chunk_of_too_many_samples_is_refused(client) -> None:
    with stream(client, START | {"sample_rate_hz": 1e10}) as socket:
        ended(socket, 1009, "body-too-large", "100,000,000 samples")


def test_binary_where_text_is_due_and_text_where_samples_are(client) -> None:
    with client.websocket_connect("/v1/stream") as socket:
        socket.send_bytes(b"samples")
        ended(socket, 1007, "invalid-parameter", "first message is binary")
    for text in ("more?", '{"type": "stop"}'):
        with stream(client) as socket:
            ready(socket)
            socket.send_text(text)
            ended(socket, 1007, "invalid-parameter", "message")


def test_bad_samples_end_the_stream_while_more_is_read(client) -> None:
    samples = tone(3)
    samples[15_000] = np.nan
    with stream(client) as socket:
        ready(socket)
        socket.send_bytes(samples.tobytes())
        assert socket.receive_json()["type"] == "chunk"
        ended(socket, 1007, "broken-signal", "the stream: sample 15000 is nan")


def test_a_stream_that_ends_within_a_sample_is_told(client) -> None:
    with stream(client) as socket:
        ready(socket)
        socket.send_bytes(tone(1).tobytes()[:-5])
        socket.send_text('{"type": "end"}')
        ended(socket, 1007, "broken-signal", "its last 3 bytes")


def test_a_message_that_is_too_large_is_refused(serve) -> None:
    with stream(serve(limits={"message_bytes": 1000})) as socket:
        ready(socket)
        socket.send_bytes(b"\0" * 1001)
        ended(socket, 1009, "body-too-large", "more than 1,000 bytes")


def test_silence_ends_a_stream(serve) -> None:
    client = serve(streams={"first_message_s": 0.05, "idle_s": 0.05})
    with client.websocket_connect("/v1/stream") as socket:
        ended(socket, 1008, "too-slow", "no message came for 0.05 s")
    with stream(client) as socket:
        ready(socket)
        socket.send_bytes(b"\0" * 999)
        ended(socket, 1008, "too-slow", "no message came")


def test_a_full_server_says_when_to_come_again(serve, detectors, monkeypatch) -> None:
    client = serve(streams={"most": 1})
    with stream(client) as first:
        ready(first)
        with stream(client) as second:
            message = second.receive_json()
            assert message["problem"]["retry_after_s"] == 5
        first.send_text('{"type": "end"}')
        assert first.receive_json()["type"] == "end"
    monkeypatch.setattr(detectors.ensemble, "forecast_s", lambda models=None: 100.0)
    with stream(client) as socket:
        ended(socket, 1013, "overloaded", "100 s")


def test_one_chunk_is_in_work_and_no_more(client, detectors, monkeypatch) -> None:
    started, gate = [], threading.Event()
    detect_really = detectors.ensemble.detect

    async def slow(chunk, **options):
        import asyncio

        started.append(chunk.index)
        await asyncio.to_thread(gate.wait)
        return await detect_really(chunk, **options)

    monkeypatch.setattr(detectors.ensemble, "detect", slow)
    with stream(client) as socket:
        ready(socket)
        for _ in range(4):
            socket.send_bytes(tone(1).tobytes())
        while not started:
            time.sleep(0.001)
        assert started == [0]
        gate.set()
        assert [socket.receive_json()["answer"]["index"] for _ in range(4)] == [0, 1, 2, 3]


def test_who_leaves_takes_the_work_along(client, detectors, monkeypatch) -> None:
    import asyncio

    cancelled, begun = threading.Event(), threading.Event()

    async def endless(chunk, **options):
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    monkeypatch.setattr(detectors.ensemble, "detect", endless)
    with stream(client) as socket:
        ready(socket)
        socket.send_bytes(tone(1.5).tobytes())
        assert begun.wait(10)
        socket.close()
        assert cancelled.wait(10)  # before the test client ends the application's task itself
    while client.app.state.streams.count:  # its last steps
        time.sleep(0.001)


def test_what_nobody_expected_is_told_without_its_words(client, detectors, monkeypatch, caplog) -> None:
    async def broken(chunk, **options):
        raise RuntimeError("secret: /srv")

    monkeypatch.setattr(detectors.ensemble, "detect", broken)
    with stream(client) as socket:
        ready(socket)
        socket.send_bytes(tone(1).tobytes())
        ended(socket, 1011, "internal-server-error", "the reason by this id")
    assert "secret" in caplog.text


def test_the_server_may_end_all_streams(client) -> None:
    with stream(client) as socket:
        ready(socket)
        assert client.app.state.streams.count == 1
        client.portal.call(client.app.state.streams.close_all, 1012, "an update")
        with pytest.raises(WebSocketDisconnect) as end:
            socket.receive_json()
        assert end.value.code == 1012


def test_a_token_comes_in_the_header_or_in_the_first_message(serve, tmp_path) -> None:
    (reader, one), (chief, other) = new_token("reader", ["predict"]), new_token("chief", ["admin"])
    TokenFile(tokens=(one, other)).write(tmp_path / "tokens.json")
    client = serve(tokens=str(tmp_path / "tokens.json"), open_loopback=False)
    with stream(client, headers={"Authorization": f"Bearer {reader}"}) as socket:
        ready(socket)
    with stream(client, START | {"token": reader}) as socket:
        ready(socket)
    with stream(client) as socket:
        ended(socket, 1008, "unauthorised", "no token")
    with stream(client, START | {"token": "lh_wrong"}) as socket:
        ended(socket, 1008, "unauthorised", "not valid")
    with stream(client, headers={"Authorization": "Bearer lh_wrong"}) as socket:
        ended(socket, 1008, "unauthorised", "not valid")
    with stream(client, START | {"token": chief}) as socket:
        ended(socket, 1008, "forbidden", "scope predict")


@pytest.fixture
def guarded(tmp_path):
    """The path of a token file with `reader`, and the secret."""
    secret, entry = new_token("reader", ["predict"])
    TokenFile(tokens=(entry,)).write(tmp_path / "tokens.json")
    return tmp_path / "tokens.json", secret


def test_strangers_take_no_place(serve, guarded) -> None:
    path, secret = guarded
    client = serve(tokens=str(path), open_loopback=False, streams={"most": 1, "strangers": 2})
    with ExitStack() as stack:
        silent = [stack.enter_context(client.websocket_connect("/v1/stream")) for _ in range(2)]
        with stream(client, headers={"Authorization": f"Bearer {secret}"}) as socket:
            ready(socket)
        with stream(client, START | {"token": secret}) as socket:  # a third: the oldest makes room
            ready(socket)
        ended(silent[0], 1013, "overloaded", "wait for their first message")
        silent[1].send_text(json.dumps(START | {"token": secret}))
        ready(silent[1])
        with stream(client, START | {"token": secret}) as socket:  # whoever has a token needs a place all the same
            ended(socket, 1013, "overloaded", "1 streams are open")


def test_a_revoked_token_ends_an_open_stream(serve, guarded) -> None:
    path, secret = guarded
    client, before = serve(tokens=str(path), open_loopback=False), TokenFile.read(path)
    for options in ({"start": START | {"token": secret}}, {"headers": {"Authorization": f"Bearer {secret}"}}):
        before.write(path)
        with stream(client, **options) as socket:
            ready(socket)
            socket.send_bytes(tone(1).tobytes())
            assert socket.receive_json()["type"] == "chunk"
            TokenFile(tokens=()).write(path)
            socket.send_bytes(tone(1).tobytes())
            ended(socket, 1008, "unauthorised", "not valid")


@pytest.mark.parametrize(
    ("models", "words"), [(["x" * 129], "models.0"), (["grid"] * 65, "models"), (["abcdefgh" * 10_000], "more than 65,536 bytes")]
)
def test_names_of_models_have_bounds(client, models, words) -> None:
    with stream(client, START | {"models": models}) as socket:
        message = socket.receive_json()
        assert message["problem"]["status"] in (413, 422)
        assert words in message["problem"]["detail"]
        assert len(str(message)) < 1000
