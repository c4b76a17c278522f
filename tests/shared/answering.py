"""Servers that answer a client what a test wants: over HTTP, and as a stream."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, Response

PROBLEM = {
    "type": "urn:longhaul:problem:overloaded",
    "title": "Too much to do",
    "status": 503,
    "detail": "Ask again",
    "instance": "x",
}
NOTHING = {"degraded": False, "chunks": []}
CHUNK = {"index": 0, "duration_s": 0.01, "degraded": False, "seconds": 0.01, "models": [], "detections": []}


class Asked:
    """An application that keeps what it was asked, and answers what it is told to, one thing after another."""

    def __init__(self, *answers: Response) -> None:
        self.requests: list[tuple[Request, bytes]] = []
        self.app = FastAPI()
        left = list(answers)

        @self.app.post("/v1/detect")
        async def detect(request: Request) -> Response:
            self.requests.append((request, await request.body()))
            return left.pop(0) if left else JSONResponse(NOTHING)

    @property
    def last(self) -> tuple[Request, bytes]:
        return self.requests[-1]


def busy(retry_after: str = "0") -> Response:
    return JSONResponse(PROBLEM, 503, {"Retry-After": retry_after})


def streaming(
    *messages: dict[str, Any] | str, chunk_samples: int = 1000, read_all: bool = True, close: int | None = None
) -> tuple[FastAPI, list[Any]]:
    """An application that says `ready`, reads until the end if it shall, and then says `messages`; what it got is in the list."""
    app, got = FastAPI(), []

    @app.websocket("/v1/stream")
    async def stream(door: WebSocket) -> None:
        await door.accept()
        got.append(json.loads(await door.receive_text()))
        await door.send_text(json.dumps({"type": "ready", "chunk_samples": chunk_samples, "chunk_s": 0.01}))
        raw = 0
        while read_all:
            message = await door.receive()
            if message.get("bytes") is None:
                break
            raw += len(message["bytes"])
            while raw >= 8 * chunk_samples:
                raw -= 8 * chunk_samples
                await door.send_text(json.dumps({"type": "chunk", "answer": CHUNK, "tracks": []}))
        for message in messages:
            await door.send_text(message if isinstance(message, str) else json.dumps(message))
        if close is not None:
            await door.close(close)

    return app, got
