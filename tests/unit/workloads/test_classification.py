"""Classification against closed forms and against scikit-learn's metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cifar10_files import CLASSES, write_cifar10
from sklearn import metrics as sk
from torch import Tensor, nn

from longhaul.data.loader import batches
from longhaul.errors import UserError
from longhaul.recipe import Recipe, parse
from longhaul.workloads import build
from longhaul.workloads.classification import Classification

RECIPE = """
name: few
model: {name: test_resnet}
data: {kind: imagefolder, root: ROOT, resolution: 16, loader_workers: 0, augment: shift}
training: {steps: 1, global_batch: 8, micro_batch: 8}
"""


def recipe(root: Path, *overrides: str) -> Recipe:
    return parse(RECIPE, overrides=[f"data.root={root}", *overrides])


@pytest.fixture(scope="module")
def workload(digits_root: Path) -> Classification:
    """All ten digits."""
    return Classification(recipe(digits_root))


class Fixed(nn.Module):
    """Answers with logits given beforehand."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, image: Tensor) -> Tensor:
        return self.logits[image[:, 0, 0, 0].long()]


def batch_of(labels: Tensor, rows: Tensor) -> dict[str, Tensor]:
    return {"image": rows.float()[:, None, None, None], "label": labels[rows]}


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_loss_is_cross_entropy_with_smoothed_targets(few_digits: Path, smoothing: float) -> None:
    """Targets are (1 - s) on the label plus s / C everywhere: in float64, by numpy."""
    draws = np.random.default_rng(0)
    logits, labels = draws.normal(size=(40, 4)) * 3, draws.integers(0, 4, 40)
    target = np.full((40, 4), smoothing / 4)
    target[np.arange(40), labels] += 1 - smoothing
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(target * log_softmax).sum(1).mean()

    workload = Classification(recipe(few_digits, f"workload.label_smoothing={smoothing}"))
    batch = batch_of(torch.from_numpy(labels), torch.arange(40))
    assert float(workload.loss(Fixed(torch.from_numpy(logits)), batch)) == pytest.approx(expected, rel=1e-12)


def test_metrics_are_scikit_learns(workload: Classification) -> None:
    """On random logits with true answers mixed in, in uneven batches."""
    draws = np.random.default_rng(1)
    labels = np.concatenate([np.arange(10), draws.integers(0, 10, 490)])
    logits = draws.normal(size=(500, 10)) + 2.0 * np.eye(10)[labels]
    logits = logits.astype(np.float32)
    metrics, model = workload.metrics(), Fixed(torch.from_numpy(logits))
    for rows in torch.arange(500).split(130):
        workload.measure(model, batch_of(torch.from_numpy(labels), rows), metrics)
    values = metrics.compute()
    answers = logits.argmax(1)
    expected = {
        "top1": sk.accuracy_score(labels, answers),
        "top5": sk.top_k_accuracy_score(labels, logits, k=5),
        "precision": sk.precision_score(labels, answers, average="macro"),
        "recall": sk.recall_score(labels, answers, average="macro"),
        "f1": sk.f1_score(labels, answers, average="macro"),
        "loss": sk.log_loss(labels, torch.from_numpy(logits).double().softmax(1).numpy()),
    }
    assert set(values) == {*expected, "confusion"}
    for name, value in expected.items():
        assert float(values[name]) == pytest.approx(value, abs=1e-6), name
    np.testing.assert_array_equal(values["confusion"].numpy(), sk.confusion_matrix(labels, answers))


def test_the_loss_is_measured_without_label_smoothing(few_digits: Path) -> None:
    workload = Classification(recipe(few_digits, "workload.label_smoothing=0.4"))
    metrics, logits, labels = workload.metrics(), torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    workload.measure(Fixed(logits), batch_of(labels, torch.arange(6)), metrics)
    expected = nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(metrics.compute()["loss"], expected)


