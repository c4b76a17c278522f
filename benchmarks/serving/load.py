"""More than the server can do, for minutes: does every request get its due?

    python benchmarks/serving/load.py [--registry DIR] [--minutes 10] [--factor 2] [--replicas 1] [--changes]

First the capacity: what eight clients get through, each with one request at a time. Then requests come at `factor` times that
rate, whatever the server does, each with the deadline of 400 ms. Every request must end in one of three ways: an answer within
the deadline and whole; an answer in time that is marked as degraded; a refusal with Retry-After. Anything else is listed:
another status, a connection that broke, a refusal without Retry-After, no answer at all.

Memory is that of the replicas and of the proxy (unique set size), read every ten seconds; growth is the last minute's median
over the one after the first minute. With --changes, meanwhile: a new version is promoted, a replica is killed, a broken
model is promoted, and the config is changed.

Prediction, written before the first run: none lost, none failed; about half are refused; memory grows by less than 2 %. With
--changes: none failed but those that the killed replica held, as a POST is not sent twice by a proxy; these are asked again
once, as our own client does.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import yaml

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "tests" / "shared"), str(Path(__file__).resolve().parent)]

from grid_detector import CHUNK_SAMPLES, SAMPLE_RATE_HZ, publish_grid_detector  # noqa: E402
from servers import ROOT, ask, free_port, longhaul, server  # noqa: E402

from longhaul.export.registry import Registry  # noqa: E402

SENDERS = 96  # connections; each waits for its answer, so more than the server's queues hold
DEADLINE_S = 0.4


@dataclass
class Outcomes:
    """What became of the requests: counts by kind, seconds of the answers, and when each bad one came."""

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    seconds: list[float] = field(default_factory=list)
    server_seconds: list[float] = field(default_factory=list)
    bad: list[tuple[float, str]] = field(default_factory=list)
    by_second: dict[int, collections.Counter[str]] = field(default_factory=lambda: collections.defaultdict(collections.Counter))

    def add(self, at_s: float, kind: str, took_s: float) -> None:
        """Count one."""
        self.counts[kind] += 1
        self.by_second[int(at_s)][kind] += 1
        if kind in ("whole", "degraded"):
            self.seconds.append(took_s)
        elif kind not in ("refused", "answered at the second try"):
            self.bad.append((at_s, kind))


class Load:
    """Requests at a fixed rate, until stopped.

    Args:
        port: of the server.
        path: with its query.
        body: of each request.
        rate: requests a second.
    """

    def __init__(self, port: int, path: str, body: bytes, rate: float) -> None:
        self._port, self._path, self._body, self._rate = port, path, body, rate
        self._lock = threading.Lock()
        self._number = 0
        self._stop = threading.Event()
        self.outcomes = Outcomes()
        self.late_senders = 0
        self.began = time.perf_counter()
        self._threads = [threading.Thread(target=self._work) for _ in range(SENDERS)]
        for thread in self._threads:
            thread.start()

    @property
    def sent(self) -> int:
        """Requests begun."""
        return self._number

    def stop(self) -> None:
        """Send no more; wait for the answers that are on their way."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._stop.is_set():
            with self._lock:
                due = self.began + self._number / self._rate
                ahead = due - time.perf_counter()
                if ahead < 0.25:
                    self._number += 1
            if ahead >= 0.25:  # not yet this sender's turn
                time.sleep(0.05)
                continue
            if ahead > 0:
                time.sleep(ahead)
            began = time.perf_counter()
            kind = self._one(connection)
            if kind.startswith("broken"):  # what `longhaul.serving.client` does: a question asked twice harms nobody
                again = self._one(connection)
                kind = "answered at the second try" if again in ("whole", "degraded") else f"{kind}, then {again}"
            took = time.perf_counter() - began
            with self._lock:
                self.outcomes.add(began - self.began, kind, took)
                self.late_senders += began - due > 0.05

    def _one(self, connection: http.client.HTTPConnection) -> str:
        try:
            connection.request("POST", self._path, self._body, {"Content-Type": "application/octet-stream"})
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return f"broken: {type(error).__name__}"
        if answer.status == http.client.OK:
            told = json.loads(content)
            late = max(chunk["seconds"] for chunk in told["chunks"]) > DEADLINE_S + 0.005
            with self._lock:
                self.outcomes.server_seconds.append(max(chunk["seconds"] for chunk in told["chunks"]))
            return "answered late" if late else "degraded" if told["degraded"] else "whole"
        if answer.status in (429, 503):
            return "refused" if answer.headers.get("Retry-After") else f"{answer.status} without Retry-After"
        return f"status {answer.status}"


