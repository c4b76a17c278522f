"""The access log and the count of requests: who asked what, what came of it, how long and how much. Never what was in it."""

from __future__ import annotations

import logging
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longhaul.serving.http.metrics import Metrics

NO_ROUTE = "(none)"
CLIENT_LEFT = 499
"""The status of a request whose client did not wait for the answer, as nginx writes it."""
_FAILED = 500
_NORMAL, _NO_CODE = 1000, 1005
_log = logging.getLogger(__name__)


class Observer:
    """ASGI middleware: one line and one count for each request, and for each stream when it ends.

    Args:
        app: what is observed.
        metrics: what counts.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on, and look at what goes by."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status, received, sent = CLIENT_LEFT, 0, 0

        async def counted_receive() -> Message:
            nonlocal status, received
            message = await receive()
            received += _size(message)
            if message["type"] == "websocket.disconnect" and status == CLIENT_LEFT:
                status = message.get("code", _NO_CODE)
            return message

        async def counted_send(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "websocket.close" and status == CLIENT_LEFT:  # whoever closed first
                status = message.get("code", _NORMAL)
            sent += _size(message)
            await send(message)

        try:
            await self._app(scope, counted_receive, counted_send)
        except ClientDisconnect:
            raise
        except Exception:
            status = _FAILED
            raise
        finally:
            self._record(scope, status, time.perf_counter() - began, received, sent)

    def _record(self, scope: Scope, status: int, seconds: float, received: int, sent: int) -> None:
        state = scope.get("state", {})
        template = getattr(scope.get("route"), "path", NO_ROUTE)
        method = scope.get("method", "WS")
        self._metrics.request(method, template, status, seconds, received, sent)
        if "refusal" in state:
            self._metrics.refusal(state["refusal"])
        caller = state.get("caller")
        _log.info(
            "request %s: %s %s %d in %.1f ms, %d bytes in, %d out, token %s",
            state.get("request_id", "-"), method, template, status, 1e3 * seconds, received, sent,
            caller.name or "-" if caller else "-",
        )  # fmt: skip


def _size(message: Message) -> int:
    return len(message.get("body") or message.get("bytes") or message.get("text") or b"")
