"""The streams that are open on this replica: how many there may be, and how they are ended when it stops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fastapi import WebSocket

from longhaul.serving.http.metrics import Metrics
from longhaul.serving.refusals import Overloaded

GOING_AWAY = 1001


class Streams:
    """Knows the open ones.

    Args:
        most: at a time.
        metrics: is told their number.
    """

    def __init__(self, most: int, metrics: Metrics) -> None:
        self._most = most
        self._metrics = metrics
        self._open: set[WebSocket] = set()

    @property
    def count(self) -> int:
        """How many are open."""
        return len(self._open)

    @contextmanager
    def place(self, socket: WebSocket) -> Iterator[None]:
        """A place for a stream, while it lasts.

        Raises:
            Overloaded: all are taken.
        """
        if len(self._open) >= self._most:
            raise Overloaded(f"{self._most} streams are open, which is the limit", "Try again later", retry_after_s=5)
        self._open.add(socket)
        self._metrics.streams(len(self._open))
        try:
            yield
        finally:
            self._open.discard(socket)
            self._metrics.streams(len(self._open))

    async def close_all(self, code: int = GOING_AWAY, reason: str = "the server stops") -> None:
        """End every stream; clients may open another at once, on another replica."""
        for socket in list(self._open):
            with suppress(RuntimeError):  # it has ended meanwhile
                await socket.close(code, reason)
