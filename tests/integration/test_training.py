"""Training on a real Ray cluster, two gloo workers: the engines agree, and a killed run ends where the straight one does."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from carried import carried

from longhaul.recipe import Recipe, load
from longhaul.resilience.checkpoint import CheckpointStore, load_weights
from longhaul.resilience.run_directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

DIGITS = Path(__file__).parents[2] / "jobs" / "recipes" / "classification" / "digits.yaml"
STAGES = ["zero1", "zero2", "zero3"]
SAMPLED = ["zero2", *(pytest.param(stage, marks=pytest.mark.exhaustive) for stage in ("zero1", "zero3"))]
TWENTY_STEPS = ["training.epochs=null", "training.steps=20", "tracking.log_every=1 step", "checkpoints.every=5 steps"]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def straight(storage: str) -> Callable[[str], RunDirectory]:
    """The undisturbed run of an engine, trained once for all the tests that compare with it."""

    @cache
    def train(engine: str) -> RunDirectory:
        return _train(storage, f"straight-{engine}", engine)

    return train


def _recipe(engine: str, *more: str) -> Recipe:
    return load(DIGITS, [*TWENTY_STEPS, f"training.engine={engine}", "model.drop_rate=0.1", *more])


def _train(storage: str, name: str, engine: str, *more: str, train_function: Any = None) -> RunDirectory:
    from longhaul.training.on_ray.launch import fit
    from longhaul.training.on_ray.ray_worker import train_worker

    recipe = _recipe(engine, *more)
    run = RunDirectory.create(storage, name, recipe)
    fit(recipe, run, train_function or train_worker)
    return run


def _series(run: RunDirectory, name: str) -> np.ndarray:
    rows = [row for row in run.metrics().to_pylist() if row["name"] == name]
    by_step = {row["step"]: row["value"] for row in sorted(rows, key=lambda row: row["segment"])}
    return np.array([by_step[step] for step in sorted(by_step)])


def _weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    return load_weights(run, "latest").state


@pytest.mark.parametrize(
    "engine", ["zero2", *(pytest.param(stage, marks=pytest.mark.exhaustive) for stage in ("zero1", "zero3"))]
)
def test_the_engines_compute_the_same_losses(straight: Callable[[str], RunDirectory], engine: str) -> None:
    plain, zero = _series(straight("torch"), "train/loss"), _series(straight(engine), "train/loss")
    assert len(plain) == len(zero) == 20
    assert plain[-1] < plain[0]  # it learns: equal constants would agree as well
    np.testing.assert_allclose(zero, plain, rtol=1e-4)


@pytest.mark.parametrize("engine", ["torch", *(pytest.param(stage, marks=pytest.mark.exhaustive) for stage in STAGES)])
def test_a_run_killed_in_mid_epoch_ends_bitwise_where_the_straight_one_does(
    straight: Callable[[str], RunDirectory], storage: str, tmp_path: Path, engine: str
) -> None:
    kill = partial(carried(Path(__file__).with_name("faults.py")).killed_at_call, 13, 1, str(tmp_path / "killed"))
    run = _train(storage, f"killed-{engine}", engine, train_function=kill)
    assert (tmp_path / "killed").exists()
    resumed = [event for event in run.events().to_pylist() if event["kind"] == "resumed"]
    # Step 12 was done, in epoch 1 of 18; the save of step 10 was perhaps still under way.
    assert [event["step"] for event in resumed] in ([5], [10])
    mine, expected = _weights(run), _weights(straight(engine))
    assert mine.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(mine[name], expected[name])] == []
    np.testing.assert_array_equal(_series(run, "train/loss"), _series(straight(engine), "train/loss"))


@pytest.mark.exhaustive
def test_with_the_cursor_ignored_the_comparison_fails(
    straight: Callable[[str], RunDirectory], storage: str, tmp_path: Path
) -> None:
    """The negative control of the test above: the same kill and resume, but the data begin again."""
    kill = partial(carried(Path(__file__).with_name("faults.py")).cursor_ignored, 13, 1, str(tmp_path / "killed"))
    run = _train(storage, "control", "torch", train_function=kill)
    mine, expected = _weights(run), _weights(straight("torch"))
    assert any(not torch.equal(mine[name], expected[name]) for name in expected)


def test_a_finished_run_is_complete(straight: Callable[[str], RunDirectory]) -> None:
    run = straight("torch")
    summary = run.summary()
    assert summary.status == "finished"
    assert summary.step == summary.total_steps == 20
    assert summary.results["test/top1"] > 0.5
    kept = CheckpointStore(run).entries()
    assert [entry.step for entry in kept] == [18, 20]  # the newest two; the best of two validations are the same
    assert summary.best_checkpoint in {entry.name for entry in kept}


def test_a_users_mistake_in_a_worker_ends_the_run_at_once(storage: str, tmp_path: Path) -> None:
    from longhaul.data.digits import write_digits
    from longhaul.errors import UserError

    root = write_digits(tmp_path / "digits")
    broken = sorted((root / "train" / "3").glob("*.png"))[5]
    broken.write_bytes(broken.read_bytes()[:40])
    data = f"data={{kind: imagefolder, root: {root}, resolution: 32, loader_workers: 0}}"
    with pytest.raises(UserError, match=broken.name):
        _train(storage, "broken", "torch", data)
    run = RunDirectory.open(f"{storage}/broken")
    assert run.summary().status == "failed"
    assert broken.name in (run.summary().error or "")
    assert run.summary().segment == 1  # no retry was spent on it


def test_more_workers_than_the_cluster_has_are_refused(storage: str) -> None:
    from longhaul.errors import UserError

    with pytest.raises(UserError, match="4 workers need 4 CPU, the cluster has 2"):
        _train(storage, "large", "torch", "scaling.workers=4")
