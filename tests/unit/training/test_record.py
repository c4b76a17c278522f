"""What a run writes about itself: means, throughput without pauses, spikes at their own step."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from longhaul.recipe import parse
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.training.checkpoints.saving import Save
from longhaul.training.engine.engine import StepResult
from longhaul.training.evaluation import Evaluation
from longhaul.training.progress import Progress
from longhaul.training.ranks import Ranks
from longhaul.training.record import record
from longhaul.training.record.record import Recorder, SpikeError

RECIPE = "{name: r, model: {name: test_resnet}, data: {kind: digits}, training: {steps: 9, global_batch: 10, micro_batch: 10}}"


class Clock:
    """Stands for `time`: moves only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1.7e9 + self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(record, "time", clock)
    return clock


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(str(tmp_path), "r", parse(RECIPE))


@pytest.fixture
def recorder(run: RunDirectory, clock: Clock) -> Recorder:
    return Recorder(run, Ranks(0, 1, torch.device("cpu")), Summary(goal="val/top1", goal_direction="max"), 100, None)


def taken(loss: float, norm: float | None = None) -> StepResult:
    return StepResult(torch.tensor(loss), None if norm is None else torch.tensor(norm))


def written(recorder: Recorder, run: RunDirectory, name: str) -> list[tuple[int, float]]:
    recorder.write_summary(Progress())
    table = run.metrics().to_pandas()
    rows = table[table["name"] == name]
    return list(zip(rows["step"].tolist(), rows["value"].tolist(), strict=True))


def test_a_log_point_has_the_mean_loss_since_the_last_one(recorder: Recorder, run: RunDirectory) -> None:
    for loss in (1.0, 2.0, 6.0):
        recorder.step(taken(loss, 0.5))
    recorder.look(Progress(step=3, cursor=30))
    recorder.training(Progress(step=3, cursor=30), 0.1)
    recorder.step(taken(8.0, 0.25))
    recorder.look(Progress(step=4, cursor=40))
    recorder.training(Progress(step=4, cursor=40), 0.05)
    assert written(recorder, run, "train/loss") == [(3, 3.0), (4, 8.0)]
    assert written(recorder, run, "train/lr") == [(3, 0.1), (4, 0.05)]
    assert written(recorder, run, "train/grad_norm") == [(3, 0.5), (4, 0.25)]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_a_spike_at_its_own_step(recorder: Recorder, loss: float) -> None:
    """Also where it is one of several and the others are fine."""
    recorder.step(taken(1.0))
    recorder.step(taken(loss))
    recorder.step(taken(1.0))
    with pytest.raises(SpikeError) as caught:
        recorder.look(Progress(step=17, cursor=170))
    assert (caught.value.spike.step, caught.value.spike.kind) == (16, "nonfinite")


def test_a_gradient_that_is_no_number_is_a_spike_though_the_loss_is_fine(recorder: Recorder) -> None:
    recorder.step(taken(1.0, math.nan))
    with pytest.raises(SpikeError):
        recorder.look(Progress(step=1, cursor=10))


def test_throughput_counts_training_alone(recorder: Recorder, run: RunDirectory, clock: Clock) -> None:
    recorder.step(taken(1.0))
    clock.now += 50  # start-up, before the first log point: not counted
    recorder.look(Progress(step=1, cursor=10))
    recorder.training(Progress(step=1, cursor=10), 0.1)
    clock.now += 4
    with recorder.pause():
        clock.now += 1000
    with recorder.pause():
        clock.now += 500
    clock.now += 1
    recorder.step(taken(1.0))
    recorder.look(Progress(step=6, cursor=60))
    recorder.training(Progress(step=6, cursor=60), 0.1)
    assert written(recorder, run, "train/samples_per_s") == [(6, 10.0)]


def test_a_pause_that_fails_lets_the_error_through(recorder: Recorder) -> None:
    with pytest.raises(RuntimeError, match="disk"), recorder.pause():
        raise RuntimeError("disk")


def test_the_best_checkpoint_is_kept_in_the_summary(recorder: Recorder, run: RunDirectory) -> None:
    for step, goal in ((1, 0.5), (2, None), (3, 0.8), (4, 0.8), (5, 0.6)):
        save = Save(f"c{step}", step, goal, {}, standing=("written", ""))
        recorder.settled(Progress(step=step, cursor=step * 10), [save])
    summary = run.summary()
    assert (summary.best, summary.best_step, summary.best_checkpoint) == (0.8, 3, "c3")
    assert (summary.step, summary.samples, summary.epoch) == (5, 50, 0.5)


def test_evaluations_become_metrics_and_events(recorder: Recorder, run: RunDirectory) -> None:
    progress = Progress(step=5, cursor=50)
    result = Evaluation({"top1": 0.75}, [[3, 1], [0, 4]], ("a", "b"))
    assert recorder.evaluation(progress, "val", result) == {"val/top1": 0.75}
    recorder.evaluation(progress, "test", result)
    recorder.finish(progress, {"test/top1": 0.75}, "test of c5", {"answers.png": b"drawn"})
    events = run.events().to_pandas()
    assert events["kind"].tolist() == ["validated", "confusion", "finished"]
    assert json.loads(events["detail"][1])["matrix"] == [[3, 1], [0, 4]]
    assert run.summary().status == "finished"
    assert run.summary().results == {"test/top1": 0.75}
    assert run.storage.read_bytes("pictures/answers.png") == b"drawn"


def test_curves_of_the_test_split_become_an_event(recorder: Recorder, run: RunDirectory) -> None:
    result = Evaluation({"f1": 0.75}, None, ("a",), [[1.0, 0.5]])
    recorder.evaluation(Progress(step=5), "val", result)
    recorder.evaluation(Progress(step=5), "test", result)
    events = run.events().to_pandas()
    assert events["kind"].tolist() == ["validated", "pr_curves"]
    assert json.loads(events["detail"][1])["curves"] == [[1.0, 0.5]]


def test_other_ranks_write_nothing(run: RunDirectory, clock: Clock) -> None:
    before = {f.name for f in Path(run.uri).rglob("*")}
    other = Recorder(run, Ranks(1, 1, torch.device("cpu")), Summary(), 100, None)
    other.step(taken(1.0))
    other.look(Progress(step=1, cursor=10))
    other.training(Progress(step=1, cursor=10), 0.1)
    other.evaluation(Progress(step=1), "test", Evaluation({"top1": 1.0}, [[1]], ("a",)))
    other.finish(Progress(step=1), {}, "x", {"answers.png": b"drawn"})
    assert {f.name for f in Path(run.uri).rglob("*")} == before
