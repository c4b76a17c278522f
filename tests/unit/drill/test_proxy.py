"""The proxy before S3 passes everything on, until it is told to refuse or to hold."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from longhaul.drill.proxy import Proxy


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = Proxy("127.0.0.1", server.server_address[1])
    yield found
    found.close()
    server.shutdown()
    server.server_close()


def _put(proxy: Proxy, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(proxy.address.removeprefix("http://"), timeout=30)
    try:
        connection.request("PUT", "/bucket/key", body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_large_bodies_pass_unchanged(proxy: Proxy) -> None:
    body = bytes(range(256)) * 20_000
    assert _put(proxy, body) == (200, body)
    assert proxy.struck == 0


def test_in_an_outage_every_request_is_answered_with_503(proxy: Proxy) -> None:
    proxy.set("refuse")
    status, body = _put(proxy, bytes(20_000_000))
    assert status == 503
    assert b"<Code>SlowDown</Code>" in body
    assert proxy.struck == 1
    proxy.set("pass")
    assert _put(proxy, b"again") == (200, b"again")


def test_a_held_connection_is_dropped_without_a_word_when_the_outage_ends(proxy: Proxy) -> None:
    proxy.set("hold")
    outcome: list[object] = []

    def put() -> None:
        try:
            outcome.append(_put(proxy, b"anybody?"))
        except (http.client.HTTPException, ConnectionError) as error:
            outcome.append(error)

    thread = threading.Thread(target=put)
    thread.start()
    while proxy.struck == 0:
        thread.join(0.01)
    assert not outcome
    proxy.set("pass")
    thread.join(30)
    assert isinstance(outcome[0], http.client.HTTPException | ConnectionError)


def test_an_outage_cuts_connections_that_stand(proxy: Proxy) -> None:
    connection = http.client.HTTPConnection(proxy.address.removeprefix("http://"), timeout=30)
    connection.request("PUT", "/", b"one")
    assert connection.getresponse().read() == b"one"
    proxy.set("refuse")
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        _ask(connection)
    connection.close()


def _ask(connection: http.client.HTTPConnection) -> None:
    connection.request("PUT", "/", b"two")
    connection.getresponse()
