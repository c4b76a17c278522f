"""`WS /v1/stream`: samples in as they come, an answer and the changed tracks out for each chunk.

The first message says what the samples are; then come binary messages of any length. One chunk is in work while the next one
is read, and no more is read than that: who sends faster than the detectors look is slowed down by the connection itself.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Literal

from fastapi import APIRouter, WebSocket
from pydantic import BaseModel, ConfigDict
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect, WebSocketState

from longhaul.errors import UserError
from longhaul.serving.detection.tracks import Tracker
from longhaul.serving.http.answers import ChunkMessage, EndMessage, ErrorMessage, ReadyMessage
from longhaul.serving.http.detectors import Detectors
from longhaul.serving.http.guard import Caller, Guard, allow, bearer_token
from longhaul.serving.http.problems import Problem, failure_of, problem_of
from longhaul.serving.http.settings import ApiSettings
from longhaul.serving.http.stream_plan import StreamPlan, StreamStart, parsed
from longhaul.serving.http.streams import Streams
from longhaul.serving.http.tokens import Scope
from longhaul.serving.refusals import (
    BodyTooLarge,
    Forbidden,
    InvalidParameter,
    NotReady,
    Overloaded,
    SlowBody,
    Unauthorised,
)

PATH = "/v1/stream"
_BAD_DATA, _POLICY, _TOO_BIG, _SERVER_FAILED, _TRY_LATER = 1007, 1008, 1009, 1011, 1013
_CODES: dict[type[UserError], int] = {
    BodyTooLarge: _TOO_BIG,
    Forbidden: _POLICY,
    NotReady: _TRY_LATER,
    Overloaded: _TRY_LATER,
    SlowBody: _POLICY,
    Unauthorised: _POLICY,
}
_log = logging.getLogger(__name__)


class _End(BaseModel):
    """The last message."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["end"]


def stream_router(detectors: Detectors, guard: Guard, streams: Streams, settings: ApiSettings) -> APIRouter:
    """The route, over what answers it."""
    router = APIRouter()

    @router.websocket(PATH)
    async def stream(socket: WebSocket) -> None:
        await socket.accept()
        stream_id = socket.scope["state"]["request_id"]
        try:
            with streams.place(socket):
                await _Conversation(socket, detectors, guard, settings).run()
            await socket.close()
        except UserError as refusal:
            await _tell(socket, problem_of(socket.scope, refusal), _CODES.get(type(refusal), _BAD_DATA))
        except WebSocketDisconnect:
            _log.debug("stream %s: the client left", stream_id)
        except Exception:  # noqa: BLE001 - whatever it was, the client must hear of it and the server lives on
            if socket.application_state is not WebSocketState.CONNECTED:
                return  # the server ended it meanwhile
            _log.exception("stream %s failed", stream_id)
            await _tell(socket, failure_of(socket.scope), _SERVER_FAILED)

    return router


