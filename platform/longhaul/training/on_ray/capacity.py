"""What the Ray cluster has, and what its autoscaler may make of it."""

from __future__ import annotations

import ray


def obtainable() -> dict[str, float]:
    """The resources, such as `{"CPU": 8.0, "GPU": 1.0}`, that may be asked for: those that are there, or may come to be.

    A cluster with an autoscaler starts with a head that has nothing to train on; what its nodes may come to stands in its file.
    """
    from ray._private.state import state

    planned = state.get_max_resources_from_cluster_config() or {}
    return {kind: max(amount, planned.get(kind, 0)) for kind, amount in {**planned, **ray.cluster_resources()}.items()}
