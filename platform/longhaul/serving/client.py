"""A typed client: recordings, samples and tiles to a server, detections and tracks back.

    with Longhaul("http://127.0.0.1:8000") as server:
        answer = server.detect(Path("capture.sigmf-meta"))
        for update in server.stream(open_recording(Path("capture.sigmf-meta"))):
            print(update.tracks)

Needs neither Ray nor a model: it can run where only the answers are wanted. Wraps `httpx.Client` and
`websockets.sync.client.connect`.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Annotated, Any, Self
from urllib.parse import urlsplit, urlunsplit

import httpx
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from longhaul.errors import UserError
from longhaul.serving.client_failures import Refused, Unreachable, ending_told, from_problem, refusal, unreachable, wait_or_raise
from longhaul.serving.detection.answers import ChunkAnswer
from longhaul.serving.detection.tracks import Track
from longhaul.serving.http.answers import ChunkMessage, DetectAnswer, EndMessage, ErrorMessage, ReadyMessage
from longhaul.signals.recording import Recording, open_recording
from longhaul.signals.sample_format import Complex64, SampleFormat

__all__ = ["Longhaul", "Refused", "StreamUpdate", "Unreachable"]

_MESSAGE_BYTES = 1 << 20  # servers and proxies refuse long WebSocket messages
_ANSWER_BYTES = 64 << 20  # the longest answer to a chunk that is read
_AHEAD = 2  # chunks that may be on their way: one in work, the next one there when it is done

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


class Longhaul:
    """A server's detectors and models.

    Args:
        url: such as `http://127.0.0.1:8000`.
        token: of `longhaul token new`, where the server asks for one.
        timeout_s: the longest silence that is waited for.
        patience_s: how long in all a busy server (429 or 503 with Retry-After) is asked again; 0 gives up at once.

    Raises:
        UserError: no such address can be.
    """

    def __init__(self, url: str, token: str | None = None, *, timeout_s: float = 60.0, patience_s: float = 0.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{url}: is no address of a server", "Give it with its scheme, such as http://127.0.0.1:8000")
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self.patience_s = patience_s
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=self.url, headers=self._headers, timeout=timeout_s)

    def detect(
        self,
        file: Path,
        *,
        models: Collection[str] = (),
        deadline_s: float | None = None,
        tracks: bool = False,
    ) -> DetectAnswer:
        """What is on a recording or on a tile, sent as the file is: `.sigmf` archive, SigMF pair, or `.png`.

        Args:
            file: what to send.
            models: ask these; all without any.
            deadline_s: for each chunk; the server's own without one.
            tracks: also follow detections from chunk to chunk.

        Raises:
            UserError: there is no such file, or nobody answers.
            Refused: the server does not take it.
        """
        query = _query(models, deadline_s, tracks)
        if file.suffix == ".png":
            return self._detect(query, {"Content-Type": "image/png"}, file)
        recording = open_recording(file)
        if recording.data == recording.path:
            return self._detect(query, {"Content-Type": "application/x-sigmf"}, file)
        with recording.path.open("rb") as meta, recording.data.open("rb") as data:
            return self._detect(query, {}, {"meta": meta, "data": data})

    def detect_stretch(
        self,
        recording: Recording,
        *,
        start_s: float = 0.0,
        duration_s: float | None = None,
        models: Collection[str] = (),
        deadline_s: float | None = None,
        tracks: bool = False,
    ) -> DetectAnswer:
        """What is on a stretch of a recording; of its file, only that is read and sent.

        The answer's times count from the stretch's first sample. Other arguments and errors as for `detect`.
        """
        raw = b"".join(_raw(recording, _samples_of(recording, start_s, duration_s), _MESSAGE_BYTES))
        headers = _iq_headers(recording.datatype, recording.sample_rate_hz, recording.center_hz)
        return self._detect(_query(models, deadline_s, tracks), headers, raw)

    def detect_iq(
        self,
        samples: Complex64,
        sample_rate_hz: float,
        center_hz: float | None = None,
        *,
        models: Collection[str] = (),
        deadline_s: float | None = None,
        tracks: bool = False,
    ) -> DetectAnswer:
        """What is on samples (N,) at hand, full scale 1; other arguments and errors as for `detect`."""
        raw = np.ascontiguousarray(samples, dtype="<c8").tobytes()
        return self._detect(_query(models, deadline_s, tracks), _iq_headers("cf32_le", sample_rate_hz, center_hz), raw)

    def detect_reference(
        self, uri: str, *, models: Collection[str] = (), deadline_s: float | None = None, tracks: bool = False
    ) -> DetectAnswer:
        """What is on a recording that the server fetches itself: s3:// or a path below one of its roots; else as `detect`."""
        body = json.dumps({"uri": uri}).encode()
        return self._detect(_query(models, deadline_s, tracks), {"Content-Type": "application/json"}, body)

    def stream(
        self,
        recording: Recording,
        *,
        start_s: float = 0.0,
        duration_s: float | None = None,
        models: Collection[str] = (),
        deadline_s: float | None = None,
    ) -> Iterator[StreamUpdate]:
        """Send a recording chunk by chunk over a WebSocket; an update for each, and one with all tracks at the end.

        Raises:
            UserError: the stretch is not in the recording, or nobody answers.
            Refused: the server does not take it, or ends the stream.
        """
        blocks = _raw(recording, _samples_of(recording, start_s, duration_s), _MESSAGE_BYTES)
        return self.stream_iq(
            blocks, recording.datatype, recording.sample_rate_hz, recording.center_hz, models=models, deadline_s=deadline_s
        )

    def stream_iq(
        self,
        blocks: Iterable[bytes],
        datatype: str,
        sample_rate_hz: float,
        center_hz: float | None = None,
        *,
        models: Collection[str] = (),
        deadline_s: float | None = None,
    ) -> Iterator[StreamUpdate]:
        """As `stream`, with samples in blocks of any length, as they lie in a file of that `datatype` of SigMF."""
        opening: dict[str, Any] = {"sample_rate_hz": sample_rate_hz, "center_hz": center_hz, "datatype": datatype}
        if deadline_s is not None:
            opening["deadline_ms"] = round(1000 * deadline_s)
        if models:
            opening["models"] = list(models)
        width = SampleFormat.parse(datatype).sample_bytes
        with contextlib.ExitStack() as open_until_then, ending_told(self.url):
            socket, ready = self._opened(opening, open_until_then)
            yield from self._converse(socket, blocks, ready.chunk_samples * width)

    def models(self) -> list[dict[str, Any]]:
        """What is served, an entry for each model; errors as for `detect`."""
        found = self._get("/v1/models")["models"]
        return list(found)

    def model(self, name: str) -> dict[str, Any]:
        """Everything of one model, its manifest too; errors as for `detect`."""
        return self._get(f"/v1/models/{name}")

    def health(self) -> dict[str, Any]:
        """The server's word that all is well; `Refused` where it is not."""
        return self._get("/healthz")

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _detect(
        self, query: Mapping[str, str], headers: Mapping[str, str], body: bytes | Path | Mapping[str, IO[bytes]]
    ) -> DetectAnswer:
        def send() -> httpx.Response:
            if isinstance(body, bytes):
                return self._http.post("/v1/detect", params=query, headers=headers, content=body)
            if isinstance(body, Path):
                with body.open("rb") as whole:  # httpx asks it for its length
                    return self._http.post("/v1/detect", params=query, headers=headers, content=whole)
            return self._http.post("/v1/detect", params=query, headers=headers, files=dict(body))

        if isinstance(body, Path) and not body.is_file():
            raise UserError(f"{body}: there is no such file", "Give a recording or a tile")
        return DetectAnswer.model_validate_json(self._ask(send).content)

    def _get(self, path: str) -> dict[str, Any]:
        answer: dict[str, Any] = self._ask(lambda: self._http.get(path)).json()
        return answer

    def _ask(self, send: Any) -> httpx.Response:
        """The answer to a request, which is repeated while the server is busy and patience lasts."""
        until = time.monotonic() + self.patience_s
        while True:
            try:
                response: httpx.Response = send()
            except httpx.TimeoutException:
                raise Unreachable(
                    f"{self.url}: no answer within {self.timeout_s:g} s", "Send less at once, or ask again"
                ) from None
            except httpx.TransportError as error:
                raise unreachable(self.url, error) from None
            if response.is_success:
                return response
            refused = refusal(response.status_code, response.headers, response.content)
            wait_or_raise(refused, until)

    def _opened(self, opening: Mapping[str, Any], open_until_then: contextlib.ExitStack) -> tuple[ClientConnection, ReadyMessage]:
        """A stream that the server waits for samples of; a busy server is asked again as for `_ask`."""
        until = time.monotonic() + self.patience_s
        while True:
            try:
                with contextlib.ExitStack() as stack:
                    socket = self._connected(stack)
                    _send(socket, json.dumps(opening))
                    ready = _message(socket, self.timeout_s)
                    if not isinstance(ready, ReadyMessage):
                        raise Unreachable(
                            f"{self.url}: a stream began with {ready.type!r}", "Take a client of the server's version"
                        )
                    open_until_then.enter_context(stack.pop_all())
                    return socket, ready
            except Refused as refused:
                wait_or_raise(refused, until)

    def _connected(self, stack: contextlib.ExitStack) -> ClientConnection:
        parts = urlsplit(self.url)
        address = urlunsplit((parts.scheme.replace("http", "ws"), parts.netloc, f"{parts.path}/v1/stream", "", ""))
        try:
            return stack.enter_context(
                connect(
                    address,
                    additional_headers=self._headers,
                    open_timeout=self.timeout_s,
                    compression=None,  # noise does not pack
                    max_size=_ANSWER_BYTES,
                )
            )
        except InvalidStatus as error:
            answer = error.response
            raise refusal(answer.status_code, answer.headers, bytes(answer.body or b"")) from None
        except (OSError, InvalidHandshake, InvalidURI, EOFError) as error:
            raise unreachable(self.url, error) from None

    def _converse(self, socket: ClientConnection, blocks: Iterable[bytes], chunk_bytes: int) -> Iterator[StreamUpdate]:
        """Send blocks and read answers in turn, a few chunks ahead: a server that nobody reads from stops reading itself."""
        sent = answered = 0
        for block in blocks:
            for piece in _pieces(block, _MESSAGE_BYTES):
                while sent // chunk_bytes - answered >= _AHEAD:
                    yield _update(_message(socket, self.timeout_s))
                    answered += 1
                _send(socket, piece)
                sent += len(piece)
        _send(socket, json.dumps({"type": "end"}))
        while True:
            message = _message(socket, self.timeout_s)
            yield _update(message)
            if isinstance(message, EndMessage):
                return


