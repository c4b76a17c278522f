"""Who gets in, what is logged of them, what is counted."""

from __future__ import annotations

import logging

import pytest
from fastapi.testclient import TestClient
from http_signals import assert_problem, detect, tone

from longhaul.errors import UserError
from longhaul.serving.http.api import build_api
from longhaul.serving.http.settings import ApiSettings
from longhaul.serving.http.tokens import TokenFile, new_token
from longhaul.serving.updates import RegistryWatch


@pytest.fixture
def tokens(tmp_path):
    """The path of a token file, and the secrets in it by name: `reader` may predict, `chief` is admin, `both` are both."""
    made = {"reader": ["predict"], "chief": ["admin"], "both": ["predict", "admin"]}
    entries = {name: new_token(name, scopes) for name, scopes in made.items()}
    path = tmp_path / "tokens.json"
    TokenFile(tokens=tuple(entry for _, entry in entries.values())).write(path)
    return path, {name: secret for name, (secret, _) in entries.items()}


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


ROUTES = ["/v1/models", "/v1/models/tiny", "/metrics", "/docs", "/openapi.json", "/v1/nothing"]


def test_without_tokens_and_not_open_everything_but_health_is_refused(detectors) -> None:
    with TestClient(build_api(detectors)) as client:
        assert client.get("/healthz").status_code == 200
        for route in ROUTES:
            assert_problem(client.get(route), 401, "unauthorised", "no token file")
        assert_problem(detect(client, tone()), 401, "unauthorised")


def test_every_route_but_health_asks_for_a_token(serve, tokens) -> None:
    client = serve(tokens=str(tokens[0]), open_loopback=True)  # a token file counts even then
    assert client.get("/healthz").status_code == 200
    for headers in ({}, bearer("lh_wrong"), {"Authorization": "Basic abc"}, bearer(""), bearer(tokens[1]["reader"] + "x")):
        for route in ROUTES:
            response = client.get(route, headers=headers)
            assert_problem(response, 401, "unauthorised")
            assert response.headers["www-authenticate"].startswith("Bearer")
        assert_problem(detect(client, tone(), headers), 401, "unauthorised")
        assert_problem(client.post("/v1/admin/update", headers=headers), 401, "unauthorised")


def test_each_scope_opens_its_own_routes(serve, tokens) -> None:
    path, secrets = tokens
    client = serve(tokens=str(path))
    for name, may_predict, may_update in (("reader", True, False), ("chief", False, True), ("both", True, True)):
        headers = bearer(secrets[name])
        assert client.get("/metrics", headers=headers).status_code == 200
        for response in (
            client.get("/v1/models", headers=headers),
            client.get("/v1/models/tiny", headers=headers),
            detect(client, tone(), headers),
        ):
            assert response.status_code == 200 if may_predict else assert_problem(response, 403, "forbidden", "scope predict")
        updated = client.post("/v1/admin/update", headers=headers)
        assert_problem(updated, 404, "no-watch") if may_update else assert_problem(updated, 403, "forbidden", "scope admin")
    assert_problem(client.post("/v1/models/tiny/predict", headers=bearer(secrets["chief"])), 403, "forbidden")


def test_a_revoked_token_is_refused_at_once(serve, tokens) -> None:
    path, secrets = tokens
    client = serve(tokens=str(path))
    assert client.get("/v1/models", headers=bearer(secrets["reader"])).status_code == 200
    TokenFile.read(path).without("reader").write(path)
    assert_problem(client.get("/v1/models", headers=bearer(secrets["reader"])), 401, "unauthorised", "not valid")
    path.unlink()
    response = client.get("/v1/models", headers=bearer(secrets["both"]))
    body = assert_problem(response, 503, "not-ready", "token file")
    assert str(path) not in str(body)


def test_a_token_file_that_is_none_stops_the_server_at_its_start(detectors, tmp_path) -> None:
    with pytest.raises(UserError, match="token file"):
        build_api(detectors, ApiSettings(tokens=tmp_path / "none.json"))


def test_the_body_of_a_stranger_is_not_read(serve, tokens) -> None:
    client = serve(tokens=str(tokens[0]))
    sent = 0

    def blocks():
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b"\0" * 1000

    response = client.post("/v1/detect", content=blocks(), headers={"Content-Type": "application/octet-stream"})
    assert_problem(response, 401, "unauthorised")


def test_the_access_log_names_the_caller_and_nothing_that_was_sent(serve, tokens, caplog) -> None:
    path, secrets = tokens
    client = serve(tokens=str(path))
    with caplog.at_level(logging.INFO, "longhaul.serving.http.access"):
        detect(client, tone(), bearer(secrets["reader"]) | {"X-Request-ID": "job-7"})
        client.get("/v1/models/tiny%0aforged", headers=bearer(secrets["reader"]))
        client.get("/v1/models?token=" + secrets["both"], headers=bearer("lh_guess"))
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("access")]
    assert len(lines) == 3
    assert lines[0].startswith("request job-7: POST /v1/detect 200 in ")
    assert "80000 bytes in" in lines[0]
    assert lines[0].endswith("token reader")
    assert "GET /v1/models/{name} 404" in lines[1]
    assert lines[2].endswith("token -")
    assert not any(secret in line or "lh_guess" in line or "forged" in line for line in lines for secret in secrets.values())


def test_metrics_count_what_happened(client) -> None:
    detect(client, tone(2))
    detect(client, b"")
    client.get("/nowhere")
    text = client.get("/metrics").text
    for line in (
        'longhaul_http_requests_total{method="POST",replica="here",route="/v1/detect",status="200"} 1.0',
        'longhaul_http_requests_total{method="POST",replica="here",route="/v1/detect",status="400"} 1.0',
        'longhaul_http_requests_total{method="GET",replica="here",route="(none)",status="404"} 1.0',
        'longhaul_chunks_total{degraded="false",replica="here",road="request"} 2.0',
        'longhaul_tiles_total{replica="here"} 2.0',
        'longhaul_model_chunks_total{model="grid",replica="here",status="on_time",version="1"} 2.0',
        'longhaul_model_shed{model="wide",replica="here",version="1"} 0.0',
        'longhaul_refusals_total{problem="broken-signal",replica="here"} 1.0',
        'longhaul_http_bytes_total{direction="in",replica="here"} 160000.0',
    ):
        assert line in text


def test_two_applications_count_apart(serve) -> None:
    first, second = serve(), serve()
    detect(first, tone())
    assert "longhaul_tiles_total{" in first.get("/metrics").text
    assert "longhaul_tiles_total{" not in second.get("/metrics").text


def test_an_admin_has_the_registry_looked_at(serve, detectors, registry) -> None:
    from grid_detector import publish_grid_detector

    client = serve()
    assert_problem(client.post("/v1/admin/update"), 404, "no-watch", "watch_s")
    detectors.watch = RegistryWatch(registry, detectors, every_s=3600)
    before = client.post("/v1/admin/update").json()
    assert before == {"models": ["grid@1", "tiny@1", "wide@1"], "refused": {}}
    publish_grid_detector(registry, "grid")
    registry.promote("grid", "2")
    assert client.post("/v1/admin/update").json()["models"] == ["grid@2", "tiny@1", "wide@1"]
