"""The HTTP interface as a FastAPI application, buildable and testable without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from longhaul import __version__
from longhaul.serving.http import problems
from longhaul.serving.http.access import Observer
from longhaul.serving.http.classify import classify_router
from longhaul.serving.http.detect import detect_router
from longhaul.serving.http.detectors import Detectors
from longhaul.serving.http.guard import OPEN_PATHS, Gate, Guard
from longhaul.serving.http.intake.budget import Budget
from longhaul.serving.http.metrics import Metrics
from longhaul.serving.http.model_routes import model_router
from longhaul.serving.http.server_routes import server_router
from longhaul.serving.http.settings import ApiSettings
from longhaul.serving.http.streaming.stream import stream_router
from longhaul.serving.http.streaming.streams import Streams
from longhaul.serving.models.catalog import Catalog

_ABOUT = """Finds emissions in signals and classifies pictures, with models from a Longhaul registry.

    curl --data-binary @capture.sigmf -H 'Content-Type: application/x-sigmf' 'http://HOST:PORT/v1/detect?tracks=true'
    curl --data-binary @samples.ci16 -H 'Content-Type: application/octet-stream' \\
         'http://HOST:PORT/v1/detect?datatype=ci16_le&sample_rate=40e6&center_frequency=2.437e9'
    curl --data-binary @picture.png -H 'Content-Type: image/png' 'http://HOST:PORT/v1/models/NAME/predict?top_k=3'

Samples as they come: WebSocket /v1/stream. The first message is JSON,
{"sample_rate_hz": 40e6, "center_hz": 2.437e9, "datatype": "ci16_le"}; back comes {"type": "ready", "chunk_samples": N, ...}.
Then binary messages of samples, of any length; for each chunk comes {"type": "chunk", "answer": {...}, "tracks": [...]}.
{"type": "end"} ends it, and {"type": "end", "tracks": [...]} comes back. {"type": "error", "problem": {...}} says what is wrong.

Where the server has a token file, every route but /healthz and /docs asks for `Authorization: Bearer TOKEN`.
A reference may name a stretch (start_s, duration_s); times in the answer count from its beginning.
Every error is an RFC 9457 problem (`application/problem+json`); every answer carries `X-Request-ID`."""
_BUSY = {
    "description": "The queue is full; try again after `Retry-After` seconds (answered by Ray Serve, as plain text).",
    "headers": {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}},
}
_HEADERS = {
    "401": {"WWW-Authenticate": {"description": "How to come with a token.", "schema": {"type": "string"}}},
    "503": {"Retry-After": {"description": "Seconds; not always there.", "schema": {"type": "string"}}},
}
_LOCAL = (403,)
_GUARDED = (401, 403, 503)  # 503: the token file cannot be read
_BEARER = {"type": "http", "scheme": "bearer", "description": "A token of `longhaul token new`."}


class _Api(FastAPI):
    """Attributes: `guarded`, whether callers need a token."""

    guarded = False

    def openapi(self) -> dict[str, Any]:
        """FastAPI's document, with what it does not know: errors are problems only, headers, tokens, a full queue."""
        if self.openapi_schema:
            return self.openapi_schema
        document = super().openapi()
        for path, operation in _operations(document):
            responses = operation["responses"]
            responses["429"] = _BUSY
            everywhere = _LOCAL if not self.guarded else () if path in OPEN_PATHS else _GUARDED
            for known, meaning in problems.documented(*everywhere).items():
                responses.setdefault(str(known), {"description": HTTPStatus(int(known)).phrase, "content": meaning["content"]})
            for status, response in responses.items():
                content = response.get("content", {})
                if problems.MEDIA_TYPE in content:
                    content.pop("application/json", None)
                    response.setdefault("headers", {}).update(_HEADERS.get(status, {}))
            if self.guarded:
                operation["security"] = [] if path in OPEN_PATHS else [{"bearer": []}]
        if self.guarded:
            document["components"]["securitySchemes"] = {"bearer": _BEARER}
        return document


def build_api(
    catalog: Catalog, settings: ApiSettings | None = None, *, stamp_request_id: bool = True, replica: str = ""
) -> FastAPI:
    """The application over loaded models.

    Its `state.streams` (`serving.http.streaming.streams.Streams`) ends the open streams when the server stops.

    Args:
        catalog: what is served; the caller closes it.
        settings: tokens, limits, roots; with none of them everything but /healthz and /docs is refused.
        stamp_request_id: False where the server in front writes `X-Request-ID` itself, as Ray Serve does.
        replica: its name in the metrics.

    Raises:
        UserError: the token file cannot be read.
    """
    settings = settings or ApiSettings()
    guard = Guard(settings)
    metrics = Metrics(replica, lambda: _shed(catalog))
    detectors = Detectors(catalog, settings, metrics)
    streams = Streams(settings.streams, settings.limits.stream_bytes, metrics)
    app = _Api(title="Longhaul", version=__version__, description=_ABOUT, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.guarded = not guard.is_open
    app.state.streams = streams
    app.add_middleware(Gate, guard=guard)
    app.add_middleware(Observer, metrics=metrics)
    problems.install(app, stamp=stamp_request_id)
    decoded = Budget(settings.limits.decoded_bytes, "decoded samples")
    app.include_router(detect_router(detectors, decoded, settings))
    app.include_router(stream_router(detectors, guard, streams, decoded, settings))
    app.include_router(model_router(catalog))
    app.include_router(classify_router(catalog, settings))
    app.include_router(server_router(app, catalog, metrics))
    return app


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for operation in item.values():
            yield path, operation


def _shed(catalog: Catalog) -> Iterator[tuple[str, str, bool, float]]:
    for state in catalog.ensemble.states() if catalog.ensemble is not None else ():
        yield state.name, state.version, state.shed, state.seconds_per_sample
