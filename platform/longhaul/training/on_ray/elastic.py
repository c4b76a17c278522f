"""Elastic workers: how many a run takes of those that the cluster has, and a checkpoint before they change.

Ray Train grows and shrinks a group by ending it and starting another, without a word to the workers. So before it resizes a
group that runs, this policy asks the run for a checkpoint (`resilience.requests`); the loop saves, answers, and holds still
for the resize. A node that is lost asks nobody: then the group restarts from the newest checkpoint there is.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import ray
import ray.exceptions
from ray._private.state import state as cluster_state
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
    ScalingPolicy,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2.api.config import ScalingConfig  # what `ray.train.ScalingConfig` is, with its types

from longhaul.recipe import Recipe
from longhaul.recipe.schema import ScalingSection
from longhaul.resilience.requests import Request, answered, ask, asked
from longhaul.resilience.run_directory import RunDirectory

log = logging.getLogger(__name__)

RESIZE_CHECK_S = 60.0
"""How often a group that runs is held against what the cluster has."""
START_TIMEOUT_S = 20.0
"""How long a new elastic group may wait for its workers' places before the cluster is looked at again."""
_PATIENCE_S = 120.0
_LOOK_S = 1.0
_CONNECT_S = 1.0


def scaling_config(section: ScalingSection, gpu: bool) -> ScalingConfig:
    """`ray.train.ScalingConfig` for a recipe's section, with one GPU a worker or none."""
    return ScalingConfig(
        num_workers=section.workers,
        use_gpu=gpu,
        resources_per_worker={"CPU": section.cpus_per_worker, **({"GPU": 1.0} if gpu else {})},
        elastic_resize_monitor_interval_s=RESIZE_CHECK_S,
    )


def scaling_policy(recipe: Recipe, run: RunDirectory, config: ScalingConfig) -> ScalingPolicy:
    """The policy for Ray Train's controller: what `ray.train` itself would take, or ours where the recipe is elastic."""
    if not recipe.scaling.elastic:
        return FixedScalingPolicy(config)
    return DivisorScalingPolicy(config, recipe.training.global_batch, run.uri)


class DivisorScalingPolicy(ElasticScalingPolicy):
    """Extends `ray.train.v2._internal.execution.scaling_policy.ElasticScalingPolicy`, in Ray Train's controller.

    It takes only numbers of workers that can share the global batch evenly, counts only nodes that are really there, and
    asks for a checkpoint before it resizes a group that runs. Nothing here waits: the controller watches the workers meanwhile.

    Args:
        config: with a range of workers.
        global_batch: of the recipe.
        run_uri: of the run directory.
    """

    def __init__(self, config: ScalingConfig, global_batch: int, run_uri: str) -> None:
        super().__init__(config)
        self._sizes = world_sizes(global_batch, config.max_workers)
        self._run_uri = run_uri
        self._saving: SaveFirst | None = None
        self._runs = False

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """How many to start with."""
        self._stop_waiting()
        self._runs = False
        return super().make_decision_for_non_running_worker_group()

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """Whether to resize: not before a checkpoint was asked for, and has been made or did not come in time."""
        self._runs = True
        if self._saving is None:
            decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
            if isinstance(decision, ResizeDecision):
                self._saving = SaveFirst(self._run_uri, _PATIENCE_S)
            return NoopDecision()
        self._maybe_send_resource_request()  # type: ignore[no-untyped-call]
        outcome = self._saving.outcome
        if outcome is None:
            return NoopDecision()
        self._saving = None
        now = worker_group_state.num_workers
        wanted = self._count_possible_workers(self._get_reserved_resources() or {})
        if outcome == "ending" or wanted == now or wanted < self.scaling_config.min_workers:
            return NoopDecision()
        log.warning("the group is resized from %d to %d workers, %s", now, wanted, _SAID[outcome])
        return self._get_resize_decision(wanted)

    async def before_controller_shutdown(self) -> None:
        """Ray's hook."""
        self._stop_waiting()
        await super().before_controller_shutdown()  # type: ignore[no-untyped-call]

    def _stop_waiting(self) -> None:
        if self._saving is not None:
            self._saving.withdraw()
            self._saving = None

    def _get_num_workers_for_resource_request(self) -> int:
        return self._sizes[-1]

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        # A group that runs on a node about to be taken away goes on to the deadline: Ray Train ends it then.
        there = usable_nodes(reserved_resources, draining=self._runs)
        possible = super()._count_possible_workers({node: amount for node, amount in reserved_resources.items() if node in there})
        return max((size for size in self._sizes if size <= possible), default=0)

    def _get_reserved_resources(self) -> dict[str, dict[str, float]] | None:
        """As the base class, but of the cluster as it is now and not as it was up to 20 s ago."""
        now = time.monotonic()
        if now - self._latest_reserved_resources_query_time >= self.GET_RESERVED_RESOURCES_INTERVAL_S:
            self._latest_reserved_resources_query_time = now
            try:
                answer = self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
                self._latest_reserved_resources = ray.get(answer, timeout=_CONNECT_S * 5)
            except ray.exceptions.RayError:
                log.warning("the cluster's resources cannot be had now", exc_info=True)
                self._latest_reserved_resources = None
        return self._latest_reserved_resources


