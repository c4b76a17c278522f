"""`POST /v1/detect`: samples, a recording, a tile or a reference in; detections, statuses and tracks out."""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated

import torch
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from longhaul.serving.detection.answers import ChunkAnswer
from longhaul.serving.detection.chunk import SignalChunk
from longhaul.serving.detection.tracks import Tracker
from longhaul.serving.http.answers import DetectAnswer
from longhaul.serving.http.detectors import Detectors
from longhaul.serving.http.guard import needs
from longhaul.serving.http.intake import detect_body
from longhaul.serving.http.intake.bodies import BodyLimits, Spool, field_bytes, media_type, read_body, read_form
from longhaul.serving.http.intake.budget import DECODED_BYTES, Budget
from longhaul.serving.http.intake.iq import BODY, IqDescription, bare_samples, check_description
from longhaul.serving.http.intake.references import Reference, References
from longhaul.serving.http.intake.sigmf_body import recording_in_archive, recording_in_pair
from longhaul.serving.http.intake.signals import MOST_HZ, Signal
from longhaul.serving.http.intake.tile_body import most_bytes, tile_pixels
from longhaul.serving.http.problems import documented
from longhaul.serving.http.settings import ApiSettings
from longhaul.serving.http.streaming.stream_plan import LONGEST_NAME, MOST_MODELS
from longhaul.serving.http.tokens import Scope
from longhaul.serving.refusals import (
    BodyTooLarge,
    BrokenSignal,
    ImageTooLarge,
    InvalidParameter,
    Refusal,
    UnsupportedContentType,
)
from longhaul.signals.chunks import Chunk

_REFERENCE_BYTES = 16 << 10
_FORM_BYTES = 64 << 10  # boundaries and headers around the fields


