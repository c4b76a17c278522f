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
from longhaul.serving.http.guard import Guard, allow, bearer_token
from longhaul.serving.http.intake.budget import DECODED_BYTES, Budget
from longhaul.serving.http.problems import Problem, failure_of, problem_of
from longhaul.serving.http.settings import ApiSettings
from longhaul.serving.http.streaming.stream_plan import StreamPlan, StreamStart, parsed
from longhaul.serving.http.streaming.streams import Streams
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
FIRST_MESSAGE_BYTES = 64 << 10
"""More than anybody has to say of samples; it comes from strangers too."""
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


def stream_router(detectors: Detectors, guard: Guard, streams: Streams, decoded: Budget, settings: ApiSettings) -> APIRouter:
    """The route, over what answers it; `decoded` is the room for chunks."""
    router = APIRouter()

    @router.websocket(PATH)
    async def stream(socket: WebSocket) -> None:
        await socket.accept()
        stream_id = socket.scope["state"]["request_id"]
        try:
            await _Conversation(socket, detectors, guard, streams, decoded, settings).run()
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

    def __init__(
        self,
        socket: WebSocket,
        detectors: Detectors,
        guard: Guard,
        streams: Streams,
        decoded: Budget,
        settings: ApiSettings,
    ) -> None:
        self._socket = socket
        self._detectors = detectors
        self._guard = guard
        self._streams = streams
        self._decoded = decoded
        self._settings = settings
        self._token = bearer_token(socket.headers)
        self._tracker = Tracker()
        self._work: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Talk until the client says that it is over.

        Raises:
            UserError: what the client got wrong.
            WebSocketDisconnect: it left.
        """
        if self._token is None and not self._guard.is_open:
            async with self._streams.door(self._socket, self._ask_to_leave):  # a stranger takes no place
                start = await self._first()
            self._token = start.token
            self._admit()
            with self._streams.place(self._socket):
                await self._talk(start)
        else:
            self._admit()
            with self._streams.place(self._socket):
                await self._talk(await self._first())

    async def _first(self) -> StreamStart:
        """The first message."""
        first = await self._receive(self._settings.streams.first_message_s, FIRST_MESSAGE_BYTES)
        if not isinstance(first, str):
            raise InvalidParameter("the first message is binary", "Send JSON that says what the samples are first")
        return parsed(StreamStart, first)

    async def _talk(self, start: StreamStart) -> None:
        try:
            plan = StreamPlan(start, self._detectors, self._settings.limits)
            async with self._streams.arriving.room(plan.chunk_bytes, plan.deadline_s):
                await self._converse(plan)
        finally:
            if self._work is not None:
                self._work.cancel()
                await asyncio.gather(self._work, return_exceptions=True)

    def _admit(self) -> None:
        """Ask the guard: at the start and for each chunk, as a token may be revoked at any time.

        Raises:
            Unauthorised, Forbidden, NotReady: it does not let the stream in, or go on.
        """
        caller = self._guard.identify(self._token)
        self._socket.scope["state"]["caller"] = caller
        allow(caller, Scope.PREDICT)

    async def _ask_to_leave(self) -> None:
        """Make room for another stranger."""
        crowded = Overloaded("too many streams wait for their first message", "Send it at once", retry_after_s=1)
        await _tell(self._socket, problem_of(self._socket.scope, crowded), _TRY_LATER)

    async def _converse(self, plan: StreamPlan) -> None:
        self._detectors.admit(plan.deadline_s, plan.models)
        await self._send(ReadyMessage(chunk_samples=plan.chunk_samples, chunk_s=plan.chunk_s))
        waiting = bytearray()
        chunks = 0
        while isinstance(message := await self._next(), bytes):
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

    async def _next(self) -> str | bytes:
        return await self._receive(self._settings.streams.idle_s, self._settings.limits.message_bytes)

    async def _begin(self, plan: StreamPlan, raw: bytearray, index: int) -> None:
        """Put a chunk to work, once the one before it is done."""
        await self._finish()
        self._admit()
        self._work = asyncio.create_task(self._answer(plan, raw, index))

    async def _finish(self) -> None:
        """Wait for the chunk in work; what became of it is raised here."""
        work, self._work = self._work, None
        if work is not None:
            await work

    async def _answer(self, plan: StreamPlan, raw: bytearray, index: int) -> None:
        async with self._decoded.room(DECODED_BYTES * plan.chunk_samples, plan.deadline_s):
            chunk = await asyncio.to_thread(plan.read, raw, index)
            answer = await self._detectors.answer(chunk, plan.deadline_s, plan.models, road="stream")
        answer, changed = await asyncio.to_thread(self._tracker.follow, answer)
        await self._send(ChunkMessage(answer=answer, tracks=tuple(changed)))

    async def _receive(self, patience_s: float, limit: int) -> str | bytes:
        """The next message, of `limit` bytes at most; meanwhile a chunk in work may fail, or be done.

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
            return _content(reading.result(), limit)
        finally:
            reading.cancel()

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


def _content(message: Message, limit: int) -> str | bytes:
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005), message.get("reason"))
    text, octets = message.get("text"), message.get("bytes")
    if len(octets or text or "") > limit:
        raise BodyTooLarge(f"a message has more than {limit:,} bytes", "Send the samples in shorter ones")
    return bytes(octets) if octets is not None else text or ""


async def _tell(socket: WebSocket, problem: Problem, code: int) -> None:
    """Say why, and close; the client may be gone already."""
    with suppress(RuntimeError, WebSocketDisconnect, OSError):
        await socket.send_text(ErrorMessage(problem=problem).model_dump_json(exclude_none=True))
        await socket.close(code, problem.title)
