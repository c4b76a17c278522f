"""The HTTP interface without Ray: right answers, and a problem for everything else."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from http_signals import assert_problem, local_client

from longhaul.serving.http.api import build_api
from longhaul.serving.http.settings import ApiSettings

PREDICT = "/v1/models/tiny/predict"
OPEN = ApiSettings(open_loopback=True)
PNG = {"Content-Type": "image/png"}


@pytest.fixture
def client(catalog):
    with local_client(build_api(catalog, OPEN)) as opened:
        yield opened


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
    summary |= {"state": "serving", "failure": None, "refused": None, "seconds_per_tile": None}
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
    with local_client(build_api(scripted, OPEN)) as client:
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
    assert re.fullmatch("[0-9a-f]{32}", client.get("/healthz", headers={"X-Request-ID": ""}).headers["x-request-id"])


@pytest.mark.parametrize("given", [b"my id <bad>", b"Root=1-67/a+b", "größe".encode(), b"a\x7f%", b"x" * 128])
def test_a_problem_has_the_request_id_that_the_client_gave(catalog, given) -> None:
    for stamp in (True, False):
        with local_client(build_api(catalog, OPEN, stamp_request_id=stamp)) as client:
            response = client.get("/v1/models/none", headers={b"X-Request-ID": given})
            said = response.json()["instance"].removeprefix("urn:longhaul:request:")
            assert unquote_to_bytes(said) == given
            assert said.isascii()
            assert not set(said) & set(' <>"\x7f')
            assert response.headers.get("x-request-id") == (said if stamp else None)


def test_a_path_with_a_slash_too_many_leads_nowhere(client) -> None:
    response = client.get("/v1/models/", headers={"Host": "localhost:1"}, follow_redirects=False)
    assert_problem(response, 404, "not-found")
    assert "location" not in response.headers


def test_a_name_has_bounds(client) -> None:
    assert_problem(client.get("/v1/models/" + "x" * 129), 422, "invalid-parameter", "path.name")
    assert_problem(client.get("/v1/models/tiny", params={"version": "1" * 129}), 422, "invalid-parameter", "query.version")


def test_the_server_in_front_may_write_the_request_id(catalog) -> None:
    with local_client(build_api(catalog, OPEN, stamp_request_id=False)) as client:
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
    assert predict["responses"].keys() == {
        "200", "400", "401", "403", "404", "408", "409", "413", "415", "422", "429", "500",
    }  # fmt: skip
    assert predict["responses"]["404"]["content"].keys() == {"application/problem+json"}
    assert "Problem" in document["components"]["schemas"]


def test_detectors_are_listed_with_what_they_cost_and_how_they_are(serve, detectors) -> None:
    client = serve()
    detectors.find("grid").failure = "the device is gone"
    detectors.refused["wide"] = "version 2: its SHA-256 differs"
    models = {model["name"]: model for model in client.get("/v1/models").json()["models"]}
    assert {name: (model["task"], model["state"]) for name, model in models.items()} == {
        "grid": ("detection", "failed"),
        "tiny": ("classification", "serving"),
        "wide": ("detection", "serving"),
    }
    assert models["grid"]["failure"] == "the device is gone"
    assert models["wide"]["refused"] == "version 2: its SHA-256 differs"
    assert models["wide"]["seconds_per_tile"] >= 0
    detail = client.get("/v1/models/grid").json()
    assert detail["labels"] == ["even", "odd"]
    assert detail["manifest"]["signature"]["preprocess"]["tiles"]["chunk_s"] == 0.01


def test_a_shed_detector_is_listed_as_such(serve, detectors, monkeypatch) -> None:
    import dataclasses

    states = [dataclasses.replace(state, shed=state.name == "wide") for state in detectors.ensemble.states()]
    monkeypatch.setattr(detectors.ensemble, "states", lambda: states)
    assert {model["name"]: model["state"] for model in serve().get("/v1/models").json()["models"]} == {
        "grid": "serving",
        "tiny": "serving",
        "wide": "shed",
    }


def test_a_detector_does_not_classify(serve, picture) -> None:
    response = serve().post("/v1/models/grid/predict", content=picture(), headers=PNG)
    assert_problem(response, 409, "wrong-task", "'grid': is of task detection", "POST /v1/detect")


def test_a_model_without_a_candidate_has_no_shadow(serve) -> None:
    client = serve()
    assert_problem(client.get("/v1/models/grid/shadow"), 404, "no-shadow", "'grid'")
    assert_problem(client.get("/v1/models/gird/shadow"), 404, "unknown-model", "Did you mean 'grid'?")


def test_openapi_says_that_a_token_is_needed_where_it_is(serve, detectors) -> None:
    assert "securitySchemes" not in serve().get("/openapi.json").json()["components"]
    document = build_api(detectors).openapi()
    assert document["paths"]["/v1/detect"]["post"]["security"] == [{"bearer": []}]
    assert document["paths"]["/healthz"]["get"]["security"] == []


def test_openapi_names_the_answers_that_come_on_any_route(serve, detectors) -> None:
    guarded, local = build_api(detectors).openapi()["paths"], serve().get("/openapi.json").json()["paths"]
    for path in guarded:
        (everywhere,), (here,) = guarded[path].values(), local[path].values()
        assert "429" in everywhere["responses"].keys() & here["responses"].keys()
        assert "403" in here["responses"]
        if path != "/healthz":
            assert everywhere["responses"].keys() >= {"401", "403", "503"}
            assert list(everywhere["responses"]["503"]["content"]) == ["application/problem+json"]


def test_openapi_says_where_a_stretch_counts_from(serve) -> None:
    detect = serve().get("/openapi.json").json()["paths"]["/v1/detect"]["post"]
    reference = detect["requestBody"]["content"]["application/json"]["schema"]
    assert "count from there" in reference["properties"]["start_s"]["description"]


def test_openapi_shows_every_body_of_a_detection(serve) -> None:
    detect = serve().get("/openapi.json").json()["paths"]["/v1/detect"]["post"]
    kinds = {"application/octet-stream", "application/x-sigmf", "application/x-tar", "multipart/form-data", "image/png"}
    assert detect["requestBody"]["content"].keys() == kinds | {"application/json"}
    assert {"X-SigMF-Datatype", "deadline_ms", "models", "tracks"} <= {one["name"] for one in detect["parameters"]}
    assert "Retry-After" in detect["responses"]["503"]["headers"]
