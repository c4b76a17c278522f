"""Whatever is sent, the server answers as its OpenAPI document says, and lives on.

`LONGHAUL_FUZZ_EXAMPLES` sets how many requests are made for each route (and, times ten, for each parser); few by default.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import schemathesis
from fastapi import FastAPI
from grid_detector import publish_grid_detector
from http_signals import local_client, packed, png, recorded, tone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.websockets import WebSocketDisconnect

from longhaul.export.registry import Registry
from longhaul.serving.http.answers import DetectAnswer
from longhaul.serving.http.api import build_api
from longhaul.serving.http.intake.iq import IqDescription, bare_samples
from longhaul.serving.http.intake.sigmf_body import recording_in_archive, recording_in_pair
from longhaul.serving.http.intake.tile_body import tile_pixels
from longhaul.serving.http.settings import ApiSettings, Limits
from longhaul.serving.models.catalog import choose, load
from longhaul.serving.refusals import Refusal
from longhaul.signals.sample_format import SampleFormat

EXAMPLES = int(os.environ.get("LONGHAUL_FUZZ_EXAMPLES", "15"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
HERE = {"Host": "localhost"}  # an open server answers to no other name
CALM = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture]
PARSERS = settings(max_examples=10 * EXAMPLES, deadline=None, suppress_health_check=CALM, derandomize=True, database=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A root with one recording."""
    path = tmp_path_factory.mktemp("captures")
    recorded(path, tone(2))
    return path


@pytest.fixture(scope="module")
def app(tmp_path_factory, publish_tiny, folder) -> FastAPI:
    """An open application over a detector and a classifier."""
    registry = Registry(str(tmp_path_factory.mktemp("registry")))
    publish_grid_detector(registry, "grid", batches=(1, 4))
    publish_tiny(registry)
    catalog = load(registry, choose(registry))
    limits = Limits(body_bytes=1 << 20, samples=100_000, tiles=8)
    # every deadline that is taken can be kept on a slow machine: what is refused for want of time is no finding
    yield build_api(catalog, ApiSettings(open_loopback=True, roots=(str(folder),), limits=limits, least_deadline_s=20))
    catalog.close()