Outcome = Literal["saved", "late", "ending"]
_SAID = {"saved": "after a checkpoint", "late": f"without the checkpoint that was asked for {_PATIENCE_S:.0f} s ago"}


class SaveFirst:
    """Asks a run for a checkpoint and waits for the answer, in a thread of its own.

    Args:
        run_uri: of the run directory.
        patience_s: how long to wait.

    Attributes:
        outcome: None while waiting; `saved`: it was answered; `late`: it was not; `ending`: somebody has asked the run to end.
    """

    def __init__(self, run_uri: str, patience_s: float) -> None:
        self.outcome: Outcome | None = None
        self._withdrawn = threading.Event()
        self._end_s = time.monotonic() + patience_s
        self._thread = threading.Thread(target=self._wait, args=(run_uri,), name="longhaul-save-first", daemon=True)
        self._thread.start()

    def withdraw(self) -> None:
        """Ask no more: the group has ended anyway, and the next must not hold still for a resize that does not come."""
        self._withdrawn.set()

    def join(self) -> None:
        """Wait for the outcome."""
        self._thread.join()

    def _wait(self, run_uri: str) -> None:
        request: Request | None = None
        outcome: Outcome = "late"
        while time.monotonic() < self._end_s:
            try:
                run = RunDirectory.open(run_uri)
                request = request or ask(run, "save")
                standing = asked(run)
                if standing is None or standing.kind != "save":
                    outcome = "saved" if standing is None else "ending"
                    break
            except OSError as error:  # the storage has its moments; a checkpoint is asked for once it is back
                log.warning("a checkpoint before the resize cannot be asked for now: %s", error)
            if self._withdrawn.wait(_LOOK_S):
                break
        if outcome == "late" and request is not None:
            try:
                answered(RunDirectory.open(run_uri), request)
            except OSError as error:
                log.warning("the request for a checkpoint stays: %s", error)
        self.outcome = outcome


def world_sizes(global_batch: int, most: int) -> list[int]:
    """The numbers of workers up to `most` that can share a global batch evenly, ascending."""
    return [size for size in range(1, most + 1) if global_batch % size == 0]


def usable_nodes(candidates: Iterable[str], *, draining: bool) -> set[str]:
    """Those nodes (by hexadecimal id) that live and answer; with `draining`, also those about to be taken away.

    The cluster takes up to half a minute to declare a lost node dead. A group started on one meanwhile would wait for nothing,
    so each node is called first.
    """
    wanted = set(candidates)
    if not draining:
        wanted -= set(cluster_state.get_draining_nodes())
    alive = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] in wanted]
    if not alive:
        return set()
    with ThreadPoolExecutor(max_workers=len(alive)) as pool:
        return {node["NodeID"] for node, answers in zip(alive, pool.map(_answers, alive), strict=True) if answers}


def _answers(node: dict[str, Any]) -> bool:
    try:
        with socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=_CONNECT_S):
            return True
    except OSError:
        return False
