"""Finding the Ray cluster at hand, or starting one on this machine."""

from __future__ import annotations

import json
import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longhaul.errors import UserError

_PROBE_TIMEOUT_S = 5.0
# The client's half of an HTTP/2 handshake with an empty SETTINGS frame; a gRPC server answers with a SETTINGS frame.
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS_FRAME = 4
TOKEN_FIX = "Set RAY_AUTH_MODE=token and put the cluster's own token in ~/.ray/auth_token or RAY_AUTH_TOKEN"


@dataclass(frozen=True)
class ClusterInfo:
    """The cluster that this process is connected to.

    Attributes:
        address: of the GCS, as `host:port`.
        started: this process started it, and it ends with this process.
        in_job: this process is the driver of a Ray job.
        nodes: how many are alive.
        cpus: CPU cores of all nodes.
        gpus: GPUs of all nodes that are up.
        gpus_at_most: GPUs that there may be once the autoscaler has added all the nodes that it may; `gpus` without one.
        dashboard_url: `http://host:port`; None where there is no dashboard.
        shipped: the package that this process runs was sent to all nodes.
    """

    address: str
    started: bool
    in_job: bool
    nodes: int
    cpus: float
    gpus: int
    gpus_at_most: int
    dashboard_url: str | None
    shipped: bool

    def __str__(self) -> str:
        how = "started a local Ray cluster" if self.started else f"attached to the Ray cluster at {self.address}"
        size = f"{self.nodes} node{'s' * (self.nodes != 1)}, {self.cpus:g} CPUs, {self.gpus} GPUs"
        grows = f", up to {self.gpus_at_most} GPUs" if self.gpus_at_most > self.gpus else ""
        return f"{how}: {size}{grows}" + (f", dashboard {self.dashboard_url}" if self.dashboard_url else "")


def connect(address: str | None = None, num_cpus: int | None = None) -> ClusterInfo:
    """Attach to a Ray cluster, or start a local one where there is none: a wrapper around `ray.init`.

    The cluster is, in this order: the one that this process is connected to already; `address`; the job's own, inside a
    Ray job (`RAY_ADDRESS` is set there); `RAY_ADDRESS`; one that runs on this machine; a new local one. A cluster that this
    process did not start gets the running package by `runtime_env["py_modules"]`, so that its workers run the same code,
    installed there or not; in a job that brought py_modules of its own (`longhaul submit` does), those stay.

    Args:
        address: `host:port` of the GCS; `auto` for one on this machine, or an error; `local` for a new one.
        num_cpus: size of a cluster that is started here; left out, the machine's. A cluster that runs keeps its own.

    Raises:
        UserError: nothing answers at the address, it is not a Ray cluster's, or it asks for another token.
    """
    import ray

    if ray.is_initialized():
        return _info(started=False, shipped=False)
    given = address or os.environ.get("RAY_ADDRESS") or None
    gcs = find_gcs(given)
    if gcs is None:
        _init_local(num_cpus)
        return _info(started=True, shipped=False)
    _check_gcs(gcs, given or gcs)
    runtime_env = _runtime_env(gcs)
    _attach(gcs, runtime_env)
    return _info(started=False, shipped="py_modules" in runtime_env)


def inside_job() -> bool:
    """Whether this process is the driver of a Ray job; Ray's job manager sets `RAY_JOB_CONFIG_JSON_ENV_VAR`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def default_storage() -> str:
    """Where runs lie when nobody says: `$LONGHAUL_STORAGE`; else `runs` here, or `~/longhaul/runs` inside a Ray job.

    A job's working directory is a copy that Ray deletes; what is written there is lost.
    """
    if configured := os.environ.get("LONGHAUL_STORAGE"):
        return configured
    return str(Path.home() / "longhaul" / "runs") if inside_job() else "runs"


def ensure_token() -> None:
    """Where tokens are asked for and this machine has none, make one, as `ray get-auth-token --generate` does.

    Ray does so for a cluster that it starts, and fails on attaching; an open cluster does not mind a token.
    """
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled

    ensure_token_if_auth_enabled(create_token_if_missing=True)


def check_reachable(host: str, port: int, shown: str, fix: str) -> None:
    """Open a TCP connection and close it.

    Args:
        host: name or IP.
        port: TCP port.
        shown: the address as the user gave it.
        fix: what to do where nothing answers.

    Raises:
        UserError: nothing answers within five seconds.
    """
    try:
        socket.create_connection((host, port), timeout=_PROBE_TIMEOUT_S).close()
    except OSError as error:
        raise UserError(f"Ray cluster {shown}: nothing answers there ({_reason(error)})", fix) from None


def find_gcs(given: str | None) -> str | None:
    """`host:port` of the GCS to attach to; None to start a cluster.

    Args:
        given: `host:port`, `auto` (one on this machine), `local` (None), or None (one on this machine, if any).

    Raises:
        UserError: `given` is none of these, or `auto` and there is none.
    """
    if given == "local":
        return None
    if given is None or given == "auto":
        found = _running_here()
        if found is None and given == "auto":
            raise UserError("Ray cluster auto: none runs on this machine", "Start one: ray start --head; or leave --address out")
        return found
    if given.startswith(("http://", "https://")):
        raise UserError(
            f"Ray cluster {given}: this is a dashboard's address, training attaches to the GCS",
            f"Give host:6379, or submit a job there: longhaul submit RECIPE --address {given}",
        )
    if "://" in given:
        raise UserError(f"Ray cluster {given}: Ray Client cannot carry training", "Run `longhaul submit RECIPE` instead")
    host, colon, port = given.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise UserError(f"Ray cluster {given!r}: not of the form host:port", "Give for example --address 10.0.0.5:6379")
    return given


def _running_here() -> str | None:
    """A cluster on this machine, by Ray's own search (`ray._private.services.canonicalize_bootstrap_address`)."""
    from ray._private import services

    try:
        found: str | None = services.canonicalize_bootstrap_address("auto")
        if found is not None:
            _check_gcs(found, found)  # the file that `ray start` leaves may name a cluster that died
    except (ConnectionError, UserError):
        return None
    return found


