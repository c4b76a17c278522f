"""The Serve application on a real Ray cluster, over HTTP on loopback."""

from __future__ import annotations

import concurrent.futures
import io
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from longhaul.export.registry import Registry
from longhaul.serving.models.catalog import choose, load

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).parents[2] / "serve_configs" / "local.yaml"
PNG = {"Content-Type": "image/png"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def silent(line: str) -> None: ...


def never() -> bool:
    return False


def serve_processes(address: str) -> list[str]:
    from ray.util.state import list_actors

    actors = list_actors(address, filters=[("state", "!=", "DEAD")], limit=1000)
    return [
        actor.class_name for actor in actors if actor.class_name.startswith(("ServeReplica", "ServeController", "ProxyActor"))
    ]


@pytest.fixture(scope="module")
def registry(publish_tiny, tmp_path_factory) -> Registry:
    made = Registry(str(tmp_path_factory.mktemp("serve") / "models"))
    publish_tiny(made, "tiny")
    publish_tiny(made, "other", seed=1)
    return made


def settings(registry: Registry, port: int):
    from longhaul.serving import deployment

    return deployment.override(deployment.read_config(CONFIG), registry=registry.uri, models=[], host=None, port=port)


def test_a_model_that_does_not_verify_ends_the_deployment_and_is_named(ray_cluster, publish_tiny, tmp_path) -> None:
    from longhaul.serving import deployment

    registry = Registry(str(tmp_path / "models"))
    file = Path(registry.folder("tiny", publish_tiny(registry).version)) / "model.onnx"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    try:
        with pytest.raises(deployment.DeploymentFailed, match=r"tiny/1/model\.onnx: its SHA-256 differs") as error:
            deployment.deploy(settings(registry, free_port()), silent, never, time.sleep)
        assert "\n" not in str(error.value)
    finally:
        deployment.take_down()


def test_the_command_serves_until_interrupted_and_leaves_nothing(ray_cluster, registry) -> None:
    port = free_port()
    options = [
        "--registry",
        registry.uri,
        "--model",
        "tiny",
        "--port",
        str(port),
        "--address",
        ray_cluster,
        "--config",
        str(CONFIG),
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", "from longhaul.cli.main import main; main()", "serve", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("stop"):
                break
        assert f"http://127.0.0.1:{port}/v1/models/tiny/predict" in "".join(lines), "".join(lines)
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=30).json()["models"] == ["tiny@1"]
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, rest
    assert "Traceback" not in rest
    assert serve_processes(ray_cluster) == []


@pytest.fixture(scope="module")
def url(ray_cluster, registry):
    from longhaul.serving import deployment

    port = free_port()
    config = settings(registry, port)
    deployment.check_idle()
    assert deployment.deploy(config, silent, never, time.sleep)
    assert len(serve_processes(ray_cluster)) == 3  # the controller, a proxy, a replica
    yield f"http://127.0.0.1:{port}"
    deployment.take_down()
    assert serve_processes(ray_cluster) == []
    deployment.check_port("127.0.0.1", port)


def test_answers_over_http_are_the_engines_own_also_for_eight_clients_at_once(url, registry) -> None:
    catalog = load(registry, choose(registry))

    def ask(seed: int) -> None:
        name = ("tiny", "other")[seed % 2]
        response = httpx.post(
            f"{url}/v1/models/{name}/predict", content=picture(seed), headers=PNG, params={"top_k": 4}, timeout=60
        )
        assert response.status_code == 200, response.text
        expected = catalog.find(name).classifier(picture(seed), 4)  # type: ignore[attr-defined]
        got = response.json()["predictions"]
        assert [p["label"] for p in got] == [p.label for p in expected]
        np.testing.assert_allclose([p["probability"] for p in got], [p.probability for p in expected], rtol=1e-4)

    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        list(clients.map(ask, range(40)))
    catalog.close()


def test_every_answer_has_one_request_id_and_errors_are_problems(url) -> None:
    good = httpx.get(f"{url}/healthz", headers={"X-Request-ID": "job-1"})
    assert good.json()["models"] == ["other@1", "tiny@1"]
    assert good.headers.get_list("x-request-id") == ["job-1"]
    for response, status in (
        (httpx.get(f"{url}/v1/models/tinny"), 404),
        (httpx.get(f"{url}/nowhere"), 404),
        (httpx.post(f"{url}/v1/models/tiny/predict", content=b"no picture", headers=PNG), 400),
        (httpx.post(f"{url}/v1/models/tiny/predict", content=b"\0" * (17 << 20), headers=PNG), 413),
    ):
        assert response.status_code == response.json()["status"] == status
        assert response.headers["content-type"] == "application/problem+json"
        (request_id,) = response.headers.get_list("x-request-id")
        assert response.json()["instance"].endswith(request_id)
    assert httpx.get(f"{url}/docs").status_code == 200


def test_a_second_deployment_on_the_cluster_is_refused_and_the_port_too(url) -> None:
    from longhaul.errors import UserError
    from longhaul.serving import deployment

    with pytest.raises(UserError, match=r"already runs on this cluster \(longhaul\).*serve shutdown"):
        deployment.check_idle()
    with pytest.raises(UserError, match=r"Address already in use.*--port"):
        deployment.check_port("127.0.0.1", int(url.rsplit(":", 1)[1]))
