"""Elastic runs on a cluster of two nodes: a node is killed and another added, or taken away with a notice; nothing is lost.

Each scenario is a process of its own (`elastic_run.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from longhaul.data.order import SampleOrder
from longhaul.resilience.run_directory import RunDirectory
from longhaul.workloads import build

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("elastic_run.py")
PLATFORM = Path(__file__).parents[2] / "platform"
BATCH, MICRO_BATCH, STEPS = 32, 16, 60
STAGES = ["zero1", *(pytest.param(stage, marks=pytest.mark.exhaustive) for stage in ("zero2", "zero3"))]
Outcome = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The folder with all that a scenario and an engine left; run once for all tests that look at it."""

    @cache
    def run(scenario: str, engine: str) -> Path:
        root = tmp_path_factory.mktemp(f"{scenario}-{engine}")
        environment = os.environ | {"PYTHONPATH": str(PLATFORM)}
        command = [sys.executable, str(SCRIPT), scenario, engine, str(root)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        return root

    return run


def _starts(run: RunDirectory) -> list[tuple[int, int]]:
    """(step, workers) of each start of the group."""
    events = [event for event in run.events().to_pylist() if event["kind"] in ("started", "resumed")]
    return [(event["step"], int(event["message"].split(" on ")[1].split()[0])) for event in events]


def _attempts(root: Path) -> list[dict[int, list[list[int]]]]:
    """For each start of the group: the micro-batches of sample indices that each rank saw."""
    attempts: list[dict[int, list[list[int]]]] = []
    missing = 0
    for file in sorted(root.glob("seen-*.jsonl")):  # by time
        workers, rank = map(int, file.stem.split("-")[2:])
        if not missing:
            attempts.append({})
            missing = workers
        attempts[-1][rank] = [json.loads(line) for line in file.read_text().splitlines()]
        missing -= 1
    return attempts


def _seen(root: Path, run: RunDirectory) -> dict[int, list[list[int]]]:
    """By step: the global batches that the run's starts saw, in their global order."""
    starts, attempts = _starts(run), _attempts(root)
    assert [len(attempt) for attempt in attempts] == [workers for _, workers in starts]
    batches: dict[int, list[list[int]]] = defaultdict(list)
    for attempt, (first, workers) in zip(attempts, starts, strict=True):
        cut = BATCH // workers // MICRO_BATCH
        for number in range(min(len(lines) for lines in attempt.values()) // cut):
            batch = [0] * BATCH
            for rank, lines in attempt.items():
                batch[rank::workers] = [index for line in lines[number * cut : (number + 1) * cut] for index in line]
            batches[first + number].append(batch)
    return batches


def _losses(run: RunDirectory) -> dict[int, float]:
    rows = sorted(run.metrics().to_pylist(), key=lambda row: row["segment"])
    return {row["step"]: row["value"] for row in rows if row["name"] == "train/loss"}


@pytest.mark.parametrize("engine", STAGES)
def test_a_node_killed_and_one_added_in_mid_epoch_change_nothing(outcome: Outcome, engine: str) -> None:
    """Two workers -> one -> two: the same samples in the same order, the same optimizer, the same losses."""
    root = outcome("kill", engine)
    run, straight = RunDirectory.open(f"{root}/kill"), RunDirectory.open(f"{outcome('kill', 'zero1')}/straight")
    assert run.summary().status == straight.summary().status == "finished"
    starts = _starts(run)
    assert [workers for _, workers in starts] == [2, 1, 2]
    (_, _), (lost, _), (grown, _) = starts
    assert lost == 10  # step 12 was done; 10 is the newest checkpoint; an epoch has 36 steps
    assert 14 <= grown < 36

    # The optimizer, tensor by tensor: what each start held against the shards that the one before had written.
    loaded = [json.loads(file.read_text()) for file in sorted(root.glob("loaded-*.json"))]
    assert [load["world_size"] for load in loaded] == [1, 2]
    assert all(load["tensors"] > 200 and load["different"] == load["missing"] == [] for load in loaded)

    # The samples: every step saw the global batch that the order has for it, also where it was computed twice.
    train = build(run.recipe()).splits.train
    order, seen = SampleOrder(len(train), train.fingerprint, run.recipe().seed), _seen(root, run)
    assert sorted(seen) == list(range(STEPS))
    for step, batches in seen.items():
        expected = order.take(step * BATCH, BATCH).indices.tolist()
        assert all(batch == expected for batch in batches), step
    assert [step for step in seen if len(seen[step]) > 1] == [10, 11, 12]  # lost with the node; for the other resize, none

    mine, others = _losses(run), _losses(straight)
    steps = sorted(mine.keys() & others.keys())
    assert set(range(lost + 1, STEPS + 1)) <= set(steps)
    np.testing.assert_allclose([mine[step] for step in steps], [others[step] for step in steps], rtol=1e-3)
    assert others[STEPS] < 0.9 * others[1]  # it learns: equal constants would agree as well


@pytest.mark.exhaustive
def test_a_node_taken_away_with_a_notice_costs_almost_nothing(outcome: Outcome) -> None:
    """A checkpoint at the notice, another close to the deadline; the group goes on with one worker from the later."""
    root = outcome("drain", "zero1")
    run = RunDirectory.open(f"{root}/drain")
    assert run.summary().status == "finished"
    events = run.events().to_pylist()
    noticed = [event for event in events if event["kind"] == "preemption"]
    assert 1 <= len(noticed) <= 2
    starts = _starts(run)
    assert [workers for _, workers in starts] == [2, 1]
    resumed, done = starts[1][0], len(_attempts(root)[0][0])
    assert resumed >= noticed[-1]["step"] >= 12
    assert done < STEPS  # it was the notice that ended the first group