def main() -> None:
    """Load, watch, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", help="detectors that all take the same chunks; three light ones if left out")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--factor", type=float, default=2.0)
    parser.add_argument("--changes", action="store_true")
    parser.add_argument("--replicas", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        registry = Registry(given.registry) if given.registry else light_registry(scratch)
        body, rate_hz = chunk_body(registry)
        port = free_port()
        path = f"/v1/detect?datatype=cf32_le&sample_rate={rate_hz:.0f}&deadline_ms={1e3 * DEADLINE_S:g}"
        config = Path(scratch) / "serve.yaml"
        _config(config, given.replicas)
        with server(longhaul(registry.uri, port, config), port) as process:
            ask(port, path, body, requests=50, clients=8)
            began = time.perf_counter()
            closed = ask(port, path, body, requests=400, clients=8)
            capacity = len(closed.seconds) / (time.perf_counter() - began)
            print(f"capacity {capacity:.1f} answers a second by {given.replicas} replicas (8 clients, ", end="")
            print(f"p50 {1e3 * closed.quantile(0.5):.0f} ms); load {given.factor:g} times that", flush=True)
            _run(given, Load(port, path, body, given.factor * capacity), process, registry, config)


def _config(path: Path, replicas: int) -> None:
    """Local.yaml with a fixed number of replicas."""
    content = yaml.safe_load((ROOT / "serve_configs" / "local.yaml").read_text())
    (deployment,) = content["applications"][0]["deployments"]
    deployment["autoscaling_config"] |= {"min_replicas": replicas, "max_replicas": replicas}
    path.write_text(yaml.safe_dump(content))


def light_registry(scratch: str) -> Registry:
    """Three detectors that cost next to nothing."""
    registry = Registry(str(Path(scratch) / "models"))
    for name in ("first", "second", "third"):
        publish_grid_detector(registry, name)
        registry.promote(name, "1")
    return registry


def chunk_body(registry: Registry) -> tuple[bytes, float]:
    """One chunk of noise with a tone, at the rate that the first model knows."""
    made = registry.resolve(registry.names()[0]).signature.preprocess["tiles"]
    rate = float(made["sample_rates_hz"][0]) if made["sample_rates_hz"] else SAMPLE_RATE_HZ
    samples = round(made["chunk_s"] * rate) or CHUNK_SAMPLES
    rng = np.random.default_rng(0)
    iq = 0.01 * (rng.normal(size=samples) + 1j * rng.normal(size=samples)) + 0.3 * np.exp(0.5j * np.arange(samples))
    return iq.astype(np.complex64).tobytes(), rate


def _run(given: argparse.Namespace, load: Load, process: int, registry: Registry, config: Path) -> None:
    memory: list[tuple[float, float]] = []
    end = time.perf_counter() + 60 * given.minutes
    changes = _changes(config, registry, process) if given.changes else []
    try:
        while time.perf_counter() < end:
            at = time.perf_counter() - load.began
            memory.append((at, _megabytes(process)))
            while changes and at > changes[0][0] * 60 * given.minutes:
                _, name, change = changes.pop(0)
                change()
                print(f"{at:6.0f} s  {name}", flush=True)
            time.sleep(min(10, max(0.1, end - time.perf_counter())) if not changes else 1)
    finally:
        load.stop()
    _report(load, memory)


def _changes(config: Path, registry: Registry, process: int) -> list[tuple[float, str, object]]:
    from changes import broken_model, kill_replica, new_config, new_version

    name = registry.names()[0]
    return [
        (0.2, "a new version is promoted", lambda: new_version(registry, name)),
        (0.4, "a replica is killed", lambda: kill_replica(process)),
        (0.6, "a broken model is promoted", lambda: broken_model(registry, name)),
        (0.8, "the config is changed", lambda: new_config(config)),
    ]


def _megabytes(process: int) -> float:
    """Of the replicas and proxies: memory that is theirs alone."""
    total = 0
    for child in psutil.Process(process).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if any(word in " ".join(child.cmdline()) for word in ("ServeReplica", "ProxyActor", "haproxy")):
                total += child.memory_full_info().uss
    return total / 1e6


def _report(load: Load, memory: list[tuple[float, float]]) -> None:
    outcomes = load.outcomes
    ended = sum(outcomes.counts.values())
    print(f"\nsent {load.sent}, ended {ended}, lost {load.sent - ended}; senders late by over 50 ms: {load.late_senders}")
    for kind, count in outcomes.counts.most_common():
        print(f"  {kind:24} {count:8} {count / ended:7.2%}")
    if outcomes.seconds:
        print(
            "answers, ms: " + ", ".join(f"p{100 * q:g} {1e3 * np.quantile(outcomes.seconds, q):.0f}" for q in (0.5, 0.99, 1.0)),
            end="",
        )
        print(
            "; in the server: "
            + ", ".join(f"p{100 * q:g} {1e3 * np.quantile(outcomes.server_seconds, q):.0f}" for q in (0.5, 0.99, 1.0))
        )
    length = memory[-1][0]
    early = [mb for at, mb in memory if 60 <= at < 120] or [memory[0][1]]
    last = [mb for at, mb in memory if at >= length - 60]
    first, then = statistics.median(early), statistics.median(last)
    print(f"memory: {first:.0f} MB in the second minute, {then:.0f} MB in the last: {then / first - 1:+.1%}")
    for at, kind in outcomes.bad[:20]:
        print(f"  at {at:.1f} s: {kind}")


if __name__ == "__main__":
    main()
