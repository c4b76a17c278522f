"""A typed client: recordings, samples and tiles to a server, detections and tracks back.

    with Longhaul("http://127.0.0.1:8000") as server:
        answer = server.detect(Path("capture.sigmf-meta"))
        for update in server.stream(open_recording(Path("capture.sigmf-meta"))):
            print(update.tracks)

It can run where only the answers are wanted. Wraps `httpx.Client` and
`websockets.sync.client.connect`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import quote

import httpx
import numpy as np
from pydantic import ValidationError

from longhaul.errors import UserError
from longhaul.serving.client.address import address_of
from longhaul.serving.client.failures import Attempts, Unreachable, not_ours, refusal, unreachable
from longhaul.serving.client.stream import StreamDoor, StreamUpdate
from longhaul.serving.http.answers import DetectAnswer
from longhaul.signals.recording import Recording, open_recording
from longhaul.signals.sample_format import Complex64, SampleFormat

_BLOCK_BYTES = 1 << 20  # read from a file at once


class Longhaul:
    """A server's detectors and models.

    Args:
        url: such as `http://127.0.0.1:8000`.
        token: of `longhaul token new`, where the server asks for one.
        timeout_s: the longest silence that is waited for.
        patience_s: how long in all a busy server (429 or 503 with Retry-After) is asked again; 0 gives up at once.

    Raises:
        UserError: no such address or token can be.
    """

    def __init__(self, url: str, token: str | None = None, *, timeout_s: float = 60.0, patience_s: float = 0.0) -> None:
        self.url, self._headers = address_of(url, token)
        self.timeout_s = timeout_s
        self.patience_s = patience_s
        self._http = httpx.Client(base_url=self.url, headers=self._headers, timeout=timeout_s)
        self._reached = False

    def detect(
        self,
        file: str | Path,
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
        file = Path(file)
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
        raw = b"".join(_raw(recording, _samples_of(recording, start_s, duration_s), _BLOCK_BYTES))
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
        blocks = _raw(recording, _samples_of(recording, start_s, duration_s), _BLOCK_BYTES)
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
            opening["deadline_ms"] = _milliseconds(deadline_s)
        if models:
            opening["models"] = list(models)
        width = SampleFormat.parse(datatype).sample_bytes
        door = StreamDoor(self.url, self._headers, self.timeout_s)
        yield from door.converse(opening, blocks, width, Attempts(self.patience_s))

    def models(self) -> list[dict[str, Any]]:
        """What is served, an entry for each model; errors as for `detect`."""
        found = self._get("/v1/models").get("models")
        if not isinstance(found, list):
            raise not_ours(self.url, "no list of models")
        return found

    def model(self, name: str) -> dict[str, Any]:
        """Everything of one model, its manifest too; errors as for `detect`."""
        return self._get(f"/v1/models/{quote(name, safe='')}")

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
        try:
            return DetectAnswer.model_validate_json(self._ask(send).content)
        except ValidationError as error:
            raise not_ours(self.url, error.errors(include_url=False, include_input=False)[0]["msg"]) from None

    def _get(self, path: str) -> dict[str, Any]:
        try:
            answer = self._ask(lambda: self._http.get(path)).json()
        except ValueError as error:
            raise not_ours(self.url, str(error)) from None
        if not isinstance(answer, dict):
            raise not_ours(self.url, "no JSON object")
        return answer

    def _ask(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """The answer to a request, which is repeated as often as `Attempts` says."""
        attempts = Attempts(self.patience_s)
        while True:
            try:
                response = send()
            except httpx.TimeoutException:
                raise Unreachable(
                    f"{self.url}: no answer within {self.timeout_s:g} s", "Send less at once, or ask again"
                ) from None
            except httpx.RequestError as error:
                if not self._broke(error):
                    raise unreachable(self.url, error) from None
                attempts.broke(unreachable(self.url, error))
                continue
            self._reached = True
            if response.is_success:
                return response
            attempts.refused(refusal(response.status_code, response.headers, response.content))

    def _broke(self, error: httpx.RequestError) -> bool:
        """Whether a server was there: to connect in vain counts once it has answered before."""
        if isinstance(error, httpx.ConnectError):
            return self._reached
        return isinstance(error, (httpx.NetworkError, httpx.RemoteProtocolError))


def _query(models: Collection[str], deadline_s: float | None, tracks: bool) -> dict[str, str]:
    query = {"models": ",".join(models)} if models else {}
    if deadline_s is not None:
        query["deadline_ms"] = str(_milliseconds(deadline_s))
    if tracks:
        query["tracks"] = "true"
    return query


def _milliseconds(deadline_s: float) -> int:
    if not math.isfinite(deadline_s) or round(1000 * deadline_s) < 1:
        raise UserError(f"a deadline of {deadline_s:g} s: is no time to answer in", "Give at least 0.001 s")
    return round(1000 * deadline_s)


def _iq_headers(datatype: str, sample_rate_hz: float, center_hz: float | None) -> dict[str, str]:
    headers = {
        "Content-Type": "application/octet-stream",
        "X-SigMF-Datatype": datatype,
        "X-SigMF-Sample-Rate": repr(float(sample_rate_hz)),
    }
    return headers if center_hz is None else {**headers, "X-SigMF-Center-Frequency": repr(float(center_hz))}


def _samples_of(recording: Recording, start_s: float, duration_s: float | None) -> range:
    """The samples of a stretch."""
    begin, end = start_s * recording.sample_rate_hz, (start_s + (duration_s or 0)) * recording.sample_rate_hz
    known = math.isfinite(begin) and math.isfinite(end)
    first = round(begin) if known else -1
    last = recording.samples if duration_s is None or not known else first + round(duration_s * recording.sample_rate_hz)
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
