"""Whole runs of a few steps in this process: exact resume, early stopping, the plateau, the best kept at once."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

from longhaul.data.loader import BatchPlan, StepBatch
from longhaul.data.loader import training_steps as straight_steps
from longhaul.data.order import SampleOrder
from longhaul.data.samples import Batch, SampleSet
from longhaul.errors import UserError
from longhaul.recipe import Recipe, parse
from longhaul.resilience import flight
from longhaul.resilience.checkpoint import CheckpointStore
from longhaul.resilience.requests import ask, asked
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.training import loop
from longhaul.training.loop import Trainer
from longhaul.training.memory import MemoryExhaustedError
from longhaul.training.ranks import Ranks
from longhaul.training.rollback import DivergedError
from longhaul.workloads.classification import Classification

# 40 training images in steps of 12: an epoch ends within a step. Dropout, stochastic depth, EMA, batch norm, augmentation.
RECIPE = """
name: few
seed: 5
model: {name: test_resnet, drop_rate: 0.3, drop_path_rate: 0.2}
data: {kind: imagefolder, root: ROOT, resolution: 16, loader_workers: 0, augment: shift}
training:
  {steps: 9, global_batch: 12, micro_batch: 4, ema_decay: 0.7, clip_norm: 1.0, schedule: {name: cosine, warmup: 2 steps},
   optimizer: {name: adamw, lr: 3.0e-3, weight_decay: 0.05}}
validation: {every: 2 steps, batch: 24}
checkpoints: {every: 2 steps, keep_latest: 20}
tracking: {log_every: 1 steps}
resilience: {preflight: false, poll_s: 0.000001}
"""
ALONE = Ranks(0, 1, torch.device("cpu"))


class Crash(RuntimeError):
    """Stands for a lost machine."""


class Crashing(Classification):
    """Raises at the given micro-batch."""

    def __init__(self, recipe: Recipe, at: int) -> None:
        super().__init__(recipe)
        self.left = at

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise Crash
        return super().loss(model, batch)


class Scripted(Classification):
    """Measures top-1 as told, one value a validation; then 0."""

    def __init__(self, recipe: Recipe, values: Sequence[float]) -> None:
        super().__init__(recipe)
        self.values = list(values)

    def metrics(self) -> MetricCollection:
        return MetricCollection({"top1": MeanMetric()})

    def measure(self, model: nn.Module, batch: Batch, metrics: MetricCollection) -> None:
        """The validation split is one batch here."""
        metrics["top1"].update(self.values.pop(0) if self.values else 0.0)


class ScriptedCrash(Scripted, Crashing):
    """Both."""

    def __init__(self, recipe: Recipe, values: Sequence[float], at: int) -> None:
        Classification.__init__(self, recipe)
        self.values, self.left = list(values), at


def nothing(name: str, metrics: dict[str, float]) -> None:
    """A report to nobody."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run left behind: tensors of its last checkpoint by name, metrics by (name, step), kinds of events, steps saved."""

    summary: Summary
    tensors: dict[str, Tensor]
    metrics: dict[tuple[str, int], float]
    events: list[str]
    saved: list[int]

    def equal(self, other: Outcome) -> bool:
        same_names = self.tensors.keys() == other.tensors.keys()
        return same_names and all(torch.equal(value, other.tensors[name]) for name, value in self.tensors.items())


def recipe_for(root: Path, *overrides: str) -> Recipe:
    return parse(RECIPE, overrides=[f"data.root={root}", *overrides])


def train(recipe: Recipe, root: Path, workload: Classification | None = None) -> Outcome:
    run = RunDirectory.create(str(root), "run", recipe)
    summary = Trainer(recipe, workload or Classification(recipe), run, ALONE, nothing).train()
    return outcome(run, summary)


