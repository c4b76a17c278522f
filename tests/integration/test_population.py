"""Population based training on a real Ray cluster: who goes on from whom, with what, and what a kill changes (nothing)."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import population_sweep as tiny
import pyarrow.compute as pc
import pytest
import torch
from ray import tune
from safetensors.torch import load_file, save_file

from longhaul.recipe.sweep import PbtStopping
from longhaul.resilience.checkpoint import CheckpointStore, load_weights
from longhaul.resilience.run_directory import RunDirectory
from longhaul.resilience.sweep_directory import SweepDirectory, SweepState
from longhaul.training.loop import Attempt, Trainer
from longhaul.tuning.population.comparison import Comparison, Members
from longhaul.tuning.population.lineage import Lineage, run_of
from longhaul.tuning.population.member import AT_COMPARISON, CHECKPOINT, ORDER
from longhaul.tuning.tuner import folder, settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def _telling() -> type[Trainer]:
    """A trainer that writes down the weights that it begins with; made in a function, so that Ray sends it whole."""

    @dataclasses.dataclass(frozen=True)
    class Telling(Trainer):
        def _prepare(self, *given: Any) -> Attempt:
            attempt = super()._prepare(*given)
            file = Path(self.run.storage.path(f"began-{attempt.book.segment}.safetensors"))
            save_file({name: value.clone() for name, value in attempt.engine.weights().items()}, file)
            return attempt

    return Telling


@dataclasses.dataclass(frozen=True)
class Trained:
    """A population that was trained without a stop."""

    data: Path
    directory: SweepDirectory
    state: SweepState
    lineage: Lineage


@pytest.fixture(scope="module")
def trained(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGHAUL_CACHE", str(tmp_path_factory.mktemp("cache")))
        data = tiny.few_digits(tmp_path_factory.mktemp("few"))
        storage = tmp_path_factory.mktemp("runs")
        state = tiny.train_population(tiny.population_sweep(data), storage, _telling())
        directory = SweepDirectory.open(str(storage), "pop")
        yield Trained(data, directory, state, Lineage.load(directory))


def test_the_worst_go_on_from_the_best_at_every_comparison(trained: Trained) -> None:
    lineage, directory = trained.lineage, trained.directory
    assert [cell.standing for cell in trained.state.cells] == ["finished"] * 4
    assert [cell.steps for cell in trained.state.cells] == [30] * 4
    assert [[epoch for epoch, _ in cell.scores] for cell in trained.state.cells] == [[1, 2, 3, 4, 5, 6]] * 4
    for epoch in (2.0, 4.0):
        scores = {member.number: dict(member.scores)[epoch] for member in lineage.members}
        begun = [(m.number, g) for m in lineage.members for g in m.generations if g.donor is not None and g.since == epoch]
        assert len(begun) == 1  # a quarter of four
        member, generation = begun[0]
        assert generation.donor is not None
        assert scores[member] == min(scores.values())
        assert scores[generation.donor.member] == max(scores.values()) == generation.donor.score
    assert not [entry.name for entry in directory.storage.list() if entry.name.startswith("tune-")]


def test_a_new_generation_begins_with_the_donors_weights_bit_for_bit(trained: Trained) -> None:
    for member in trained.lineage.members:
        for generation in member.generations:
            if generation.donor is None:
                continue
            run = run_of(trained.directory, member.number, generation.number)
            donor = run_of(trained.directory, generation.donor.member, generation.donor.generation)
            goals = {entry.name: entry.goal for entry in CheckpointStore(donor).entries()}
            assert goals[generation.donor.checkpoint] == generation.donor.score  # it still counts among the donor's best
            saved = load_file(CheckpointStore(donor).folder(generation.donor.checkpoint).path("model.safetensors"))
            began = load_file(run.storage.path("began-1.safetensors"))
            assert saved.keys() == began.keys()
            assert all(torch.equal(value, began[name]) for name, value in saved.items())
            begun = next(event for event in run.events().to_pylist() if event["kind"] in ("started", "resumed"))
            assert (begun["kind"], begun["step"]) == ("resumed", round(generation.since * 5))


def test_the_optimizer_follows_the_values_of_the_generation(trained: Trained) -> None:
    for member in trained.lineage.members:
        for generation in member.generations:
            run = run_of(trained.directory, member.number, generation.number)
            rows = run.metrics()
            rates = rows.filter(pc.equal(rows["name"], "train/lr"))["value"].to_pylist()
            lr, decay = (generation.values[f"training.optimizer.{name}"] for name in ("lr", "weight_decay"))
            assert rates
            assert set(rates) == {lr}
            newest = CheckpointStore(run).entries()[-1].name
            state = torch.load(CheckpointStore(run).folder(newest).path("engine/torch.pt"), weights_only=True)
            assert [group["lr"] for group in state["optimizer"]["param_groups"]] == [lr, lr]
            assert [group["weight_decay"] for group in state["optimizer"]["param_groups"]] == [decay, 0.0]


def test_the_best_of_all_generations_can_be_exported(trained: Trained) -> None:
    best = trained.lineage.best
    assert best is not None
    every = [score for cell in trained.state.cells for _, score in cell.scores]
    assert best.score == max(every)
    weights = load_weights(RunDirectory.open(f"{trained.directory.root}/{best.run}"))
    assert weights.checkpoint == best.checkpoint
    assert any(best.run in note for note in trained.state.notes)


def test_a_driver_that_is_killed_and_has_less_room_decides_the_same_when_it_is_started_again(
    trained: Trained, ray_cluster: str, tmp_path: Path
) -> None:
    script = [sys.executable, tiny.__file__, ray_cluster, str(trained.data), str(tmp_path)]
    driver = subprocess.Popen(script, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    directory = SweepDirectory.at(str(tmp_path), "pop")
    try:
        while not (Lineage.load(directory).compared >= 2 and _steps(directory, 15)):  # some are on their way to the second
            assert driver.poll() is None
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.wait()
    _wait_for_the_processes(directory)
    left = {run.name: CheckpointStore(run).entries()[-1].step for run in _runs(directory) if run.has_begun}
    segments = {run.name: run.summary().segment for run in _runs(directory)}

    state = tiny.train_population(tiny.population_sweep(trained.data, "resources.parallel=1"), tmp_path)
    lineage = Lineage.load(directory)
    assert _told(lineage) == _told(trained.lineage)
    assert [cell.scores for cell in state.cells] == [cell.scores for cell in trained.state.cells]
    for run in _runs(directory):
        events = [event for event in run.events().to_pylist() if event["kind"] in ("started", "resumed")]
        again = [event["step"] for event in events if event["segment"] > segments.get(run.name, math.inf)]
        assert not again or again[0] == left.get(run.name, again[0])  # not a step before its newest checkpoint


@pytest.mark.exhaustive
def test_ctrl_c_ends_a_population_in_order_and_the_same_call_goes_on(trained: Trained, tmp_path: Path) -> None:
    directory = SweepDirectory.at(str(tmp_path), "pop")

    def interrupt() -> None:
        while not (Lineage.load(directory).compared >= 2 and _steps(directory, 11)):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    waiting = threading.Thread(target=interrupt, daemon=True)
    waiting.start()
    state = tiny.train_population(tiny.population_sweep(trained.data), tmp_path)
    waiting.join()
    assert any("Ctrl-C" in note for note in state.notes)
    assert any(cell.open for cell in state.cells)
    assert {run.summary().status for run in _runs(directory)} <= {"paused", "finished"}
    tiny.train_population(tiny.population_sweep(trained.data), tmp_path)
    assert _told(Lineage.load(directory)) == _told(trained.lineage)


def _runs(directory: SweepDirectory) -> list[RunDirectory]:
    return RunDirectory.all(f"{directory.storage.uri}/population")


def _steps(directory: SweepDirectory, least: int) -> bool:
    return any(run.summary().step >= least for run in _runs(directory))


def _wait_for_the_processes(directory: SweepDirectory) -> None:
    for run in _runs(directory):
        try:
            pid = json.loads(run.storage.read_bytes("lease.json"))["pid"]
            while True:
                os.kill(pid, 0)
                time.sleep(0.05)
        except (FileNotFoundError, ProcessLookupError):
            continue


def _told(lineage: Lineage) -> str:
    """The lineage without the ids of the attempts."""
    return re.sub(r"(step-\d+)-[0-9a-f]+", r"\1", lineage.model_dump_json())


class Told:
    """Decisions that are written down and nothing else."""

    ending: str | None = None

    def __init__(self) -> None:
        self.rounds: list[tuple[float, dict[int, float]]] = []
        self.branches: list[tuple[int, int]] = []
        self.origins = dict(enumerate(range(4)))
        self.epoch = 0.0

    def branch(self, member: int, donor: int, checkpoint: str, score: float) -> None:
        self.branches.append((member, donor))
        self.origins[member] = donor

    def compared(self, epoch: float, scores: Mapping[int, float]) -> None:
        self.epoch = epoch
        self.rounds.append((epoch, dict(scores)))

    def config(self, member: int) -> dict[str, Any]:
        return {ORDER: {"member": member, "origin": self.origins[member], "due": self.epoch + 1}}


def test_members_that_fail_or_end_leave_nobody_waiting_and_a_nan_is_replaced(tmp_path: Path) -> None:
    def play(config: dict[str, Any]) -> None:
        """Member 1 is NaN at the first comparison, 3 dies on its way to the second, 2 ends before the third; 0 is the best."""
        import tempfile

        order = config[ORDER]
        member, due = order["member"], order["due"]
        if member == 3 and due == 2:
            raise RuntimeError("lost")
        if due == 4 or (member == 2 and due == 3):
            return
        score = math.nan if member == 1 and due == 1 else -float(order["origin"])
        with tempfile.TemporaryDirectory() as scratch:
            told = {"epoch": due, "score": score, AT_COMPARISON: True, CHECKPOINT: f"of {member}"}
            tune.report(told, checkpoint=tune.Checkpoint.from_directory(scratch))

    told = Told()
    stopping = PbtStopping(kind="pbt", every_epochs=1, quantile=0.25)
    with settings():
        tune.Tuner(
            tune.with_resources(play, {"CPU": 1}),
            param_space={ORDER: tune.grid_search([told.config(member)[ORDER] for member in range(4)])},
            tune_config=tune.TuneConfig(
                search_alg=Members(told, 1),
                # One after another: those that fail and end are the last that the others wait for.
                scheduler=Comparison(stopping, "max", told, members=4, parallel=1, seed=0, since=0.0),
                reuse_actors=True,
                trial_dirname_creator=folder,
            ),
            run_config=tune.RunConfig(name="played", storage_path=str(tmp_path), verbose=0),
        ).fit()
    assert [epoch for epoch, _ in told.rounds] == [1.0, 2.0, 3.0]
    assert [sorted(scores) for _, scores in told.rounds] == [[0, 1, 2, 3], [0, 1, 2], [0, 1]]
    assert math.isnan(told.rounds[0][1][1])
    assert told.branches == [(1, 0), (2, 1), (0, 1)]  # by then 1 is as good as 0, whom it was copied from
    assert told.rounds[1][1] == {0: 0.0, 1: 0.0, 2: -2.0}
