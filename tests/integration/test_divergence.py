"""Poisoned samples and a NaN gradient in runs on two workers: found, left out, replayed; nothing else is changed by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from carried import carried

from longhaul.data.order import SampleOrder
from longhaul.recipe import Recipe, load
from longhaul.resilience.checkpoint import load_weights
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.recovery.quarantine import quarantined
from longhaul.workloads import build

# The same on two ranks without Ray: test_suspects.py; in one process: tests/unit/training/test_survival.py.
pytestmark = [pytest.mark.slow, pytest.mark.exhaustive, pytest.mark.usefixtures("ray_cluster")]

DIGITS = Path(__file__).parents[2] / "jobs" / "recipes" / "classification" / "digits.yaml"
STEPS, BATCH = 20, 64
OPTIONS = ["training.epochs=null", f"training.steps={STEPS}", "checkpoints.every=5 steps", "tracking.log_every=1 step"]
PLACES = (64 * 2 + 11, 64 * 2 + 40, 64 * 11 + 3)  # two in step 3, one of each rank; one in step 12


def _recipe(engine: str, *more: str) -> Recipe:
    return load(DIGITS, [*OPTIONS, f"training.engine={engine}", "model.drop_rate=0.1", *more])


def _order(recipe: Recipe, ids: list[str]) -> tuple[SampleOrder, list[str]]:
    train = build(recipe).splits.train
    out = frozenset(train.ids.index(name) for name in ids)
    return SampleOrder(len(train), train.fingerprint, recipe.seed, excluded=out), list(train.ids)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunDirectory]:
    """`train(name, recipe, poisoned, nan_at)`: the run, whose notes lie beside it."""
    storage, poison = tmp_path_factory.mktemp("runs"), carried(Path(__file__).with_name("poison.py"))

    @cache
    def go(name: str, recipe: Recipe, poisoned: tuple[str, ...] = (), nan_at: int = 0) -> RunDirectory:
        from longhaul.training.on_ray.launch import fit
        from longhaul.training.on_ray.ray_worker import train_worker

        (storage / f"{name}-notes").mkdir()
        run = RunDirectory.create(str(storage), name, recipe)
        dress = partial(poison.dress, str(storage / f"{name}-notes"), poisoned, nan_at)
        fit(recipe, run, partial(train_worker, dress=dress))
        return run

    return go


def _weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    return load_weights(run, "latest").state


def _differences(run: RunDirectory, other: RunDirectory) -> list[str]:
    mine, theirs = _weights(run), _weights(other)
    assert mine.keys() == theirs.keys()
    return [name for name in mine if not torch.equal(mine[name], theirs[name])]


def _stream(run: RunDirectory) -> list[int]:
    """The samples that made the weights what they are, by position: what a rollback took back is not among them."""
    seen: dict[int, int] = {}
    for file in Path(f"{run.uri}-notes").glob("*.jsonl"):
        line: dict[int, int] = {}
        for note in map(json.loads, file.read_text().splitlines()):
            line = {at: index for at, index in line.items() if at < min(note["positions"])}
            line |= dict(zip(note["positions"], note["indices"], strict=True))
        assert not seen.keys() & line.keys()
        seen |= line
    return [seen[at] for at in sorted(seen)]


@pytest.mark.parametrize("engine", ["torch", "zero3"])
def test_poisoned_samples_are_found_and_left_out_exactly_those(train: Callable[..., RunDirectory], engine: str) -> None:
    """Weights and losses are bit by bit those of a run that never had them; so is the order of all other samples."""
    order, ids = _order(_recipe(engine), [])
    poisoned = tuple(ids[int(order.take(0, BATCH * STEPS).indices[place])] for place in PLACES)
    run = train(f"poisoned-{engine}", _recipe(engine), poisoned)
    clean = train(f"clean-{engine}", _recipe(engine, f"data.excluded=[{', '.join(poisoned)}]"))
    assert run.summary().status == "finished"
    assert sorted(one.id for one in quarantined(run).samples) == sorted(poisoned)
    assert {one.reason for one in quarantined(run).samples} == {"its loss is nan"}
    assert [event["kind"] for event in run.events().to_pylist()].count("rollback") == 2
    assert _differences(run, clean) == []
    expected = _order(_recipe(engine), list(poisoned))[0].take(0, BATCH * STEPS).indices.tolist()
    assert _stream(run) == _stream(clean) == expected


@pytest.mark.parametrize("engine", ["torch"])
def test_a_nan_gradient_that_comes_once_costs_a_rollback_and_no_sample(train: Callable[..., RunDirectory], engine: str) -> None:
    """On one rank, in step 8: the run goes back to step 5, and ends bit by bit where the undisturbed one does."""
    straight, run = train(f"straight-{engine}", _recipe(engine)), train(f"nan-{engine}", _recipe(engine), (), 8)
    events = {event["kind"]: event for event in run.events().to_pylist()}
    assert events["rollback"]["step"] == 5
    assert "quarantine" not in events
    assert run.summary().status == "finished"
    assert _differences(run, straight) == []
    expected = _order(_recipe(engine), [])[0].take(0, BATCH * STEPS).indices.tolist()
    assert _stream(run) == _stream(straight) == expected


def test_without_the_exclusion_the_weights_are_others(train: Callable[..., RunDirectory]) -> None:
    """The negative control of the comparisons."""
    order, ids = _order(_recipe("torch"), [])
    poisoned = [ids[int(order.take(0, BATCH * STEPS).indices[place])] for place in PLACES]
    clean = train("clean-torch", _recipe("torch", f"data.excluded=[{', '.join(poisoned)}]"))
    assert _differences(train("straight-torch", _recipe("torch")), clean) != []
