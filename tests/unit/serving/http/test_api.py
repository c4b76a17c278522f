"""The HTTP interface without Ray: right answers, and a problem for everything else."""

from __future__ import annotations

import re

import numpy as np
import pytest
from fastapi.testclient import TestClient

from longhaul.serving.http.api import build_api

PREDICT = "/v1/models/tiny/predict"
PNG = {"Content-Type": "image/png"}


@pytest.fixture
def client(catalog):
    with TestClient(build_api(catalog)) as opened:
        yield opened


def assert_problem(response, status: int, slug: str, *words: str) -> dict:
    body = response.json()
    assert response.status_code == status, body
    assert response.headers["content-type"] == "application/problem+json"
    assert body["type"] == f"urn:longhaul:problem:{slug}"
    assert body["status"] == status
    assert body["title"]
    assert body["instance"] == f"urn:longhaul:request:{response.headers['x-request-id']}"
    for word in words:
        assert word in body["detail"]
    return body


def test_the_answers_are_the_engines_own(client, catalog, picture) -> None:
    for seed in range(8):
        expected = catalog.find("tiny").classifier(picture(seed), 3)
        body = client.post(PREDICT, content=picture(seed), headers=PNG, params={"top_k": 3}).json()
        assert (body["model"], body["version"]) == ("tiny", "1")
        assert [(p["label"], p["index"]) for p in body["predictions"]] == [(p.label, p.index) for p in expected]
        np.testing.assert_allclose([p["probability"] for p in body["predictions"]], [p.probability for p in expected], rtol=1e-5)


def test_body_and_form_say_the_same(client, picture) -> None:
    whole = client.post(PREDICT, content=picture(), headers={"Content-Type": "application/octet-stream"})
    form = client.post(PREDICT, files={"image": ("a.png", picture(), "image/png")})
    assert whole.status_code == 200
    assert form.json() == whole.json()


def test_lists_and_details(client, catalog) -> None:
    summary = {"name": "tiny", "version": "1", "versions": ["1"], "task": "classification", "classes": 4, "engine": "onnxruntime"}
    assert client.get("/v1/models").json() == {"models": [summary]}
    detail = client.get("/v1/models/tiny").json()
    assert detail["labels"] == ["north", "east", "south", "west"]
    assert detail["max_batch"] == 4
    assert detail["manifest"]["files"].keys() == {"model.onnx"}
    assert client.get("/v1/models/tiny", params={"version": "1"}).json() == detail


def test_health(client, catalog) -> None:
    assert client.get("/healthz").json() == {"status": "ok", "models": ["tiny@1"]}
    catalog.find("tiny").failure = "the device is gone"
    assert_problem(client.get("/healthz"), 503, "not-ready", "tiny version 1: the device is gone")


def test_unknown_things(client, picture) -> None:
    post = lambda path, **more: client.post(path, content=picture(), headers=PNG, **more)  # noqa: E731
    assert_problem(post("/v1/models/tinny/predict"), 404, "unknown-model", "'tinny'", "Did you mean 'tiny'?")
    assert_problem(post(PREDICT, params={"version": "9"}), 404, "unknown-model", "version '9'", "Served: 1")
    assert_problem(client.get("/v1/models/tinny"), 404, "unknown-model", "Did you mean 'tiny'?")
    assert_problem(client.get("/v2/models"), 404, "not-found", "GET /v2/models: no such route", "/docs")
    response = client.get(PREDICT)
    assert_problem(response, 405, "method-not-allowed", f"GET {PREDICT}")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("body", "status", "slug", "words"),
    [
        (b"", 400, "broken-image", "empty"),
        (b"no picture", 400, "broken-image", "no image"),
        ("cut", 400, "broken-image", "broken"),
        (b"\0" * (17 << 20), 413, "image-too-large", "the limit is 16,777,216"),
    ],
)
def test_bad_bodies(client, picture, body, status, slug, words) -> None:
    content = picture(0, size=(64, 64))[:2000] if body == "cut" else body
    assert_problem(client.post(PREDICT, content=content, headers=PNG), status, slug, words)


def test_a_body_without_a_declared_length_is_cut_off_at_the_limit(client) -> None:
    sent = 0

    def blocks():
        nonlocal sent
        for _ in range(40):
            sent += 1 << 20
            yield b"\0" * (1 << 20)

    assert_problem(client.post(PREDICT, content=blocks(), headers=PNG), 413, "image-too-large", "more than 16,777,216")


def test_content_types(client, picture) -> None:
    for given in ("application/x-www-form-urlencoded", "text/plain; charset=utf-8"):
        response = client.post(PREDICT, content=picture(), headers={"Content-Type": given})
        assert_problem(response, 415, "unsupported-content-type", given.split(";")[0], "image/png")
    assert_problem(client.post(PREDICT, content=picture()), 415, "unsupported-content-type", "(none)")
    assert_problem(client.post(PREDICT, files={"picture": picture()}), 400, "broken-image", "no file in the field 'image'")
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    assert_problem(client.post(PREDICT, content=b"--y", headers=broken), 400, "bad-request")
    assert_problem(client.post(PREDICT, content=b"--y", headers={"Content-Type": "multipart/form-data"}), 400, "bad-request")


@pytest.mark.parametrize("top_k", ["0", "-1", "5", "many"])
def test_top_k(client, picture, top_k) -> None:
    response = client.post(PREDICT, content=picture(), headers=PNG, params={"top_k": top_k})
    assert_problem(response, 422, "invalid-parameter", "top_k")


def test_a_failing_engine_is_a_500_that_tells_nothing(scripted, engine, picture, caplog) -> None:
    engine.failure = ValueError("secret: /srv/models/tiny")
    with TestClient(build_api(scripted)) as client:
        response = client.post(PREDICT, content=picture(), headers=PNG | {"X-Request-ID": "abc-1"})
        body = assert_problem(response, 500, "internal-server-error", "log")
        assert "secret" not in str(body)
        assert "abc-1" in caplog.text
        assert "secret" in caplog.text
        engine.failure = None
        assert client.post(PREDICT, content=picture(), headers=PNG).status_code == 200


def test_request_ids(client) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": "job-17"}).headers["x-request-id"] == "job-17"
    made = client.get("/healthz").headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert made != client.get("/healthz").headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", client.get("/healthz", headers={"X-Request-ID": "a b\x7f"}).headers["x-request-id"])


def test_the_server_in_front_may_write_the_request_id(catalog) -> None:
    with TestClient(build_api(catalog, stamp_request_id=False)) as client:
        assert "x-request-id" not in client.get("/healthz").headers


def test_the_page_of_routes_needs_nobody_else(client) -> None:
    page = client.get("/docs").text
    for path in client.get("/openapi.json").json()["paths"]:
        assert path in page
    assert "<script" not in page
    assert "http:" not in page.replace("http://HOST:PORT", "")
    assert "https:" not in page


def test_openapi_says_what_is_answered(client) -> None:
    document = client.get("/openapi.json").json()
    predict = document["paths"]["/v1/models/{name}/predict"]["post"]
    assert predict["requestBody"]["content"].keys() == {"image/*", "application/octet-stream", "multipart/form-data"}
    assert predict["responses"].keys() == {"200", "400", "404", "413", "415", "422", "429", "500"}
    assert predict["responses"]["404"]["content"].keys() == {"application/problem+json"}
    assert "Problem" in document["components"]["schemas"]
