"""The nodes of a drill: a local Ray cluster of several raylets, each of which can be drained, ended, killed and replaced.

A wrapper around `ray.cluster_utils.Cluster`: a head without CPUs, where the driver is, and a raylet of one CPU for each
worker, and one to spare, so that a group that has lost a node can start again at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import psutil

_GONE_S = 10.0


class Nodes:
    """Use `nodes(...)`; only in the main thread of a process without another Ray connection."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster

    @property
    def address(self) -> str:
        """Of the GCS."""
        return str(self._cluster.address)

    def add(self) -> str:
        """Add a node; returns its id."""
        with _own_signals():
            return str(self._cluster.add_node(num_cpus=1, include_dashboard=False).node_id)

    def has(self, node: str) -> bool:
        """Whether this node is there."""
        return any(other.node_id == node for other in self._cluster.worker_nodes)

    def drain(self, node: str, notice_s: float) -> float:
        """Tell the cluster that a node is about to be taken away, as a watcher of spot notices does; returns the moment.

        Wraps `ray._raylet.GcsClient.drain_node`, as the hidden command `ray drain-node` does.
        """
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
        from ray.core.generated import autoscaler_pb2

        deadline_s = time.time() + notice_s
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]
        accepted, why = GcsClient(address=self.address).drain_node(node, reason, "drill", int(deadline_s * 1000))
        if not accepted:
            raise RuntimeError(f"node {node} is not drained: {why}")
        return deadline_s

    def end(self, node: str) -> None:
        """SIGTERM the raylet, without any notice; what is left after some seconds is killed."""
        found = self._find(node)
        raylet = _raylet(found)
        family = [raylet, *raylet.children(recursive=True)]
        raylet.terminate()
        psutil.wait_procs(family, timeout=_GONE_S)
        self._remove(found, family)

    def kill(self, node: str) -> None:
        """SIGKILL the raylet and every process of the node."""
        found = self._find(node)
        raylet = _raylet(found)
        family = [raylet, *raylet.children(recursive=True)]
        self._remove(found, family)

    def _remove(self, found: Any, family: list[psutil.Process]) -> None:
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._cluster.remove_node(found, allow_graceful=False)

    def _find(self, node: str) -> Any:
        return next(other for other in self._cluster.worker_nodes if other.node_id == node)


@contextlib.contextmanager
def nodes(workers: int) -> Iterator[Nodes]:
    """A cluster for so many workers while the block runs; afterwards none of its processes is left.

    Ray's own files go to `$RAY_TMPDIR/ray`, which must be short: paths of sockets are limited to 107 bytes. A default there
    would also replace the address of another cluster on this machine.
    """
    from ray.cluster_utils import Cluster

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
    cluster = None
    try:
        with _own_signals():
            cluster = Cluster(initialize_head=True, head_node_args=head)
        found = Nodes(cluster)
        for _ in range(workers + 1):
            found.add()
        yield found
    finally:
        family = psutil.Process().children(recursive=True)
        if cluster is not None:
            with contextlib.suppress(AssertionError):  # "zombie processes": they are killed below
                cluster.shutdown()
        kill_family(family)


def kill_family(family: list[psutil.Process]) -> None:
    """SIGKILL what is still there of these processes, and wait for their ends."""
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=_GONE_S)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM over for each node that it starts; it is the drill that ends, and its nodes with it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raylet(node: Any) -> psutil.Process:
    from ray._private.ray_constants import PROCESS_TYPE_RAYLET

    return psutil.Process(node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid)


def kill_process(pid: int) -> bool:
    """SIGKILL; False where it was gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False
