"""The scaling policy: sizes that share the global batch, and a checkpoint before a resize; with Ray in the integration tests."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy, NoopDecision, ResizeDecision

from longhaul.recipe import Recipe, parse
from longhaul.resilience.requests import answered, ask, asked
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.on_ray import elastic
from longhaul.training.on_ray.elastic import DivisorScalingPolicy, SaveFirst, scaling_config, scaling_policy, world_sizes

RECIPE = """
name: elastic
data: {kind: digits, resolution: 16, loader_workers: 0}
model: {name: test_resnet}
training: {steps: 6, global_batch: 12, micro_batch: 4}
scaling: {workers: [1, 5]}
"""


@pytest.fixture
def recipe() -> Recipe:
    return parse(RECIPE)


@pytest.fixture
def run(recipe: Recipe, tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(str(tmp_path), "elastic", recipe)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, float]]:
    """What the cluster has reserved, by node; a test changes it. All of them are there."""
    nodes = {"a": {"CPU": 2.0}, "b": {"CPU": 1.0}}
    monkeypatch.setattr(elastic, "usable_nodes", lambda candidates, *, draining: set(candidates))
    monkeypatch.setattr(elastic, "_LOOK_S", 0.02)
    return nodes


@pytest.fixture
def policy(
    recipe: Recipe, run: RunDirectory, nodes: dict[str, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[DivisorScalingPolicy]:
    """The policy in its controller, without the coordinator actor: what that says is `nodes`."""
    monkeypatch.setattr(elastic, "RESIZE_CHECK_S", 0.0)
    made = scaling_policy(recipe, run, scaling_config(recipe.scaling, gpu=False))
    policy = pickle.loads(pickle.dumps(made))  # as it travels to the controller
    assert isinstance(policy, DivisorScalingPolicy)
    monkeypatch.setattr(policy, "_maybe_send_resource_request", lambda: None)
    monkeypatch.setattr(policy, "_get_reserved_resources", lambda: nodes)
    yield policy
    policy._stop_waiting()


def group(workers: int) -> Any:
    return SimpleNamespace(num_workers=workers, start_time=float("-inf"))


def decide(policy: DivisorScalingPolicy, workers: int) -> Any:
    return policy.make_decision_for_running_worker_group(group(workers), None)  # type: ignore[arg-type]


def decided(policy: DivisorScalingPolicy, workers: int) -> Any:
    """The decision once the policy has the answer to what it asked."""
    saving = policy._saving
    assert saving is not None
    saving.join()
    return decide(policy, workers)


def eventually(run: RunDirectory) -> Any:
    for _ in range(500):
        if (request := asked(run)) is not None:
            return request
        time.sleep(0.01)
    raise AssertionError("nothing was asked")


@pytest.mark.parametrize(
    ("batch", "most", "sizes"), [(12, 5, [1, 2, 3, 4]), (32, 6, [1, 2, 4]), (7, 6, [1]), (6, 6, [1, 2, 3, 6])]
)
def test_only_sizes_that_share_the_global_batch_are_taken(batch: int, most: int, sizes: list[int]) -> None:
    assert world_sizes(batch, most) == sizes


@pytest.mark.parametrize(("cpus", "workers"), [((2, 1), 3), ((3, 2), 4), ((1, 0), 1), ((4, 4), 4)])
def test_a_group_starts_with_the_largest_size_that_fits(
    policy: DivisorScalingPolicy, nodes: dict[str, dict[str, float]], cpus: tuple[int, int], workers: int
) -> None:
    """Five fit in the second and eight in the last case; five cannot share a batch of 12."""
    nodes.update(a={"CPU": float(cpus[0])}, b={"CPU": float(cpus[1])})
    decision = policy.make_decision_for_non_running_worker_group()
    assert isinstance(decision, ResizeDecision)
    assert decision.num_workers == workers
    assert policy._get_num_workers_for_resource_request() == 4


def test_too_few_are_waited_for(policy: DivisorScalingPolicy, nodes: dict[str, dict[str, float]]) -> None:
    nodes.clear()
    assert isinstance(policy.make_decision_for_non_running_worker_group(), NoopDecision)


def test_a_resize_waits_for_the_checkpoint(policy: DivisorScalingPolicy, run: RunDirectory) -> None:
    assert isinstance(decide(policy, 2), NoopDecision)
    request = eventually(run)
    assert request.kind == "save"
    assert isinstance(decide(policy, 2), NoopDecision)  # it was asked for and is not there yet
    answered(run, request)
    decision = decided(policy, 2)
    assert isinstance(decision, ResizeDecision)
    assert decision.num_workers == 3
    assert isinstance(decide(policy, 3), NoopDecision)  # the new group is of the right size: nothing more is asked
    assert policy._saving is None


def test_what_is_gone_by_the_time_of_the_answer_is_not_taken(
    policy: DivisorScalingPolicy, run: RunDirectory, nodes: dict[str, dict[str, float]]
) -> None:
    decide(policy, 2)
    answered(run, eventually(run))
    del nodes["b"]
    assert isinstance(decided(policy, 2), NoopDecision)


def test_without_an_answer_it_goes_ahead_and_says_so(
    policy: DivisorScalingPolicy, run: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(elastic, "_PATIENCE_S", 0.1)
    decide(policy, 2)
    assert isinstance(decided(policy, 2), ResizeDecision)
    assert "without the checkpoint" in caplog.text
    assert asked(run) is None  # the next group is not asked to hold still for nothing


def test_a_run_that_somebody_ends_is_not_resized(policy: DivisorScalingPolicy, run: RunDirectory) -> None:
    paused = ask(run, "pause")
    decide(policy, 2)
    assert isinstance(decided(policy, 2), NoopDecision)
    assert asked(run) == paused


def test_a_group_that_fails_meanwhile_leaves_no_request_behind(policy: DivisorScalingPolicy, run: RunDirectory) -> None:
    decide(policy, 2)
    saving, _ = policy._saving, eventually(run)
    policy.make_decision_for_non_running_worker_group()
    assert saving is not None
    saving._thread.join(30)  # a quarter of its patience
    assert asked(run) is None


def test_a_storage_that_fails_is_asked_again(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic, "_LOOK_S", 0.02)
    calls = []

    def failing(uri: str) -> RunDirectory:
        calls.append(uri)
        if len(calls) < 4:
            raise OSError("503 Slow Down")
        return run

    monkeypatch.setattr(elastic.RunDirectory, "open", failing)
    saving = SaveFirst(run.uri, 30.0)
    answered(run, eventually(run))
    saving.join()
    assert saving.outcome == "saved"


def test_a_fixed_number_of_workers_keeps_rays_own_policy(run: RunDirectory) -> None:
    fixed = parse(RECIPE.replace("[1, 5]", "2"))
    assert isinstance(scaling_policy(fixed, run, scaling_config(fixed.scaling, gpu=False)), FixedScalingPolicy)