class DetectQuery(BaseModel):
    """The query of a detection; what describes samples is for bare samples only, and counts before the headers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: str | None = Field(
        None, max_length=2048, description="Ask only these detectors, by name, with commas between.", examples=["wifi_bluetooth"]
    )
    deadline_ms: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Time for each chunk; the server's own if left out.", examples=[400]
    )
    tracks: bool = Field(False, description="Also follow emissions from chunk to chunk.", examples=[True])
    datatype: str | None = Field(
        None, max_length=16, description="Bare samples: SigMF's name of their type.", examples=["ci16_le"]
    )
    sample_rate: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Bare samples: complex samples a second.", examples=[40e6]
    )
    center_frequency: float | None = Field(
        None, ge=-MOST_HZ, le=MOST_HZ, allow_inf_nan=False,
        description="Bare samples: the RF frequency in the middle, in Hz; without it answers are relative to it.",
        examples=[2.437e9],
    )  # fmt: skip

    @property
    def wanted(self) -> list[str] | None:
        """The names in `models`.

        Raises:
            InvalidParameter: too many, or too long to be any.
        """
        if self.models is None:
            return None
        names = [name.strip() for name in self.models.split(",") if name.strip()]
        if len(names) > MOST_MODELS or any(len(name) > LONGEST_NAME for name in names):
            raise InvalidParameter(
                f"models: more than {MOST_MODELS} names, or one of more than {LONGEST_NAME} letters", "GET /v1/models lists them"
            )
        return names


async def one_of_each(request: Request) -> None:
    """A route's dependency: no parameter of the query is there twice, where only the last would count.

    Raises:
        InvalidParameter: one is.
    """
    for name, count in Tally(name for name, _ in request.query_params.multi_items()).items():
        if count > 1:
            raise InvalidParameter(f"query: {name[:100]!r} is there {count} times", "Give it once; models with commas between")


Datatype = Annotated[str | None, Header(alias="X-SigMF-Datatype", max_length=16, description="As `datatype`.")]
SampleRate = Annotated[
    float | None, Header(alias="X-SigMF-Sample-Rate", gt=0, allow_inf_nan=False, description="As `sample_rate`.")
]
CenterFrequency = Annotated[
    float | None,
    Header(alias="X-SigMF-Center-Frequency", ge=-MOST_HZ, le=MOST_HZ, allow_inf_nan=False, description="As `center_frequency`."),
]


def detect_router(detectors: Detectors, decoded: Budget, settings: ApiSettings) -> APIRouter:
    """The route, over what answers it; `decoded` is the room for chunks."""
    router = APIRouter(dependencies=[Depends(needs(Scope.PREDICT))], tags=["detect"])
    intake = Intake(settings)

    @router.post(
        "/v1/detect",
        dependencies=[Depends(one_of_each)],
        summary="Find emissions in a signal, or on a tile of one",
        openapi_extra=detect_body.DOCUMENTATION,
        response_model=DetectAnswer,
        responses=documented(400, 401, 403, 404, 408, 409, 413, 415, 422, 500, 503),
    )
    async def detect(
        request: Request,
        query: Annotated[DetectQuery, Query()],
        datatype: Datatype = None,
        sample_rate: SampleRate = None,
        center_frequency: CenterFrequency = None,
    ) -> Response:
        models = detectors.choose(query.wanted)
        deadline_s = detectors.deadline_s(query.deadline_ms)
        detectors.admit(deadline_s, models)  # before the body is read
        if media_type(request) == "image/png":
            tile = await intake.tile(request, detectors.side)
            chunk = await detectors.answer_tile(tile, deadline_s, models)
            return _json(DetectAnswer(degraded=chunk.degraded, chunks=(chunk,), tracks=() if query.tracks else None))
        said = IqDescription(
            query.datatype or datatype,
            query.sample_rate or sample_rate,
            center_frequency if query.center_frequency is None else query.center_frequency,
        )
        async with intake.signal(request, said) as signal:
            road = _Road(detectors, decoded, settings, deadline_s, models)
            return _json(await road.follow(request, signal, with_tracks=query.tracks))

    return router


class Intake:
    """From a request to its signal or tile, by content type.

    Args:
        settings: limits and roots.
    """

    def __init__(self, settings: ApiSettings) -> None:
        self._settings = settings
        self._limits = settings.limits
        self._references = References(settings.roots, settings.limits)

    async def tile(self, request: Request, side: int) -> torch.Tensor:
        """The tile (side, side) uint8.

        Raises:
            Refusal: no such tile is in the body.
        """
        limits = self._bounds(min(most_bytes(side), self._limits.body_bytes), ImageTooLarge)
        with await read_body(request, limits) as body:
            return await asyncio.to_thread(tile_pixels, body.read(), side)

    @asynccontextmanager
    async def signal(self, request: Request, said: IqDescription) -> AsyncIterator[Signal]:
        """The signal, while it is needed.

        Raises:
            Refusal: the body, its description or its type is not right.
        """
        kind = media_type(request)
        if kind == "multipart/form-data":
            async with self._pair(request) as signal:
                yield signal
            return
        if kind == "application/json":
            signal = await self._referenced(request)
        elif kind in detect_body.ARCHIVES:
            signal = await self._whole(request, lambda body: recording_in_archive(body, BODY, self._limits))
        elif kind == detect_body.BARE:
            check_description(said, self._limits)  # before the body is read
            signal = await self._whole(request, lambda body: bare_samples(body, said, self._limits))
        else:
            fix = f"Send one of {', '.join(detect_body.DOCUMENTATION['requestBody']['content'])}"
            raise UnsupportedContentType(f"content type {kind[:100] or '(none)'!r}: holds no signal", fix)
        try:
            yield signal
        finally:
            signal.close()

    async def _whole(self, request: Request, read: Callable[[Spool], Signal]) -> Signal:
        """The signal that the whole body is."""
        body = await read_body(request, self._bounds(self._limits.body_bytes))
        try:
            return await asyncio.to_thread(read, body)
        except BaseException:
            body.close()
            raise

    @asynccontextmanager
    async def _pair(self, request: Request) -> AsyncIterator[Signal]:
        """The signal of a form's two fields."""
        meta_bytes = self._limits.metadata_bytes
        limits = self._bounds(self._limits.body_bytes + meta_bytes + _FORM_BYTES)
        async with read_form(request, limits, text_bytes=meta_bytes) as form:
            meta = await field_bytes(form, detect_body.META_FIELD, meta_bytes)
            data = form.get(detect_body.DATA_FIELD)
            if meta is None or not isinstance(data, UploadFile):
                missing = detect_body.META_FIELD if meta is None else detect_body.DATA_FIELD
                raise BrokenSignal(
                    f"the form has no file in the field {missing!r}",
                    "Send it as `curl -F meta=@x.sigmf-meta -F data=@x.sigmf-data`",
                )
            yield await asyncio.to_thread(recording_in_pair, meta, data.file, BODY, self._limits)

    async def _referenced(self, request: Request) -> Signal:
        with await read_body(request, self._bounds(_REFERENCE_BYTES)) as body:
            raw = body.read()
        try:
            reference = Reference.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the body"
            raise InvalidParameter(f"{where}: {first['msg']}", 'Send JSON such as {"uri": "s3://bucket/x.sigmf-meta"}') from None
        return await asyncio.to_thread(self._references.open, reference)

    def _bounds(self, size: int, refusal: type[Refusal] = BodyTooLarge) -> BodyLimits:
        return BodyLimits(size, self._limits.memory_bytes, self._settings.body_idle_s, refusal)