def test_top5_of_four_classes_is_one(few_digits: Path) -> None:
    workload = Classification(recipe(few_digits))
    metrics = workload.metrics()
    workload.measure(Fixed(torch.randn(6, 4)), batch_of(torch.tensor([0, 1, 2, 3, 0, 1]), torch.arange(6)), metrics)
    assert float(metrics.compute()["top5"]) == 1.0


def test_the_signature_says_what_goes_in_and_out(workload: Classification) -> None:
    signature = workload.signature()
    assert signature.inputs[0].shape == (3, 16, 16)
    assert signature.outputs[0].shape == (10,)
    assert signature.classes == tuple("0123456789")
    assert signature.preprocess == workload.splits.test.preprocess.model_dump(mode="json")
    model = workload.build_model().eval()
    image = workload.splits.test.read(0, None)["image"]
    assert image.shape == signature.inputs[0].shape
    assert model(image[None]).shape == (1, *signature.outputs[0].shape)


def test_only_training_images_are_augmented(workload: Classification) -> None:
    splits = workload.splits
    assert (splits.train.augment, splits.validation.augment, splits.test.augment) == ("shift", "none", "none")


def test_digits_by_kind_are_the_same_pictures(digits_root: Path, workload: Classification) -> None:
    """`data.kind: digits` without a root takes the cache, where the fixture has put them."""
    text = "{name: d, model: {name: test_resnet}, data: {kind: digits}, training: {steps: 1}}"
    digits = build(parse(text)).splits
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1149, 288, 360)
    assert digits.train.fingerprint == workload.splits.train.fingerprint


def test_folds_of_digits_leave_their_test_split_alone(digits_root: Path, workload: Classification) -> None:
    text = "{name: d, model: {name: test_resnet}, data: {kind: digits, folds: 5, fold: 2}, training: {steps: 1}}"
    digits = build(parse(text)).splits
    assert (len(digits.train), len(digits.validation)) in {(1149, 288), (1150, 287)}
    assert digits.test.fingerprint == workload.splits.test.fingerprint
    other = build(parse(text, overrides=["data.fold=3"])).splits
    assert not set(digits.validation.ids) & set(other.validation.ids)


def test_cifar10_trains_like_a_folder_of_images(tmp_path: Path) -> None:
    """Its classes, told apart by colour, are learnt; the share of the data is drawn as from any other set."""
    root = write_cifar10(tmp_path, images=40)
    text = (
        "{name: c, model: {name: tiny_cnn}, data: {kind: cifar10, root: ROOT, augment: flip, share: 0.5}, training: {steps: 1}}"
    )
    workload = Classification(parse(text, overrides=[f"data.root={root}"]))
    assert workload.classes == CLASSES
    assert (len(workload.splits.train), len(workload.splits.test)) == (92, 40)
    torch.manual_seed(0)
    model = workload.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(8):
        for batch in batches(workload.splits.train, 23):
            optimizer.zero_grad()
            workload.loss(model, batch).backward()
            optimizer.step()
    metrics = workload.metrics()
    model.eval()
    with torch.no_grad():
        for batch in batches(workload.splits.test, 20):
            workload.measure(model, batch, metrics)
    assert float(metrics.compute()["top1"]) > 0.9


def test_one_class_is_refused(tmp_path: Path, few_digits: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0").symlink_to(few_digits / "train" / "0")
    with pytest.raises(UserError, match=r"data: one class only \(0\)\. Give at least two folders"):
        Classification(recipe(tmp_path))


def test_a_share_of_the_data_is_one_of_training_alone(digits_root: Path) -> None:
    whole, part = Classification(recipe(digits_root)).splits, Classification(recipe(digits_root, "data.share=0.25")).splits
    counts = np.bincount(whole.train.labels), np.bincount(part.train.labels)
    assert (counts[1] == np.ceil(counts[0] / 4)).all()
    assert (part.validation.ids, part.test.ids) == (whole.validation.ids, whole.test.ids)
    assert part.train.fingerprint != whole.train.fingerprint
    assert torch.equal(
        part.train.read(3, None)["image"], whole.train.read(whole.train.ids.index(part.train.ids[3]), None)["image"]
    )
    assert part.train.classes == whole.train.classes
