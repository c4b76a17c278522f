"""Who gets in, what is logged of them, what is counted."""

from __future__ import annotations

import asyncio
import logging

import pytest
from fastapi.testclient import TestClient
from http_signals import assert_problem, detect, tone
from starlette.websockets import WebSocketDisconnect

from longhaul.errors import UserError
from longhaul.serving.http.api import build_api
from longhaul.serving.http.settings import ApiSettings
from longhaul.serving.http.tokens import TokenFile, new_token
from longhaul.serving.models.updates import RegistryWatch


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


ROUTES = ["/v1/models", "/v1/models/tiny", "/metrics", "/v1/nothing"]
OPEN = ["/healthz", "/docs", "/openapi.json"]


def test_without_tokens_and_not_open_everything_but_health_and_the_routes_own_page_is_refused(detectors) -> None:
    with TestClient(build_api(detectors)) as client:
        for route in OPEN:
            assert client.get(route).status_code == 200
        for route in ROUTES:
            assert_problem(client.get(route), 401, "unauthorised", "no token file")
        assert_problem(detect(client, tone()), 401, "unauthorised")


def test_every_route_but_health_and_the_routes_own_page_asks_for_a_token(serve, tokens) -> None:
    client = serve(tokens=str(tokens[0]), open_loopback=True)  # a token file counts even then
    for route in OPEN:
        assert client.get(route).status_code == 200
    for headers in ({}, bearer("lh_wrong"), {"Authorization": "Basic abc"}, bearer(""), bearer(tokens[1]["reader"] + "x")):
        for route in ROUTES:
            response = client.get(route, headers=headers)
            assert_problem(response, 401, "unauthorised")
            assert response.headers["www-authenticate"].startswith("Bearer")
        assert_problem(detect(client, tone(), headers), 401, "unauthorised")
        assert_problem(client.post("/v1/admin/update", headers=headers), 401, "unauthorised")


LOCAL = ["127.0.0.1", "127.0.0.1:8000", "localhost:8000", "LOCALHOST", "localhost.", "app.localhost:1", "[::1]:8000", "127.8.9.1"]
FOREIGN = ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", "[2001:db8::1]", "localhost@evil.example"]
ODD = ["evil.example@localhost", "localhost:port", "[::1", "", "localhostx", "0.0.0.0"]


@pytest.mark.parametrize("host", LOCAL)
def test_an_open_server_answers_by_every_name_of_this_machine(client, host) -> None:
    assert client.get("/v1/models", headers={"Host": host}).status_code == 200
    assert client.get("/v1/models", headers={"Host": host, "Origin": f"http://{host}"}).status_code == 200


@pytest.mark.parametrize("host", [*FOREIGN, *ODD])
def test_an_open_server_answers_by_no_other_name(client, host) -> None:
    for route in [*OPEN, *ROUTES]:
        assert_problem(client.get(route, headers={"Host": host}), 403, "foreign-site", "host")
    assert_problem(detect(client, tone(), {"Host": host}), 403, "foreign-site")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://127.0.0.1.evil.example", "null", "", "file://", "evil.example"]
)
def test_an_open_server_answers_no_page_of_another_site(client, origin) -> None:
    assert_problem(detect(client, tone(), {"Origin": origin}), 403, "foreign-site", "origin")
    assert 'longhaul_refusals_total{problem="foreign-site",replica="here"} 1.0' in client.get("/metrics").text


def test_an_open_server_takes_no_stream_from_another_site(client) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect("/v1/stream", headers=headers):
            pass
        assert refused.value.code == 1008
    with client.websocket_connect("/v1/stream", headers={"Origin": "http://localhost:3000"}) as socket:
        socket.send_text("{}")
        assert socket.receive_json()["problem"]["title"] == "A parameter is not valid"


def test_a_server_with_tokens_answers_by_any_name(serve, tokens) -> None:
    client = serve(tokens=str(tokens[0]))
    headers = bearer(tokens[1]["reader"]) | {"Host": "models.example", "Origin": "https://page.example"}
    assert client.get("/v1/models", headers=headers).status_code == 200


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


def test_who_leaves_is_no_failure_of_the_server(client, detectors) -> None:
    for code in (1000, 1001):
        with client.websocket_connect("/v1/stream") as socket:
            socket.send_text('{"sample_rate_hz": 1e6, "datatype": "ci8"}')
            assert socket.receive_json()["type"] == "ready"
            socket.close(code)
    asyncio.run(half_a_body(client.app))
    text = client.get("/metrics").text
    for line in (
        'longhaul_http_requests_total{method="WS",replica="here",route="/v1/stream",status="1000"} 1.0',
        'longhaul_http_requests_total{method="WS",replica="here",route="/v1/stream",status="1001"} 1.0',
        'longhaul_http_requests_total{method="POST",replica="here",route="/v1/detect",status="499"} 1.0',
    ):
        assert line in text
    assert 'status="500"' not in text


async def half_a_body(app) -> None:
    """POST a body and leave in the middle of it."""
    messages = iter([{"type": "http.request", "body": b"\0" * 800, "more_body": True}, {"type": "http.disconnect"}])

    async def receive():
        return next(messages)

    async def send(message):
        raise AssertionError("nobody is there to read an answer")

    query = b"datatype=cf32_le&sample_rate=1e6&deadline_ms=20000"
    headers = [(b"host", b"localhost"), (b"content-type", b"application/octet-stream")]
    scope = {"type": "http", "method": "POST", "path": "/v1/detect", "query_string": query, "headers": headers}
    await app(scope | {"http_version": "1.1", "scheme": "http", "root_path": "", "state": {}}, receive, send)


def test_a_failure_counts_as_one(client, detectors, monkeypatch) -> None:
    monkeypatch.setattr(type(detectors), "models", lambda self: 1 / 0)
    assert_problem(client.get("/v1/models"), 500, "internal-server-error")
    assert 'route="/v1/models",status="500"} 1.0' in client.get("/metrics").text


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