class _Road:
    """A request's signal, chunk after chunk, through the ensemble.

    Args:
        detectors: answer.
        decoded: room for chunks.
        settings: limits.
        deadline_s: of each chunk.
        models: that are wanted; None for all.
    """

    def __init__(
        self,
        detectors: Detectors,
        decoded: Budget,
        settings: ApiSettings,
        deadline_s: float,
        models: frozenset[str] | None,
    ) -> None:
        self._detectors = detectors
        self._decoded = decoded
        self._limits = settings.limits
        self._deadline_s = deadline_s
        self._models = models

    async def follow(self, request: Request, signal: Signal, *, with_tracks: bool) -> DetectAnswer:
        """The whole answer.

        Raises:
            Refusal: the signal cannot be used, or the server is busy.
            ClientDisconnect: nobody waits for it any more.
        """
        division = signal.divide(self._detectors.tiles, self._limits)
        self._detectors.admit(self._deadline_s, self._models)
        tracker = Tracker() if with_tracks else None
        answers: list[ChunkAnswer] = []
        for chunk in division.chunks:
            if answers and await request.is_disconnected():
                raise ClientDisconnect
            answer = await self._answer(signal, chunk)
            if tracker is not None:
                answer, _ = await asyncio.to_thread(tracker.follow, answer)
            answers.append(answer)
        recording = signal.recording
        return DetectAnswer(
            sample_rate_hz=recording.sample_rate_hz,
            center_hz=recording.center_hz,
            frequencies="relative" if recording.center_hz is None else "absolute",
            samples=recording.samples,
            duration_s=recording.duration_s,
            left_out_s=division.left_out / recording.sample_rate_hz,
            degraded=any(answer.degraded for answer in answers),
            notes=signal.notes,
            chunks=tuple(answers),
            tracks=tuple(tracker.tracks()) if tracker is not None else None,
        )

    async def _answer(self, signal: Signal, chunk: Chunk) -> ChunkAnswer:
        rate = signal.recording.sample_rate_hz
        async with self._decoded.room(DECODED_BYTES * chunk.count, self._deadline_s):
            iq = torch.from_numpy(await asyncio.to_thread(signal.read, chunk.start, chunk.count))
            piece = SignalChunk(iq, rate, signal.recording.center_hz, chunk.index, chunk.start / rate)
            return await self._detectors.answer(piece, self._deadline_s, self._models, road="request")


def _json(answer: DetectAnswer) -> Response:
    """FastAPI would validate and convert it once more."""
    return Response(answer.model_dump_json(), media_type="application/json")
