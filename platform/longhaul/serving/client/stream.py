"""The client's side of `WS /v1/stream`: samples there, answers back, and no silence that is waited for without end.

Wraps `websockets.sync.client.connect`.
"""

from __future__ import annotations

import contextlib
import json
import socket as network
import ssl
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from longhaul.serving.client.failures import Attempts, Refused, Unreachable, ending_told, from_problem, refusal, unreachable
from longhaul.serving.detection.answers import ChunkAnswer
from longhaul.serving.detection.tracks import Track
from longhaul.serving.http.answers import ChunkMessage, EndMessage, ErrorMessage, ReadyMessage

_MESSAGE_BYTES = 1 << 20  # servers and proxies refuse long WebSocket messages
_ANSWER_BYTES = 64 << 20  # the longest answer to a chunk that is read
_AHEAD = 2  # chunks that may be on their way: one in work, the next one there when it is done
_FAREWELL_S = 10.0  # the longest wait for the other side's goodbye
_LONGEST_S = 1e6  # a system takes no longer time limit
_VERSION = "Take a client of the server's version"

StreamMessage = ReadyMessage | ChunkMessage | EndMessage | ErrorMessage
_MESSAGES: TypeAdapter[StreamMessage] = TypeAdapter(Annotated[StreamMessage, Field(discriminator="type")])


class StreamUpdate(BaseModel):
    """What a stream has to say: one for each chunk, and one at its end.

    Attributes:
        answer: of a chunk; None at the end.
        tracks: those that this chunk changed; all of the stream's at the end.
        left_out_s: the end of the signal that was too short for a chunk of its own; known at the end.
    """

    model_config = ConfigDict(frozen=True)

    answer: ChunkAnswer | None = None
    tracks: tuple[Track, ...] = ()
    left_out_s: float = 0.0


class _BrokeOff(Unreachable):
    """Somebody was there, and the connection ended before an answer."""


@dataclass(frozen=True)
class StreamDoor:
    """Where a server takes streams.

    Attributes:
        url: the server's, without a name and password.
        headers: who asks.
        timeout_s: the longest silence that is waited for, and the longest time in which the server takes nothing.
    """

    url: str
    headers: Mapping[str, str]
    timeout_s: float

    def converse(
        self, opening: Mapping[str, Any], blocks: Iterable[bytes], sample_bytes: int, attempts: Attempts
    ) -> Iterator[StreamUpdate]:
        """Open a stream, send blocks of any length, and give what the server says to each chunk and at the end.

        Args:
            opening: the first message.
            blocks: samples of `sample_bytes` each.
            sample_bytes: of one sample.
            attempts: how often the opening may be repeated; what follows is not.

        Raises:
            Unreachable: nobody is there, or the stream falls silent or breaks off.
            Refused: the server does not take it, or ends it.
        """
        with contextlib.ExitStack() as until_then, ending_told(self.url):
            socket, ready = self._opened(opening, attempts, until_then)
            yield from self._converse(socket, blocks, ready.chunk_samples * sample_bytes)

    def _opened(
        self, opening: Mapping[str, Any], attempts: Attempts, until_then: contextlib.ExitStack
    ) -> tuple[ClientConnection, ReadyMessage]:
        """A stream that the server waits for samples of."""
        while True:
            try:
                with contextlib.ExitStack() as stack:
                    socket = self._connected(stack)
                    self._send(socket, json.dumps(opening))
                    ready = _message(socket, self.timeout_s)
                    if not isinstance(ready, ReadyMessage):
                        raise Unreachable(f"{self.url}: a stream began with {ready.type!r}", _VERSION)
                    until_then.enter_context(stack.pop_all())
                    return socket, ready
            except Refused as refused:
                attempts.refused(refused)
            except _BrokeOff as broken:
                attempts.broke(broken)
            except ConnectionClosed as error:
                if error.rcvd is not None:
                    raise
                attempts.broke(_BrokeOff(f"{self.url}: the connection broke off", "Ask again; the server's log says more"))

    def _connected(self, stack: contextlib.ExitStack) -> ClientConnection:
        parts = urlsplit(self.url)
        address = urlunsplit((parts.scheme.replace("http", "ws"), parts.netloc, f"{parts.path}/v1/stream", "", ""))
        try:
            connection = connect(
                address,
                additional_headers=self.headers,
                open_timeout=self.timeout_s,
                close_timeout=min(self.timeout_s, _FAREWELL_S),
                compression=None,  # noise does not pack
                max_size=_ANSWER_BYTES,
            )
        except InvalidStatus as error:
            answer = error.response
            raise refusal(answer.status_code, answer.headers, bytes(answer.body or b"")) from None
        except (ConnectionResetError, EOFError, InvalidMessage) as error:
            raise _BrokeOff(*unreachable(self.url, error).args) from None
        except (OSError, InvalidHandshake, InvalidURI) as error:
            raise unreachable(self.url, error) from None
        # The library's own limits are for opening and closing: without this, a server that reads nothing is waited for.
        whole = min(max(self.timeout_s, 1e-3), _LONGEST_S)
        limit = struct.pack("ll", int(whole), int(whole % 1 * 1e6))
        with contextlib.suppress(OSError):  # the server has ended it already; why is read later
            connection.socket.setsockopt(network.SOL_SOCKET, network.SO_SNDTIMEO, limit)
        return stack.enter_context(connection)

    def _converse(self, socket: ClientConnection, blocks: Iterable[bytes], chunk_bytes: int) -> Iterator[StreamUpdate]:
        """Send blocks and read answers in turn, a few chunks ahead: a server that nobody reads from stops reading itself."""
        sent = answered = 0
        for block in blocks:
            for piece in _pieces(block, _MESSAGE_BYTES):
                while sent // chunk_bytes - answered >= _AHEAD:
                    yield _update(_message(socket, self.timeout_s))
                    answered += 1
                self._send(socket, piece)
                sent += len(piece)
        self._send(socket, json.dumps({"type": "end"}))
        while True:
            message = _message(socket, self.timeout_s)
            yield _update(message)
            if isinstance(message, EndMessage):
                return

    def _send(self, socket: ClientConnection, message: str | bytes) -> None:
        """Send; where the server has ended the stream, it said why before."""
        try:
            socket.send(message)
        except ConnectionClosed as ending:
            with contextlib.suppress(ConnectionClosed):
                while True:  # until its error, or the end of what it said
                    _message(socket, 0)
            if isinstance(ending.__cause__, (BlockingIOError, ssl.SSLWantWriteError)):
                raise Unreachable(
                    f"{self.url}: took nothing for {self.timeout_s:g} s", "Ask again; the server's log says more"
                ) from None
            raise


def _pieces(block: bytes, most: int) -> Iterator[bytes]:
    return (block[begin : begin + most] for begin in range(0, len(block), most))


def _message(socket: ClientConnection, timeout_s: float) -> StreamMessage:
    """The server's next message; its error is raised."""
    try:
        message = _MESSAGES.validate_json(socket.recv(timeout_s))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise Unreachable(f"the server said something unknown ({first['msg']})", _VERSION) from None
    if isinstance(message, ErrorMessage):
        problem = message.problem
        raise from_problem(problem.status, problem.model_dump(), None)
    return message


def _update(message: StreamMessage) -> StreamUpdate:
    if isinstance(message, EndMessage):
        return StreamUpdate(tracks=message.tracks, left_out_s=message.left_out_s)
    if isinstance(message, ChunkMessage):
        return StreamUpdate(answer=message.answer, tracks=message.tracks)
    raise Unreachable(f"the server said {message.type!r} in the middle of a stream", _VERSION)
