"""Servers for the benchmarks of this folder: started on loopback, waited for, ended; and requests that are timed."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def free_port() -> int:
    """A free port above 20000: below are those that Ray gives its workers."""
    while True:
        port = 20000 + secrets.randbelow(8000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


@contextlib.contextmanager
def server(command: Sequence[str], port: int, environment: dict[str, str] | None = None) -> Iterator[int]:
    """A server process with all that it starts, until the block ends; yields its process id once /healthz answers 200."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=os.environ | (environment or {})
        )
        try:
            deadline = time.monotonic() + 180
            while not _well(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{command} did not answer:\n{log.read().decode(errors='replace')[-3000:]}")
                time.sleep(0.3)
            yield process.pid
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # workers that outlive the server


def longhaul(registry: str, port: int, config: Path | None = None) -> list[str]:
    """The command of a server of ours on Ray."""
    command = [str(BIN / "longhaul"), "serve", "--registry", registry, "--port", str(port), "--address", "local"]
    return [*command, "--config", str(config)] if config else command


@dataclass
class Timed:
    """What came of requests: seconds of those answered 200, by order of their end, and how many had another status."""

    seconds: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    def quantile(self, q: float) -> float:
        """Of the seconds."""
        return float(np.quantile(self.seconds, q)) if self.seconds else float("nan")


def ask(port: int, path: str, body: bytes, *, requests: int, clients: int) -> Timed:
    """`requests` POSTs of `body` over `clients` connections that are kept open."""
    result, lock, left = Timed(), threading.Lock(), iter(range(requests))

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with lock:
                if next(left, None) is None:
                    break
            began = time.perf_counter()
            connection.request("POST", path, body, {"Content-Type": "application/octet-stream"})
            answer = connection.getresponse()
            answer.read()
            took = time.perf_counter() - began
            with lock:
                result.statuses[answer.status] = result.statuses.get(answer.status, 0) + 1
                if answer.status == http.client.OK:
                    result.seconds.append(took)
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return result


def _well(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()
