"""The client and addresses and tokens that cannot be, connections that break, and servers that are none or read nothing."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from answering import NOTHING, PROBLEM, Asked, streaming
from fastapi import WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from listening import listening
from recordings import RATE, SAMPLES, written
from websockets.http11 import Request as WebSocketRequest
from websockets.server import ServerProtocol

from longhaul.errors import UserError
from longhaul.serving.client import Longhaul, Refused, Unreachable
from longhaul.signals.recording import open_recording

Serve = Callable[[Any], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(app)`: the application on a port of loopback until the test ends."""
    with contextlib.ExitStack() as stack:
        yield lambda app: stack.enter_context(listening(app))


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8000", "ftp://host", "http://", "", "http://host:abc", "http://host:99999", "http://[::1", "http://a:PASSWORD@[::1",
     "ftp://user:PASS/WORD@host", "user:PASSWORD@host:80"],
)  # fmt: skip
def test_what_is_no_address_is_refused_and_no_password_is_quoted(url: str) -> None:
    with pytest.raises(UserError, match="is no address") as refused:
        Longhaul(url)
    assert "PASS" not in str(refused.value)


@pytest.mark.parametrize("token", ["lh_SECRET\nX: y", "lh_SECRET\u00e9", "lh SECRET", "lh_SECRET\udcff"])
def test_what_no_token_can_be_is_refused_and_not_quoted(token: str) -> None:
    with pytest.raises(UserError, match="longhaul token new") as refused:
        Longhaul("http://127.0.0.1:1", token)
    assert "SECRET" not in str(refused.value)
    assert "SECRET" not in repr(refused.value.__context__)


def test_a_token_from_a_file_may_end_with_its_newline(serve: Serve) -> None:
    asked = Asked()
    with Longhaul(serve(asked.app), "lh_secret\n") as server:
        server.detect_iq(SAMPLES, RATE)
    assert asked.last[0].headers["authorization"] == "Bearer lh_secret"


def test_a_password_in_the_address_goes_to_the_proxy_that_wants_it_and_into_no_message(tmp_path: Path, serve: Serve) -> None:
    asked = Asked()
    with Longhaul(serve(asked.app).replace("//", "//user:p%40ss@")) as server:
        server.detect_iq(SAMPLES, RATE)
        assert "user" not in server.url
    assert asked.last[0].headers["authorization"] == "Basic " + base64.b64encode(b"user:p@ss").decode()
    with Longhaul("http://user:PASSWORD@127.0.0.1:1") as server, open_recording(written(tmp_path)) as recording:
        for ask in (server.models, lambda: list(server.stream(recording))):
            with pytest.raises(Unreachable) as nobody:
                ask()
            assert "PASSWORD" not in str(nobody.value)
    with pytest.raises(UserError, match="Leave one out") as both:
        Longhaul("http://user:PASSWORD@host", "lh_SECRET")
    assert not {"PASSWORD", "SECRET"} & set(str(both.value).replace(":", " ").split())


class Breaking:
    """A server that closes the first connections when it has read the request, and answers the others."""

    def __init__(self, breaks: int, answer: bytes = json.dumps(NOTHING).encode()) -> None:
        self.asked = 0
        self._breaks, self._answer = breaks, answer
        self._door = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._door.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Breaking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._door.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._door.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._door.accept()
                with connection, connection.makefile("rb") as lines:
                    length = 0
                    while (line := lines.readline().strip().lower()) != b"":
                        length = int(line.split(b":")[1]) if line.startswith(b"content-length") else length
                    lines.read(length)
                    self.asked += 1
                    if self.asked > self._breaks:
                        head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(self._answer)}\r\n\r\n"
                        connection.sendall(head.encode() + self._answer)


def test_what_a_dying_replica_took_with_it_is_asked_again_once(tmp_path: Path) -> None:
    with Breaking(1) as broken, Longhaul(broken.url) as server:
        assert server.detect(written(tmp_path)).chunks == ()
        assert broken.asked == 2
    with Breaking(2) as broken, Longhaul(broken.url) as server:
        with pytest.raises(Unreachable):
            server.detect_iq(SAMPLES, RATE)
        assert broken.asked == 2


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_proxy_that_lost_its_replica_is_asked_again_once(serve: Serve, status: int) -> None:
    asked = Asked(PlainTextResponse("no replica", status))
    with Longhaul(serve(asked.app)) as server:
        assert server.detect_iq(SAMPLES, RATE).chunks == ()
    assert len(asked.requests) == 2


