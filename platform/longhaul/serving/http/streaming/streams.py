"""The streams that are open on this replica: how many there may be, and how they are ended when it stops."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from fastapi import WebSocket

from longhaul.serving.http.intake.budget import Budget
from longhaul.serving.http.metrics import Metrics
from longhaul.serving.http.settings import StreamSettings
from longhaul.serving.refusals import Overloaded

GOING_AWAY = 1001


class Streams:
    """Knows the open ones.

    Args:
        settings: how many at a time, and how many strangers.
        chunk_bytes: of all chunks that they receive at the same time.
        metrics: is told their number.

    Attributes:
        arriving: room for those chunks.
    """

    def __init__(self, settings: StreamSettings, chunk_bytes: int, metrics: Metrics) -> None:
        self.arriving = Budget(chunk_bytes, "a stream's chunk")
        self._settings = settings
        self._metrics = metrics
        self._open: set[WebSocket] = set()
        self._strangers: dict[WebSocket, Callable[[], Awaitable[None]]] = {}  # in the order in which they came

    @property
    def count(self) -> int:
        """How many are open; those that have not said who they are do not count."""
        return len(self._open)

    @asynccontextmanager
    async def door(self, socket: WebSocket, leave: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """Where a stream waits until it has said who it is.

        Whoever has waited longest makes room for the next one: so sockets that say nothing keep nobody out who does.

        Args:
            socket: that waits.
            leave: asks it to go.
        """
        self._strangers[socket] = leave
        try:
            if len(self._strangers) > self._settings.strangers:
                await self._strangers.pop(next(iter(self._strangers)))()
            yield
        finally:
            self._strangers.pop(socket, None)

    @contextmanager
    def place(self, socket: WebSocket) -> Iterator[None]:
        """A place for a stream, while it lasts.

        Raises:
            Overloaded: all are taken.
        """
        if len(self._open) >= self._settings.most:
            raise Overloaded(f"{self._settings.most} streams are open, which is the limit", "Try again later", retry_after_s=5)
        self._open.add(socket)
        self._metrics.streams(len(self._open))
        try:
            yield
        finally:
            self._open.discard(socket)
            self._metrics.streams(len(self._open))

    async def close_all(self, code: int = GOING_AWAY, reason: str = "the server stops") -> None:
        """End every stream; clients may open another at once, on another replica."""
        for socket in [*self._open, *self._strangers]:
            with suppress(RuntimeError):  # it has ended meanwhile
                await socket.close(code, reason)
