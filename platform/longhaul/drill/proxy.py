"""A proxy before an S3 server that can be told to misbehave.

It passes bytes on as they are. In an outage it cuts what is open and treats every new connection alike: `refuse` answers each
request with S3's 503 Slow Down, `hold` takes the connection and says nothing until the outage ends, then drops it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Literal

Mode = Literal["pass", "refuse", "hold"]
_BLOCK = 64 << 10
_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_HEAD = b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(
    _SLOW_DOWN
)


class Proxy:
    """Listens on a free port of loopback until `close`.

    Args:
        host, port: of the server behind.
    """

    def __init__(self, host: str, port: int) -> None:
        self._behind = (host, port)
        self._mode: Mode = "pass"
        self._changed = threading.Event()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.struck = 0
        """Connections that an outage has cut, refused or held."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, name="drill-proxy", daemon=True).start()

    def set(self, mode: Mode) -> None:
        """From now on, all connections are treated so."""
        with self._lock:
            self._mode = mode
            self._changed.set()
            self._changed = threading.Event()
            cut = list(self._open)
        for connection in cut:
            _end(connection)
        self.struck += len(cut)

    def close(self) -> None:
        """Stop listening and drop everything."""
        self._listener.close()
        self.set("pass")

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            with self._lock:
                mode, changed = self._mode, self._changed
                self._open.add(client)
            try:
                if mode == "pass":
                    self._relay(client)
                    return
                self.struck += 1
                if mode == "hold":
                    changed.wait()
                else:
                    _refuse(client)
            finally:
                with self._lock:
                    self._open.discard(client)

    def _relay(self, client: socket.socket) -> None:
        with socket.create_connection(self._behind) as server:
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(_BLOCK):
            target.sendall(block)
    for end in (source, target):
        _end(end)


def _refuse(client: socket.socket) -> None:
    """Answer once the request has been read: a client that still sends would miss an earlier answer."""
    client.settimeout(5.0)
    data = b""
    while b"\r\n\r\n" not in data:
        block = client.recv(_BLOCK)
        if not block:
            return
        data += block
    head, _, body = data.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    if b"100-continue" not in fields.get(b"expect", b""):
        missing = int(fields.get(b"content-length", b"0")) - len(body)
        while missing > 0 and (block := client.recv(_BLOCK)):
            missing -= len(block)
    client.sendall(_HEAD if head.startswith(b"HEAD ") else _HEAD + _SLOW_DOWN)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