def test_a_problem_of_the_server_itself_is_not_asked_again(serve: Serve) -> None:
    asked = Asked(JSONResponse({**PROBLEM, "status": 500, "title": "Failed"}, 500))
    with Longhaul(serve(asked.app)) as server, pytest.raises(Refused, match=r"\(500\): Failed"):
        server.detect_iq(SAMPLES, RATE)
    assert len(asked.requests) == 1


def test_a_stream_that_breaks_before_it_began_is_opened_again_once(serve: Serve) -> None:
    app, got = streaming({"type": "end", "tracks": []})
    whole = app.router.routes[-1].endpoint  # type: ignore[attr-defined]
    app.router.routes.pop()
    times: list[int] = []

    @app.websocket("/v1/stream")
    async def stream(door: WebSocket) -> None:
        times.append(1)
        if len(times) > 1:
            await whole(door)
            return
        await door.accept()
        await door.receive_text()
        raise SystemError("a replica that dies")

    with Longhaul(serve(app)) as server:
        assert len(list(server.stream_iq([bytes(80)], "cf32_le", RATE))) == 1
    assert (len(times), len(got)) == (2, 1)


@pytest.mark.parametrize("answer", [b"<html>hello</html>", b"[]", b"\xff\xfe", b"{}", b'{"models": 3, "chunks": 3}'])
def test_what_is_no_longhaul_server_is_told(answer: bytes) -> None:
    with Breaking(0, answer) as other, Longhaul(other.url) as server:
        for ask in (server.models, lambda: server.detect_iq(SAMPLES, RATE)):
            with pytest.raises(Unreachable, match="something else than a Longhaul server"):
                ask()


@pytest.mark.parametrize("said", ["NaN", "-1", "1e999", '"soon"', "null"])
def test_a_wait_that_is_no_time_is_not_waited_for(serve: Serve, said: str) -> None:
    asked = Asked(Response('{"type": "urn:x:busy", "title": "Busy", "retry_after_s": %s}' % said, 503))  # noqa: UP031
    with Longhaul(serve(asked.app), patience_s=5) as server, pytest.raises(Refused, match="Busy"):
        server.detect_iq(SAMPLES, RATE)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
def test_times_that_are_none_are_refused(tmp_path: Path, value: float) -> None:
    with Longhaul("http://127.0.0.1:1") as server, open_recording(written(tmp_path)) as recording:
        with pytest.raises(UserError, match="nothing lies there"):
            server.detect_stretch(recording, start_s=value)
        if value != 1e300:
            with pytest.raises(UserError, match="nothing lies there"):
                server.detect_stretch(recording, duration_s=value)
            with pytest.raises(UserError, match="is no time"):
                server.detect_stretch(recording, deadline_s=value)


def test_a_server_that_reads_nothing_is_not_waited_for_without_end() -> None:
    blocks = (bytes(1 << 20) for _ in range(64))
    with (
        reading_nothing() as url,
        Longhaul(url, timeout_s=0.2) as server,
        pytest.raises(Unreachable, match=r"took nothing for 0\.2 s"),
    ):
        list(server.stream_iq(blocks, "cf32_le", RATE))


@contextlib.contextmanager
def reading_nothing() -> Iterator[str]:
    """A server that says `ready` and then reads no more; its address."""
    held = []

    def serve_one(door: socket.socket) -> None:
        connection, _ = door.accept()
        held.append(connection)
        protocol = ServerProtocol()
        ready = json.dumps({"type": "ready", "chunk_samples": 10**9, "chunk_s": 1.0}).encode()
        events: list[Any] = []
        while len(events) < 2:  # the handshake, and the first message
            protocol.receive_data(connection.recv(1 << 16))
            for event in protocol.events_received():
                if not events:
                    assert isinstance(event, WebSocketRequest)
                    protocol.send_response(protocol.accept(event))
                else:
                    protocol.send_text(ready)
                events.append(event)
            for data in protocol.data_to_send():
                connection.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = threading.Thread(target=serve_one, args=(door,))
        thread.start()
        yield f"http://127.0.0.1:{door.getsockname()[1]}"
        thread.join()
        for connection in held:
            connection.close()
