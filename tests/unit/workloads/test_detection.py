"""The detection workload in whole runs of a few steps: it learns, resumes bit by bit, finds poisoned tiles, draws its answers."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from drawn_tiles import CLASSES, draw_tiles
from PIL import Image
from runs_in_process import Crash, CrashAt, Outcome, train
from torch import Tensor, nn

from longhaul.data.loader import batches
from longhaul.data.samples import Batch
from longhaul.errors import UserError
from longhaul.insight.curves import draw_run
from longhaul.recipe import Recipe, parse
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training import loop
from longhaul.training.recovery.quarantine import quarantined
from longhaul.workloads import build
from longhaul.workloads.detection import Detection, detections

RECIPE = """
name: few-tiles
seed: 3
workload: {kind: detection}
model: {name: fasterrcnn_resnet18_fpn, stages: [2, 3], fpn_channels: 16, head_width: 32, anchor_px: 8, candidates: 64,
        proposals: 20, anchor_samples: 32, proposal_samples: 32, max_detections: 20}
data: {kind: spectrograms, root: ROOT, classes: [wifi, bluetooth], resolution: 64, loader_workers: 0, augment: mirror,
       test_share: 0.2}
training: {steps: 7, global_batch: 4, micro_batch: 2, optimizer: {name: adamw, lr: 2.0e-3}}
validation: {every: 3 steps}
checkpoints: {every: 2 steps, keep_latest: 20}
tracking: {log_every: 1 steps}
resilience: {preflight: false, poll_s: 0.000001}
export: {batches: [1, 4]}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_tiles(tmp_path_factory.mktemp("tiles"))


def recipe_for(root: Path, *overrides: str) -> Recipe:
    return parse(RECIPE, overrides=[f"data.root={root}", *overrides])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("straight")


@pytest.fixture(scope="module")
def straight(root: Path, place: Path) -> Outcome:
    return train(recipe_for(root), place)


class Crashing(CrashAt, Detection):
    """Raises at the given micro-batch."""


class Poisoned(Detection):
    """Every tile of `ids` makes the loss NaN."""

    def __init__(self, recipe: Recipe, ids: list[str]) -> None:
        super().__init__(recipe)
        self.indices = [list(self.splits.train.ids).index(name) for name in ids]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        bad = any(int(index) in self.indices for index in batch["index"])
        return super().loss(model, batch) * (float("nan") if bad else 1.0)


def test_a_run_lost_in_mid_epoch_ends_bit_by_bit_where_the_straight_one_does(
    root: Path, straight: Outcome, tmp_path: Path
) -> None:
    with pytest.raises(Crash):
        train(recipe_for(root), tmp_path, Crashing(recipe_for(root), at=5 * 2 + 1))  # type: ignore[call-arg]
    resumed = train(recipe_for(root), tmp_path)
    assert resumed.equal(straight)
    assert "resumed" in resumed.events


def test_with_the_cursor_ignored_the_comparison_fails(
    root: Path, straight: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Crash):
        train(recipe_for(root), tmp_path, Crashing(recipe_for(root), at=5 * 2 + 1))  # type: ignore[call-arg]
    honest = loop.training_steps
    monkeypatch.setattr(
        loop, "training_steps", lambda samples, order, plan, _, workers: honest(samples, order, plan, 0, workers=workers)
    )
    assert not train(recipe_for(root), tmp_path).equal(straight)


def test_a_run_leaves_metrics_and_pictures(straight: Outcome, place: Path) -> None:
    assert set(straight.summary.results) == {f"test/{name}" for name in ("precision", "recall", "f1", "map", "map50")}
    assert straight.summary.goal == "val/map50"
    run = RunDirectory.open(f"{place}/run")
    drawn = [Path(picture).name for picture in draw_run(run)]
    assert drawn == ["curves.png", "pr-curves-test.png"]
    with Image.open(io.BytesIO(run.storage.read_bytes("pictures/predictions.png"))) as picture:
        assert picture.size[1] > picture.size[0]


def test_poisoned_tiles_are_found_left_out_and_shown(root: Path, tmp_path: Path) -> None:
    recipe = recipe_for(root, "training.steps=9")
    bad = [build(recipe).splits.train.ids[index] for index in (1, 6)]
    run = train(recipe, tmp_path, Poisoned(recipe, bad))
    assert run.summary.status == "finished"
    report = quarantined(RunDirectory.open(f"{tmp_path}/run")).samples
    assert {one.id for one in report} == set(bad)
    assert all(one.thumbnail for one in report)


def test_it_measures_what_the_boxes_say(root: Path) -> None:
    """A model that answers with the truth scores 1 everywhere; one that answers it a pixel off a whole box scores 0."""
    workload = Detection(recipe_for(root))

    class Oracle(nn.Module):
        def __init__(self, batch: Batch, shift: float) -> None:
            super().__init__()
            self.batch, self.shift = batch, shift

        def forward(self, image: Tensor) -> tuple[Tensor, ...]:
            labels = self.batch["labels"]
            scores = torch.where(labels > 0, 0.9, -1.0)
            return self.batch["boxes"] + self.shift, scores, labels.to(torch.int32), torch.zeros(len(image))

    for shift, expected in ((0.0, 1.0), (60.0, 0.0)):
        metrics = workload.metrics()
        for batch in batches(workload.splits.test, 4):
            workload.measure(Oracle(batch, shift), batch, metrics)
        values = {name: float(value) for name, value in metrics.compute().items() if value.numel() == 1}
        assert values == pytest.approx(dict.fromkeys(workload.metric_names, expected))


def test_padding_is_no_detection() -> None:
    boxes, scores = torch.arange(24.0).reshape(1, 6, 4), torch.tensor([[0.9, 0.5, -1, -1, -1, -1]])
    found = detections(boxes, scores, torch.tensor([[1, 2, 0, 0, 0, 0]], dtype=torch.int32))
    assert found[0]["labels"].tolist() == [1, 2]
    assert found[0]["boxes"].shape == (2, 4)


def test_the_signature_names_the_classes(root: Path) -> None:
    signature = build(recipe_for(root)).signature()
    assert signature.classes == CLASSES
    assert [output.name for output in signature.outputs] == ["boxes", "scores", "labels", "flag"]
    assert signature.inputs[0].shape == (1, 64, 64)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("workload={kind: classification}", "workload classification cannot train model.name 'fasterrcnn_resnet18_fpn'"),
        ("model={name: resnet18}", "workload detection cannot train model.name 'resnet18'; set it to fasterrcnn_resnet18_fpn"),
        ("data={kind: digits}", "workload detection cannot read data.kind digits; set it to spectrograms"),
        ("export.batches=[]", r"set export.batches, for example to \[1, 4, 8\]"),
        ("data.resolution=100", "resolution 100 is no multiple of 32; take 96"),
        ("data.folds=1", "folds 1 leaves nothing to train on"),
        ("data.fold=3", "fold 3 is none of 0 folds"),
        ("model.stages=[3, 2]", r"stages \[3, 2\] do not follow each other"),
        ("model.stages=[1, 3]", r"stages \[1, 3\] do not follow each other"),
        ("model.candidates=4000", "model.candidates.*3840"),
        ("model.fpn_chanels=8", "model.fpn_chanels: unknown field; did you mean 'fpn_channels'"),
    ],
)
def test_contradictions_in_a_recipe_are_refused_where_they_are_declared(root: Path, override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        recipe_for(root, override)