def outcome(run: RunDirectory, summary: Summary) -> Outcome:
    store = CheckpointStore(run)
    entries = store.entries()
    folder = Path(store.folder(entries[-1].name).root)
    tensors = {f"{file.stem}.{name}": value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    state = torch.load(folder / "engine" / "torch.pt", weights_only=True)["optimizer"]["state"]
    tensors |= {f"optimizer.{i}.{name}": value for i, moments in state.items() for name, value in moments.items()}
    tensors["random"] = torch.load(folder / "rank-00000.pt", weights_only=True)["random"]["torch"]
    table = run.metrics().to_pandas()
    metrics = {(name, step): value for name, step, value in zip(table["name"], table["step"], table["value"], strict=True)}
    return Outcome(summary, tensors, metrics, run.events().to_pandas()["kind"].tolist(), [entry.step for entry in entries])


# ---- resume ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(few_digits: Path) -> Recipe:
    return recipe_for(few_digits)


@pytest.fixture(scope="module")
def straight(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The run that nothing happens to."""
    return train(recipe, tmp_path_factory.mktemp("straight"))


@pytest.fixture(scope="module")
def crashed(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run lost in the middle of step 6 (of 3 micro-batches each); its newest checkpoint is of step 4, in mid-epoch."""
    root = tmp_path_factory.mktemp("crashed")
    with pytest.raises(Crash):
        train(recipe, root, Crashing(recipe, at=5 * 3 + 2))
    return root


def test_the_run_does_what_its_recipe_says(straight: Outcome) -> None:
    assert (straight.summary.status, straight.summary.step, straight.summary.samples) == ("finished", 9, 108)
    assert straight.saved == [0, 2, 4, 6, 8, 9]
    assert [step for name, step in straight.metrics if name == "val/top1"] == [2, 4, 6, 8, 9]
    assert [step for name, step in straight.metrics if name == "train/loss"] == list(range(1, 10))
    assert straight.events[0] == "started"
    assert straight.events[-1] == "finished"
    assert straight.summary.best == max(value for (name, _), value in straight.metrics.items() if name == "val/top1")


def test_the_same_recipe_gives_the_same_run(recipe: Recipe, straight: Outcome, tmp_path: Path) -> None:
    assert train(recipe, tmp_path).equal(straight)


def test_another_seed_gives_another_run(few_digits: Path, straight: Outcome, tmp_path: Path) -> None:
    assert not train(recipe_for(few_digits, "seed=6"), tmp_path).equal(straight)


def test_a_resumed_run_is_the_straight_one_bit_by_bit(recipe: Recipe, crashed: Path, straight: Outcome, tmp_path: Path) -> None:
    """Weights, their average, the optimizer's moments, the random state, and every loss and metric on the way."""
    shutil.copytree(crashed, tmp_path, dirs_exist_ok=True)
    resumed = train(recipe, tmp_path)
    assert "resumed" in resumed.events
    assert resumed.summary.segment == 2
    assert resumed.equal(straight)
    for key, value in straight.metrics.items():
        if key[0] != "train/samples_per_s" and not key[0].startswith("ranks/"):
            assert resumed.metrics[key] == value, key
    assert resumed.summary.results == straight.summary.results


def test_each_kind_of_loader_gives_the_same_run(few_digits: Path, straight: Outcome, tmp_path: Path) -> None:
    """A loader process instead of this one."""
    assert train(recipe_for(few_digits, "data.loader_workers=1"), tmp_path).equal(straight)


def from_the_start(samples: SampleSet, order: SampleOrder, plan: BatchPlan, cursor: int, *, workers: int) -> Iterator[StepBatch]:
    """Ignores the cursor, as a loader without one would."""
    for batch in straight_steps(samples, order, plan, 0, workers=workers):
        cursor += plan.global_batch
        yield dataclasses.replace(batch, cursor=cursor)


def test_with_the_cursor_ignored_the_resumed_run_differs(
    recipe: Recipe, crashed: Path, straight: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: the comparison above can fail."""
    monkeypatch.setattr(loop, "training_steps", from_the_start)
    shutil.copytree(crashed, tmp_path, dirs_exist_ok=True)
    resumed = train(recipe, tmp_path)
    assert resumed.summary.step == 9
    assert not resumed.equal(straight)


@pytest.mark.parametrize("ignored", ["random state", "moving average"])
def test_with_a_part_of_the_state_ignored_the_resumed_run_differs(
    recipe: Recipe, crashed: Path, straight: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ignored: str
) -> None:
    """More negative controls: what was saved is not put back."""
    from longhaul.training import resuming

    if ignored == "random state":
        monkeypatch.setattr(resuming, "restore_random_state", lambda state: None)
    else:
        monkeypatch.setattr(torch.optim.swa_utils.AveragedModel, "load_state_dict", lambda self, state: None)
    shutil.copytree(crashed, tmp_path, dirs_exist_ok=True)
    assert not train(recipe, tmp_path).equal(straight)


def test_a_finished_run_started_again_trains_no_further(recipe: Recipe, straight: Outcome, tmp_path: Path) -> None:
    train(recipe, tmp_path)
    again = train(recipe, tmp_path, Crashing(recipe, at=1))
    assert again.equal(straight)
    assert again.summary.results == straight.summary.results


# ---- what validations change -----------------------------------------------------------------------------------------

SHORT = ("training.steps=8", "validation.every=1 steps", "training.ema_decay=null", "training.global_batch=4")
RARELY = ("checkpoints.every=1000 steps",)


def scripted(root: Path, out: Path, values: Sequence[float], *overrides: str) -> Outcome:
    recipe = recipe_for(root, *SHORT, *RARELY, *overrides)
    return train(recipe, out, Scripted(recipe, values))


def test_early_stopping_ends_the_run(few_digits: Path, tmp_path: Path) -> None:
    """Best at the second validation; the second miss after it is the end, measured and saved."""
    result = scripted(few_digits, tmp_path, [0.1, 0.5, 0.5, 0.4, 0.9], "training.early_stopping={patience: 2}")
    assert result.summary.step == 4
    assert result.summary.status == "finished"
    assert result.events.count("early_stop") == 1
    assert result.saved[-1] == 4
    assert result.summary.best == 0.5


def test_early_stopping_waits_for_its_warm_up_and_least_improvement(few_digits: Path, tmp_path: Path) -> None:
    """Counted from step 3 on: 0.3 is the best, 0.35 no improvement of 0.1, 0.45 is, two misses follow."""
    values = [0.9, 0.1, 0.3, 0.35, 0.45, 0.4, 0.5, 0.9]
    stopping = "training.early_stopping={patience: 2, warmup: 3 steps, min_delta: 0.1}"
    assert scripted(few_digits, tmp_path, values, stopping).summary.step == 7


def test_early_stopping_on_another_metric_and_direction(few_digits: Path, tmp_path: Path) -> None:
    stopping = "training.early_stopping={patience: 1, metric: val/top1, direction: min}"
    assert scripted(few_digits, tmp_path, [0.5, 0.4, 0.45], stopping).summary.step == 3


def test_early_stopping_on_a_metric_that_is_not_measured_is_refused(few_digits: Path, tmp_path: Path) -> None:
    stopping = "training.early_stopping={patience: 1, metric: val/topp, direction: max}"
    with pytest.raises(UserError, match=r"early_stopping\.metric 'val/topp': is not measured\. Give one of val/top1"):
        scripted(few_digits, tmp_path, [0.5], stopping)


def test_a_plateau_lowers_the_rate_from_the_next_step_on(few_digits: Path, tmp_path: Path) -> None:
    plateau = "training.schedule={name: plateau, patience: 2, gamma: 0.5, min_delta: 0.01}"
    result = scripted(few_digits, tmp_path, [0.5, 0.5, 0.505, 0.6, 0.6, 0.6, 0.6, 0.6], plateau)
    rates = [value for (name, _), value in result.metrics.items() if name == "train/lr"]
    assert rates == pytest.approx([3e-3 * factor for factor in (1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25)])
    assert result.events.count("plateau") == 3


def test_a_stopped_run_remembers_its_patience_after_a_crash(few_digits: Path, tmp_path: Path) -> None:
    """One miss before the crash and one after it are two."""
    options = ("training.early_stopping={patience: 2}", "checkpoints.every=1 steps")
    recipe = recipe_for(few_digits, *SHORT, *options)

    with pytest.raises(Crash):
        train(recipe, tmp_path, ScriptedCrash(recipe, [0.5, 0.4], at=3))
    assert train(recipe, tmp_path, Scripted(recipe, [0.3, 0.9, 0.9])).summary.step == 3


@pytest.mark.parametrize(("keep", "saved"), [(1, [0, 1, 3, 6, 8]), (2, [0, 1, 2, 3, 4, 6, 7, 8]), (0, [0, 8])])
def test_one_of_the_best_is_saved_at_once(few_digits: Path, tmp_path: Path, keep: int, saved: list[int]) -> None:
    """A save is due only at the end; the others are there because they were among the best k when they were measured."""
    recipe = recipe_for(few_digits, *SHORT, *RARELY, f"checkpoints.keep_best={keep}", "checkpoints.keep_latest=1")
    names: list[str] = []
    run = RunDirectory.create(str(tmp_path), "run", recipe)
    workload = Scripted(recipe, [0.2, 0.1, 0.5, 0.4, 0.3, 0.7, 0.6, 0.1])
    summary = Trainer(recipe, workload, run, ALONE, lambda name, metrics: names.append(name)).train()
    assert [int(name.split("-")[1]) for name in names] == saved
    kept = {0: [8], 1: [6, 8], 2: [6, 7, 8]}[keep]
    assert [entry.step for entry in CheckpointStore(run).entries()] == kept
    assert summary.best == pytest.approx(0.1 if keep == 0 else 0.7)  # torchmetrics counts in float32


# ---- ends that are not the planned one -------------------------------------------------------------------------------


class Diverging(Classification):
    """The loss is NaN from the fourth step on, whatever the samples."""

    count = 0

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self.count += model.training
        return super().loss(model, batch) * (float("nan") if model.training and self.count > 3 else 1.0)


def test_a_run_that_no_remedy_helps_ends_and_keeps_the_checkpoint_before(few_digits: Path, tmp_path: Path) -> None:
    """One rollback, one with the whole batch left out, gradient norm and rate lowered, each tried anew; then the end."""
    recipe = recipe_for(few_digits, *SHORT, "checkpoints.every=1 steps", "resilience.max_rollbacks=2")
    with pytest.raises(DivergedError, match="step 4: the training loss is nan; samples were left out"):
        train(recipe, tmp_path, Diverging(recipe))
    run = RunDirectory.open(str(tmp_path / "run"))
    assert [entry.step for entry in CheckpointStore(run).entries()] == [0, 1, 2, 3]
    reasons = [event["message"] for event in run.events().to_pylist() if event["kind"] == "rollback"]
    assert [reason.split(": ", 2)[2] for reason in reasons] == [
        "its samples are tried one by one; back to step 3",
        "its whole batch is left out; back to step 3",
        "the gradient's norm is clipped at 0.6; back to step 3",
        "the learning rate is halved; back to step 3",
    ]


class Poisoned(Classification):
    """Reads NaN for some samples, every time; `loss` is NaN once at a step where it is told to."""

    def __init__(self, recipe: Recipe, ids: Sequence[str] = (), nan_once_at: int = 0) -> None:
        super().__init__(recipe)
        self.seen: list[int] = []
        self.left = nan_once_at
        read, bad = type(self.splits.train).read, set(ids)

        class Samples(type(self.splits.train)):  # type: ignore[misc]
            def read(self, index: int, seed: int | None) -> dict[str, Tensor]:
                sample = read(self, index, seed)
                return {**sample, "image": sample["image"] * float("nan")} if self.ids[index] in bad else sample

        train = self.splits.train
        fields = {field.name: getattr(train, field.name) for field in dataclasses.fields(train)}
        self.splits = dataclasses.replace(self.splits, train=Samples(**fields))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self.seen += batch["index"].tolist() if model.training else []
        self.left -= model.training
        return super().loss(model, batch) * (float("nan") if model.training and self.left == 0 else 1.0)


def poisoned_ids(recipe: Recipe) -> list[str]:
    """Three samples: two of them in one step, one in the second epoch's last."""
    train = Classification(recipe).splits.train
    order = SampleOrder(len(train), train.fingerprint, recipe.seed)
    return [train.ids[int(order.take(0, 60).indices[place])] for place in (13, 17, 30)]


def test_poisoned_samples_are_found_and_left_out_exactly_those(few_digits: Path, tmp_path: Path) -> None:
    """And the run ends bit by bit where one ends that never had them."""
    recipe = recipe_for(few_digits)
    ids = poisoned_ids(recipe)
    clean = train(recipe_for(few_digits, f"data.excluded=[{', '.join(ids)}]"), tmp_path / "clean")
    healed = train(recipe, tmp_path / "healed", Poisoned(recipe, ids))
    run = RunDirectory.open(str(tmp_path / "healed" / "run"))
    left_out = [json.loads(event["detail"])["samples"] for event in run.events().to_pylist() if event["kind"] == "quarantine"]
    assert sorted(name for names in left_out for name in names) == sorted(ids)
    assert healed.summary.status == "finished"
    assert healed.equal(clean)
    losses = {key: value for key, value in clean.metrics.items() if key[0] == "train/loss"}
    assert losses == {key: value for key, value in healed.metrics.items() if key[0] == "train/loss"}


def test_a_nan_that_comes_once_costs_a_rollback_and_no_sample(few_digits: Path, straight: Outcome, tmp_path: Path) -> None:
    recipe = recipe_for(few_digits)
    result = train(recipe, tmp_path, Poisoned(recipe, nan_once_at=14))
    assert result.events.count("rollback") == 1
    assert "quarantine" not in result.events
    assert result.equal(straight)


def test_a_paused_run_goes_on_bit_by_bit(recipe: Recipe, straight: Outcome, tmp_path: Path) -> None:
    """Asked for while it trains; the loop looks at every step here."""

    class Asking(Crashing):
        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            self.left -= 1
            if self.left == 0:
                request = ask(RunDirectory.open(str(tmp_path / "run")), "pause")
                flight.FlightRecorder.request = request  # what its thread would see at its next look
            return Classification.loss(self, model, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flight.FlightRecorder, "request", None, raising=False)
        patch.setattr(flight.FlightRecorder, "__setattr__", _all_but_request)
        paused = train(recipe, tmp_path, Asking(recipe, at=5 * 3 + 2))
    assert (paused.summary.status, paused.summary.step) == ("paused", 6)
    assert asked(RunDirectory.open(str(tmp_path / "run"))) is None
    resumed = train(recipe, tmp_path)
    assert resumed.summary.status == "finished"
    assert resumed.equal(straight)


def _all_but_request(self: flight.FlightRecorder, name: str, value: object) -> None:
    if name != "request":
        object.__setattr__(self, name, value)


def test_out_of_memory_before_the_first_step_is_found_by_the_preflight(few_digits: Path, tmp_path: Path) -> None:
    class Large(Classification):
        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            if len(batch["label"]) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().loss(model, batch)

    recipe = recipe_for(few_digits, "resilience.preflight=true")
    with pytest.raises(MemoryExhaustedError, match="micro-batches of 4: CUDA out of memory") as caught:
        train(recipe, tmp_path, Large(recipe))
    assert caught.value.micro_batch == 4
    assert pickle.loads(pickle.dumps(caught.value)).micro_batch == 4
    run = RunDirectory.open(str(tmp_path / "run"))
    run.add_event("micro_batch", "halved", micro_batch=2)  # what the failure policy records
    assert train(recipe, tmp_path, Large(recipe)).summary.status == "finished"


def test_a_world_size_that_does_not_divide_is_a_user_error(few_digits: Path, tmp_path: Path) -> None:
    recipe = recipe_for(few_digits)
    run = RunDirectory.create(str(tmp_path), "run", recipe)
    trainer = Trainer(recipe, Classification(recipe), run, Ranks(0, 5, torch.device("cpu")), nothing)
    with pytest.raises(UserError, match=r"training\.global_batch: a global batch of 12 cannot be shared by 5 workers; 1, 2, 3"):
        trainer.train()