def operations(app: FastAPI) -> list[APIOperation]:
    """Every route, as Schemathesis reads it from the application over ASGI."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=HERE)
    return [result.ok() for result in schema.get_all_operations()]


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_route_answers_as_its_document_says(app, mode) -> None:
    answered = {}
    for operation in operations(app):

        @settings(max_examples=3 * EXAMPLES, deadline=None, suppress_health_check=CALM, derandomize=True, database=None)
        @given(case=operation.as_strategy(generation_mode=mode), known=st.booleans())
        def ask(case: Case, known: bool) -> None:
            if known and mode is GenerationMode.POSITIVE:
                sharpen(case)
            response = case.call_and_validate(checks=CHECKS, headers=HERE)
            answered.setdefault(case.operation.label, set()).add(response.status_code)

        try:
            ask()
        except Unsatisfiable:  # what takes nothing cannot be asked wrongly
            assert mode is GenerationMode.NEGATIVE, operation.label
    assert {"POST /v1/detect", "GET /v1/models/{name}"} <= answered.keys()
    if mode is GenerationMode.POSITIVE:
        assert 200 in answered["POST /v1/detect"]
        assert 200 in answered["POST /v1/models/{name}/predict"]


def sharpen(case: Case) -> None:
    """Give a case what no generator guesses: a model that there is, and a body that is what its type says."""
    if case.path_parameters:
        case.path_parameters["name"] = "tiny" if case.operation.path.endswith("predict") else "grid"
    if case.operation.path == "/v1/detect":
        case.query = {"deadline_ms": 20_000, "tracks": True, "datatype": "cf32_le", "sample_rate": 1e6}
    if case.method == "POST" and case.media_type != "multipart/form-data":
        case.query.pop("version", None)
        case.body = tone(1).tobytes() if case.operation.path == "/v1/detect" else png()


KINDS = ["application/octet-stream", "application/x-sigmf", "application/x-tar", "image/png", "application/json", "image/jpeg"]
NAMES = ["cf32_le", "cf32_be", "cf64_le", "ci8", "cu8", "ci16_be", "ci32_le", "cu32_be", "rf32_le", "cf16", ""]
RATES = st.one_of(st.just(1e6), st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([0.0, 1e3, 1e10]))


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """A good body with some bytes changed, cut short, or doubled."""

    def change(edits: list[tuple[int, int]], cut: int, times: int) -> bytes:
        body = bytearray(whole * times)
        for place, value in edits:
            body[place % len(body)] = value
        return bytes(body[: len(body) - cut % len(body)])

    places = st.one_of(st.integers(0, 1023), st.integers(0, max(len(whole) - 1, 0)))
    edits = st.lists(st.tuples(places, st.integers(0, 255)), max_size=8)
    return st.builds(change, edits, st.one_of(st.just(0), st.integers(0, len(whole))), st.sampled_from([1, 1, 2]))


@pytest.fixture(scope="module")
def goods(folder) -> dict[str, bytes]:
    """A body of each kind that is right."""
    meta, data = folder / "roof.sigmf-meta", folder / "roof.sigmf-data"
    archive = packed(meta, data)
    return {
        "application/octet-stream": tone(1).tobytes(),
        "application/x-sigmf": archive,
        "application/x-tar": archive,
        "image/png": png(),
        "application/json": json.dumps({"uri": str(meta)}).encode(),
        "image/jpeg": png(),
    }


@settings(max_examples=4 * EXAMPLES, deadline=None, suppress_health_check=CALM, derandomize=True, database=None)
@given(data=st.data())
def test_damaged_bodies_are_refused_or_answered(client, goods, data) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    body = data.draw(st.one_of(damaged(goods[kind]), st.binary(max_size=2000)))
    query = {"datatype": data.draw(st.sampled_from(NAMES)), "sample_rate": data.draw(RATES), "deadline_ms": 20_000}
    response = client.post("/v1/detect", content=body, params=query, headers={"Content-Type": kind})
    assert response.status_code < 500, response.text
    if response.status_code == 200:
        DetectAnswer.model_validate_json(response.content)
    else:
        assert response.headers["content-type"] == "application/problem+json"


@pytest.fixture(scope="module")
def client(app):
    with local_client(app) as opened:
        yield opened


@PARSERS
@given(body=st.binary(max_size=400), datatype=st.sampled_from(NAMES), rate=RATES, center=st.one_of(st.none(), RATES))
def test_any_bytes_are_samples_or_refused(body, datatype, rate, center) -> None:
    try:
        signal = bare_samples(io.BytesIO(body), IqDescription(datatype, rate, center), Limits())
        samples = signal.read(0, signal.recording.samples)
    except Refusal:
        return
    assert np.isfinite(samples).all()
    assert samples.dtype == np.complex64
    assert len(samples) * SampleFormat.parse(datatype).sample_bytes == len(body)


NUMBERS = st.one_of(st.integers(), st.floats(), st.integers(-(2**70), 2**70))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.sampled_from([*NAMES, "1.0.0", "2026-01-01T00:00:00Z"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
CORE = ["datatype", "sample_rate", "version", "num_channels", "offset", "trailing_bytes", "dataset", "extensions", "sha512"]
CAPTURE = ["sample_start", "frequency", "header_bytes", "global_index", "datetime"]
GOOD = {"core:datatype": "cf32_le", "core:version": "1.0.0", "core:sample_rate": 1e6}


def core(names: list[str]) -> st.SearchStrategy[dict]:
    return st.dictionaries(st.sampled_from([f"core:{name}" for name in names]), VALUES, max_size=3)


METADATA = st.one_of(
    VALUES,
    st.fixed_dictionaries(
        {
            "global": st.one_of(VALUES, core(CORE).map(lambda fields: GOOD | fields)),
            "captures": st.one_of(VALUES, st.lists(st.one_of(VALUES, core(CAPTURE)), max_size=3)),
            "annotations": VALUES,
        }
    ),
)


@PARSERS
@given(metadata=METADATA, raw=st.binary(max_size=64), bare=st.booleans())
def test_any_metadata_are_a_recording_or_refused(metadata, raw, bare) -> None:
    text = raw if bare else json.dumps(metadata).encode()
    with contextlib.suppress(Refusal):
        signal = recording_in_pair(text, io.BytesIO(bytes(800)), "the body", Limits())
        signal.read(0, signal.recording.samples)


@PARSERS
@given(data=st.data())
def test_any_bytes_are_an_archive_or_refused(goods, data) -> None:
    whole = goods["application/x-tar"]
    body = data.draw(st.one_of(damaged(whole), damaged(whole[:2048]), st.binary(max_size=2000), headers()))
    with contextlib.suppress(Refusal):
        signal = recording_in_archive(io.BytesIO(body), "the body", Limits())
        signal.read(0, signal.recording.samples)


def headers() -> st.SearchStrategy[bytes]:
    """Tar headers that are whole, of any kind and any size."""

    def header(name: str, size: int, kind: bytes, content: bytes) -> bytes:
        member = tarfile.TarInfo(name)
        member.size, member.type = size, kind
        return member.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)

    kinds = st.sampled_from([b"0", b"5", b"L", b"K", b"x", b"g", b"S", b"1", b"2", b"V", b"\0"])
    names = st.sampled_from(["a.sigmf-meta", "a.sigmf-data", "../b", "c"])
    one = st.builds(header, names, st.integers(-(2**40), 2**62), kinds, st.binary(max_size=600))
    return st.lists(one, min_size=1, max_size=4).map(b"".join)


@PARSERS
@given(data=st.data())
def test_any_bytes_are_a_tile_or_refused(data) -> None:
    body = data.draw(st.one_of(damaged(png()), st.binary(max_size=200)))
    with contextlib.suppress(Refusal):
        assert tile_pixels(body, 64).shape == (64, 64)


STARTS = {"sample_rate_hz": 1e6, "center_hz": None, "datatype": "cf32_le", "deadline_ms": 20_000}
MESSAGES = st.one_of(
    st.binary(max_size=100),
    st.sampled_from([tone(1).tobytes(), tone(1).tobytes()[:-1], '{"type": "end"}', json.dumps(STARTS)]),
    st.text(max_size=20),
    st.dictionaries(st.sampled_from([*STARTS, "type", "token", "models"]), VALUES, max_size=4).map(
        lambda one: json.dumps(STARTS | one)
    ),
)


@settings(max_examples=4 * EXAMPLES, deadline=None, suppress_health_check=CALM, derandomize=True, database=None)
@given(messages=st.lists(MESSAGES, max_size=5), start=st.booleans())
def test_any_conversation_comes_to_an_end(client, messages, start) -> None:
    codes: list[int] = []
    with client.websocket_connect("/v1/stream") as socket:
        for message in [json.dumps(STARTS)] * start + messages:
            socket.send_bytes(message) if isinstance(message, bytes) else socket.send_text(message)
        for _ in range(2):
            socket.send_text("enough")  # no message: whatever came before, this ends it
        with pytest.raises(WebSocketDisconnect) as end:
            codes.extend(statuses(socket))
    assert end.value.code in (1000, 1007, 1009)
    assert all(code < 500 for code in codes)


def statuses(socket) -> Iterator[int]:
    """Of every message until the end: the problem's, or 200."""
    while True:
        yield socket.receive_json().get("problem", {}).get("status", 200)