def _query(models: Collection[str], deadline_s: float | None, tracks: bool) -> dict[str, str]:
    query = {"models": ",".join(models)} if models else {}
    if deadline_s is not None:
        query["deadline_ms"] = str(round(1000 * deadline_s))
    if tracks:
        query["tracks"] = "true"
    return query


def _iq_headers(datatype: str, sample_rate_hz: float, center_hz: float | None) -> dict[str, str]:
    headers = {
        "Content-Type": "application/octet-stream",
        "X-SigMF-Datatype": datatype,
        "X-SigMF-Sample-Rate": repr(float(sample_rate_hz)),
    }
    return headers if center_hz is None else {**headers, "X-SigMF-Center-Frequency": repr(float(center_hz))}


def _samples_of(recording: Recording, start_s: float, duration_s: float | None) -> range:
    """The samples of a stretch."""
    first = round(start_s * recording.sample_rate_hz)
    last = recording.samples if duration_s is None else first + round(duration_s * recording.sample_rate_hz)
    if not 0 <= first < recording.samples or last <= first:
        raise UserError(
            f"{recording.name}: nothing lies there in a recording of {recording.duration_s:g} s",
            "Give a start within it and a duration above 0",
        )
    return range(first, min(last, recording.samples))


def _raw(recording: Recording, samples: range, block_bytes: int) -> Iterator[bytes]:
    """The bytes of these samples, as they lie in the file, a block at a time."""
    width = SampleFormat.parse(recording.datatype).sample_bytes
    left = len(samples) * width
    with recording.data.open("rb") as file:
        file.seek(recording.offset + samples.start * width)
        while left:
            block = file.read(min(left, block_bytes))
            if not block:
                raise UserError(f"{recording.data}: has become shorter since it was opened", "Fetch the whole data file")
            left -= len(block)
            yield block


def _pieces(block: bytes, most: int) -> Iterator[bytes]:
    return (block[begin : begin + most] for begin in range(0, len(block), most))


def _send(socket: ClientConnection, message: str | bytes) -> None:
    """Send; where the server has ended the stream, it said why before."""
    try:
        socket.send(message)
    except ConnectionClosed:
        while True:  # until its error, or the end of what it said
            _message(socket, 0)


def _message(socket: ClientConnection, timeout_s: float) -> StreamMessage:
    """The server's next message; its error is raised."""
    try:
        message = _MESSAGES.validate_json(socket.recv(timeout_s))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise Unreachable(
            f"the server said something unknown ({first['msg']})", "Take a client of the server's version"
        ) from None
    if isinstance(message, ErrorMessage):
        problem = message.problem
        raise from_problem(problem.status, problem.model_dump(), None)
    return message


def _update(message: StreamMessage) -> StreamUpdate:
    if isinstance(message, EndMessage):
        return StreamUpdate(tracks=message.tracks, left_out_s=message.left_out_s)
    if isinstance(message, ChunkMessage):
        return StreamUpdate(answer=message.answer, tracks=message.tracks)
    raise Unreachable(f"the server said {message.type!r} in the middle of a stream", "Take a client of the server's version")
