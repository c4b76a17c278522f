"""Whether all nodes of a cluster see the storage: a folder on the disk of one of them is no place for what all write."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from longhaul.errors import UserError
from longhaul.storage import Storage

_KINDS = ("CPU", "GPU")
_ANSWER_S = 60.0


def check_shared(storage: Storage) -> None:
    """Write a file and have each node look for it; nothing is done on one node, or where the storage is no folder.

    Raises:
        UserError: a node that may train does not see it.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and any(node["Resources"].get(kind) for kind in _KINDS)]
    if not storage.is_local or len(nodes) < 2:
        return
    name = f"probe-{uuid.uuid4().hex}"
    storage.write_bytes(name, b"")
    try:
        blind = blind_nodes(storage.path(name), nodes)
    finally:
        with contextlib.suppress(OSError):
            storage.delete_file(name)
    if blind:
        problem = f"storage {storage.uri}: {len(blind)} of {len(nodes)} nodes do not see it ({', '.join(blind[:3])})"
        raise UserError(problem, "Give --storage s3://bucket/prefix, or a folder that is mounted at the same place on every node")


def blind_nodes(path: str, nodes: list[dict[str, Any]]) -> list[str]:
    """Addresses of the nodes (`ray.nodes`) that have no file at `path`, or do not say so within a minute."""
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        asked[_sees.options(num_cpus=0, scheduling_strategy=there).remote(path)] = node["NodeManagerAddress"]
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
    return [asked[reference] for reference in answered if not ray.get(reference)] + [asked[one] for one in silent]


@ray.remote
def _sees(path: str) -> bool:
    return Path(path).is_file()
