"""The ensemble behind Ray Serve, under a light load, while what it serves and how it runs are changed."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from broken_detector import damage, publish_failing_detector
from grid_detector import CHUNK_SAMPLES, SAMPLE_RATE_HZ, TILES, publish_grid_detector
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from longhaul.export.registry import Registry
from longhaul.serving.models.catalog import load_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

CONFIG = Path(__file__).parents[2] / "serve_configs" / "local.yaml"
IQ = {"Content-Type": "application/octet-stream"}
SIGNAL = {"datatype": "cf32_le", "sample_rate": f"{SAMPLE_RATE_HZ:g}", "deadline_ms": "20000"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def samples(seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    noise = draw.normal(size=(2, CHUNK_SAMPLES))
    strength = 10.0 ** np.repeat(draw.uniform(-3, 0, 20), CHUNK_SAMPLES // 20)  # in steps, so that some cells are bright
    return ((noise[0] + 1j * noise[1]) * strength).astype(np.complex64)


class Server:
    """A deployment of two detectors, with what a test needs to disturb it."""

    def __init__(self, registry: Registry, port: int) -> None:
        from longhaul.serving import deployment

        self.registry = registry
        self.url = f"http://127.0.0.1:{port}"
        self.config = deployment.override(deployment.read_config(CONFIG), registry=registry.uri, models=[], host=None, port=port)
        (application,) = self.config.applications
        application.args["watch_s"] = 0.3
        (self.server,) = application.deployments
        self.server.autoscaling_config |= {"min_replicas": 2, "max_replicas": 2}  # by our policy, to which nothing else is left
        self.server.ray_actor_options.num_cpus = 0.5

    def deploy(self) -> None:
        from longhaul.serving import deployment

        assert deployment.deploy(self.config, lambda line: None, lambda: False, time.sleep)

    def detect(self, client: httpx.Client, seed: int = 0, **params: str) -> httpx.Response:
        return client.post(f"{self.url}/v1/detect", content=samples(seed).tobytes(), params=SIGNAL | params, headers=IQ)

    def versions(self, name: str = "grid") -> Counter[str]:
        """The versions that answered 20 requests."""
        with httpx.Client(timeout=60) as client:
            answers = [self.detect(client, models=name).json() for _ in range(20)]
        return Counter(answer["chunks"][0]["models"][0]["version"] for answer in answers)


@pytest.fixture(scope="module")
def server(ray_cluster, tmp_path_factory) -> Iterator[Server]:
    from longhaul.serving import deployment

    registry = Registry(str(tmp_path_factory.mktemp("live") / "models"))
    for name in ("grid", "other"):
        registry.promote(name, publish_grid_detector(registry, name).version)
    made = Server(registry, free_port())
    deployment.check_idle()
    try:
        made.deploy()
        yield made
    finally:
        deployment.take_down()


@contextmanager
def load(server: Server, clients: int = 3, cut_off: int = 0) -> Iterator[Counter[str]]:
    """Requests all the time; yields what became of them, and checks that none was lost or failed.

    Of the requests, `cut_off` may fail because their replica died over them; their repetition must be answered.
    """
    outcomes: Counter[str] = Counter()
    stop = threading.Event()

    def outcome(client: httpx.Client, number: int) -> str:
        try:
            response = server.detect(client, seed=number)
        except httpx.HTTPError as error:
            return f"failed: {error!r}"
        if response.status_code == 200:
            return "answered"
        refused = response.status_code in (429, 503) and "retry-after" in response.headers
        return "refused" if refused else f"failed: {response.status_code} {response.text[:200]}"

    def ask(number: int) -> None:
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                became = outcome(client, number)
                if became.startswith("failed") and cut_off:
                    outcomes["cut off"] += 1
                    became = outcome(client, number)
                outcomes[became] += 1

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(ask, number) for number in range(clients)]
        try:
            yield outcomes
        finally:
            stop.set()
        for one in asking:
            one.result()
    assert outcomes["answered"] > 0
    assert outcomes["cut off"] <= cut_off
    assert not [one for one in outcomes if one.startswith("failed")], outcomes


def wait_until(holds: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.2)


def replicas(address: str) -> dict[str, int]:
    """Replica actor -> process."""
    from ray.util.state import list_actors

    actors = list_actors(address, filters=[("state", "=", "ALIVE")], limit=1000)
    return {actor.actor_id: actor.pid for actor in actors if actor.class_name.startswith("ServeReplica")}


def test_detections_are_the_offline_paths_also_for_eight_clients_at_once(server) -> None:
    manifest = server.registry.resolve("grid", "1")
    model = load_model(server.registry, manifest)

    def offline(seed: int) -> list[tuple[str, tuple[float, ...], float]]:
        """The cells of this model do not overlap, so a threshold is all that is left to do."""
        tiles = TILES.front_end.to_uint8(torch.from_numpy(samples(seed)))
        outputs = model.engine.infer(tiles.reshape(-1, 1, *tiles.shape[-2:]).float() / 255)
        boxes, scores, labels = (outputs[name][0] for name in ("boxes", "scores", "labels"))
        names = manifest.signature.classes
        found = np.flatnonzero(scores > 0.5)
        return sorted((names[labels[i] - 1], tuple(map(float, boxes[i])), float(scores[i])) for i in found)

    def ask(seed: int) -> int:
        with httpx.Client(timeout=60) as client:
            response = server.detect(client, seed, models="grid")
        assert response.status_code == 200, response.text
        (chunk,) = response.json()["chunks"]
        assert [status["status"] for status in chunk["models"]] == ["on_time"]
        got = sorted((d["label"], tuple(d["box_px"]), d["score"]) for d in chunk["detections"])
        expected = offline(seed)
        assert [one[:2] for one in got] == [one[:2] for one in expected]
        np.testing.assert_allclose([one[2] for one in got], [one[2] for one in expected], atol=1e-6)
        return len(got)

    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        found = list(clients.map(ask, range(24)))
    assert min(found) > 0
    model.close()


def test_a_promoted_version_takes_over_under_load(server) -> None:
    with load(server):
        server.registry.promote("grid", publish_grid_detector(server.registry, "grid", gain=1.1).version)
        wait_until(lambda: server.versions() == {"2": 20})


def test_broken_versions_are_refused_under_load_and_told(server) -> None:
    def refusals() -> list[str]:
        answers = [httpx.get(f"{server.url}/v1/models/grid", timeout=60).json() for _ in range(10)]
        return [answer["refused"] or "" for answer in answers]

    with load(server):
        server.registry.promote("grid", publish_failing_detector(server.registry).version)
        wait_until(lambda: all(told.startswith("version 3: ") for told in refusals()))
        damaged = publish_grid_detector(server.registry, "grid")
        damage(server.registry, damaged)
        aliases = Path(server.registry.uri) / "grid" / "names.json"  # `promote` would find the damage
        aliases.write_text(json.dumps({"prod": damaged.version}))
        wait_until(lambda: all("SHA-256 differs" in told for told in refusals()))
        assert server.versions() == {"2": 20}
        server.registry.promote("grid", "2")
        wait_until(lambda: set(refusals()) == {""})
    assert httpx.get(f"{server.url}/healthz", timeout=60).json()["models"] == ["grid@2", "other@1"]


def test_the_log_of_a_replica_has_each_request_and_nothing_of_what_was_sent(server: Server) -> None:
    import ray

    with httpx.Client(timeout=60) as client:
        number = server.detect(client).headers["X-Request-ID"]
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs" / "serve"  # type: ignore[attr-defined]
    lines = [line for file in logs.glob("replica_*.log") for line in file.read_text().splitlines() if number in line]
    assert len(lines) == 1
    assert "POST /v1/detect 200" in lines[0]
    assert "sample_rate" not in lines[0]


def test_a_change_of_user_config_counts_without_a_restart(server, ray_cluster) -> None:
    def found() -> set[bool]:
        with httpx.Client(timeout=60) as client:
            return {bool(server.detect(client).json()["chunks"][0]["detections"]) for _ in range(20)}

    before = replicas(ray_cluster)
    assert found() == {True}
    with load(server):
        server.server.user_config = {"ensemble": {"score": 0.999}}
        server.deploy()
        wait_until(lambda: found() == {False})
        server.server.user_config = {}
        server.deploy()
        wait_until(lambda: found() == {True})
    assert replicas(ray_cluster) == before


def test_a_killed_replica_is_replaced_and_only_what_was_in_it_is_asked_again(server, ray_cluster) -> None:
    before = replicas(ray_cluster)
    assert len(before) == 2
    with load(server, clients=3, cut_off=3):
        os.kill(next(iter(before.values())), signal.SIGKILL)
        wait_until(lambda: len(replicas(ray_cluster)) == 2 and replicas(ray_cluster) != before)


def test_a_stream_passes_the_proxy_and_ends_with_1001_when_its_replica_stops(server) -> None:
    start = {"sample_rate_hz": SAMPLE_RATE_HZ, "center_hz": 100e6, "datatype": "cf32_le", "deadline_ms": 20000}
    raw = samples(1).tobytes()
    with connect(f"{server.url.replace('http', 'ws')}/v1/stream") as stream:
        stream.send(json.dumps(start))
        assert json.loads(stream.recv(30))["chunk_samples"] == CHUNK_SAMPLES
        for index in range(3):
            stream.send(raw[: len(raw) // 3])
            stream.send(raw[len(raw) // 3 :])
            message = json.loads(stream.recv(30))
            assert (message["type"], message["answer"]["index"]) == ("chunk", index)
            assert message["answer"]["detections"]
        with load(server):
            server.config.applications[0].args["threads"] = 2  # new replicas, one after the other
            server.deploy()
            with pytest.raises(ConnectionClosed) as closed:
                stream.recv(60)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001