def _check_gcs(gcs: str, shown: str) -> None:
    """Refuse within seconds what `ray.init` waits two minutes for, and then ends the process over.

    Raises:
        UserError: nothing answers at `gcs`, or not the way a GCS does.
    """
    host, _, port = gcs.rpartition(":")
    fix = "Start it with `ray start --head`, correct --address or RAY_ADDRESS, or leave both out for a local cluster"
    check_reachable(host, int(port), shown, fix)
    if os.environ.get("RAY_USE_TLS", "0") in {"0", "false", ""} and not speaks_grpc(host, int(port)):
        raise UserError(
            f"Ray cluster {shown}: something answers there, and it is not a Ray GCS",
            "Give the port that `ray start --head` printed (6379 unless chosen), not the dashboard's",
        )


def speaks_grpc(host: str, port: int) -> bool:
    """Whether a server answers an HTTP/2 handshake, as a GCS does and a dashboard does not."""
    try:
        with socket.create_connection((host, port), timeout=_PROBE_TIMEOUT_S) as probe:
            probe.sendall(_HTTP2_PREFACE)
            answer = probe.recv(9)
    except OSError:
        return False
    return len(answer) > 3 and answer[3] == _SETTINGS_FRAME


def _init_local(num_cpus: int | None) -> None:
    import ray

    # Ray warns at four processes a core; a run's driver, controller and helpers need no core, and folds have several of each.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(4 * (num_cpus or os.cpu_count() or 1)))
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=True,  # without it Ray Train's clean-up thread warns every second
        dashboard_host="127.0.0.1",
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _attach(gcs: str, runtime_env: dict[str, Any]) -> None:
    import ray
    from ray.exceptions import AuthenticationError

    try:
        ensure_token()
        ray.init(
            address=gcs,
            runtime_env=runtime_env,
            log_to_driver=inside_job(),  # there the job's log is all that anyone sees
            logging_level=logging.ERROR,
        )
    except AuthenticationError:
        raise UserError(f"Ray cluster {gcs}: refuses this machine's token", TOKEN_FIX) from None
    except ConnectionError:  # it answered the probe, so it is most likely the token
        raise UserError(f"Ray cluster {gcs}: answers, and does not let this process in", f"{TOKEN_FIX}, or restart it") from None
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        versions = " ".join(str(error).split())
        raise UserError(f"Ray cluster {gcs}: {versions}", "Use the same Ray and Python here and there") from None


def _runtime_env(gcs: str) -> dict[str, Any]:
    """What processes of this run get on every node: the running package, and the cluster's address.

    Ray merges it into a job's own runtime_env by field (by name within env_vars), and refuses what both give: so whatever
    the job has brought is left out. The address is for Ray Train's clean-up thread, which asks the State API of any cluster
    on its machine and dies where there are two.
    """
    import longhaul

    job: dict[str, Any] = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    env: dict[str, Any] = {} if "RAY_ADDRESS" in job.get("env_vars", {}) else {"env_vars": {"RAY_ADDRESS": gcs}}
    if "py_modules" not in job:
        env["py_modules"] = [str(Path(longhaul.__file__).parent)]
        if "excludes" not in job:
            env["excludes"] = ["__pycache__/"]
    return env


def _info(*, started: bool, shipped: bool) -> ClusterInfo:
    import ray
    from ray._private.state import state
    from ray._private.worker import get_dashboard_url

    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    planned = state.get_max_resources_from_cluster_config() or {}
    url = get_dashboard_url()
    return ClusterInfo(
        address=ray.get_runtime_context().gcs_address,
        started=started,
        in_job=inside_job(),
        nodes=sum(node["Alive"] for node in ray.nodes()),
        cpus=resources.get("CPU", 0.0),
        gpus=gpus,
        gpus_at_most=max(gpus, int(planned.get("GPU", 0))),
        dashboard_url=f"http://{url}" if url else None,
        shipped=shipped,
    )


def _reason(error: OSError) -> str:
    return (error.strerror or str(error) or "no answer").lower()