class _Conversation:
    """One stream, from its first message to its end."""

    def __init__(self, socket: WebSocket, detectors: Detectors, guard: Guard, settings: ApiSettings) -> None:
        self._socket = socket
        self._detectors = detectors
        self._guard = guard
        self._settings = settings
        self._tracker = Tracker()
        self._work: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Talk until the client says that it is over.

        Raises:
            UserError: what the client got wrong.
            WebSocketDisconnect: it left.
        """
        caller = self._known(bearer_token(self._socket.headers))
        first = await self._receive(self._settings.streams.first_message_s)
        if not isinstance(first, str):
            raise InvalidParameter("the first message is binary", "Send JSON that says what the samples are first")
        start = parsed(StreamStart, first)
        if caller is None:
            caller = self._guard.identify(start.token)
        self._socket.scope["state"]["caller"] = caller
        allow(caller, Scope.PREDICT)
        try:
            await self._converse(StreamPlan(start, self._detectors, self._settings.limits))
        finally:
            if self._work is not None:
                self._work.cancel()
                await asyncio.gather(self._work, return_exceptions=True)

    def _known(self, token: str | None) -> Caller | None:
        """Who is meant by the header; None if the first message has to say."""
        return self._guard.identify(token) if token is not None or self._guard.is_open else None

    async def _converse(self, plan: StreamPlan) -> None:
        self._detectors.admit(plan.deadline_s)
        await self._send(ReadyMessage(chunk_samples=plan.chunk_samples, chunk_s=plan.chunk_s))
        waiting = bytearray()
        chunks = 0
        while isinstance(message := await self._receive(self._settings.streams.idle_s), bytes):
            waiting += message
            while len(waiting) >= plan.chunk_bytes:
                await self._begin(plan, waiting[: plan.chunk_bytes], chunks)
                del waiting[: plan.chunk_bytes]
                chunks += 1
        parsed(_End, message)
        left_out_s = plan.remainder(waiting)
        if waiting and not left_out_s:
            await self._begin(plan, waiting, chunks)
        await self._finish()
        await self._send(EndMessage(left_out_s=left_out_s, tracks=tuple(self._tracker.tracks())))

    async def _begin(self, plan: StreamPlan, raw: bytearray, index: int) -> None:
        """Put a chunk to work, once the one before it is done."""
        await self._finish()
        self._work = asyncio.create_task(self._answer(plan, raw, index))

    async def _finish(self) -> None:
        """Wait for the chunk in work; what became of it is raised here."""
        work, self._work = self._work, None
        if work is not None:
            await work

    async def _answer(self, plan: StreamPlan, raw: bytearray, index: int) -> None:
        chunk = await asyncio.to_thread(plan.read, raw, index)
        answer = await self._detectors.answer(chunk, plan.deadline_s, plan.models, road="stream")
        answer, changed = await asyncio.to_thread(self._tracker.follow, answer)
        await self._send(ChunkMessage(answer=answer, tracks=tuple(changed)))

    async def _receive(self, patience_s: float) -> str | bytes:
        """The next message; meanwhile a chunk in work may fail, or be done.

        Raises:
            SlowBody: none came, though nothing was in work for so long.
            BodyTooLarge: it is longer than a message may be.
            WebSocketDisconnect: the client left.
        """
        reading = asyncio.ensure_future(self._socket.receive())
        try:
            while not reading.done():
                if self._work is not None:
                    await asyncio.wait((reading, self._work), return_when=asyncio.FIRST_COMPLETED)
                    if self._work.done():
                        await self._finish()
                elif not (await asyncio.wait((reading,), timeout=patience_s))[0]:
                    raise SlowBody(f"no message came for {patience_s:g} s", "Send samples, or an end")
            return self._content(reading.result())
        finally:
            reading.cancel()

    def _content(self, message: Message) -> str | bytes:
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005), message.get("reason"))
        text, octets = message.get("text"), message.get("bytes")
        limit = self._settings.limits.message_bytes
        if len(octets or text or "") > limit:
            raise BodyTooLarge(f"a message has more than {limit:,} bytes", "Send the samples in shorter ones")
        return bytes(octets) if octets is not None else text or ""

    async def _send(self, message: BaseModel) -> None:
        """Send a message; a client that does not read for too long loses its stream.

        Raises:
            SlowBody: so it is.
        """
        patience_s = self._settings.streams.idle_s
        try:
            await asyncio.wait_for(self._socket.send_text(message.model_dump_json(exclude_none=True)), patience_s)
        except TimeoutError:
            raise SlowBody(f"no answer was read for {patience_s:g} s", "Read while sending") from None


async def _tell(socket: WebSocket, problem: Problem, code: int) -> None:
    """Say why, and close; the client may be gone already."""
    with suppress(RuntimeError, WebSocketDisconnect, OSError):
        await socket.send_text(ErrorMessage(problem=problem).model_dump_json(exclude_none=True))
        await socket.close(code, problem.title)
