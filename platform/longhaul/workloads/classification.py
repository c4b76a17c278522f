"""Image classification: one class out of several for each image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from longhaul.data.cifar10 import cifar10_splits
from longhaul.data.digits import default_root, write_digits
from longhaul.data.images import ImageSplits, image_splits
from longhaul.data.preprocess import ImagePreprocess
from longhaul.data.samples import Batch
from longhaul.data.subset import share_of
from longhaul.errors import UserError
from longhaul.models.zoo import build_image_model
from longhaul.recipe import Recipe
from longhaul.recipe.inputs import Cifar10Data, DigitsData, ImageFolderData
from longhaul.recipe.networks import ModelSection
from longhaul.recipe.problems import ClassificationSection
from longhaul.workloads.base import Goal, Precision, Signature, TensorSpec


class Classification:
    """Cross entropy on logits; the goal is top-1 accuracy on the validation split.

    Args:
        recipe: with `workload.kind: classification`.

    Raises:
        UserError: the data are not there, or not in order.
    """

    goal = Goal("top1", "max")
    metric_names = ("top1", "top5", "precision", "recall", "f1", "loss")

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.splits: ImageSplits = _image_splits(recipe)
        self.classes = self.splits.train.classes
        if len(self.classes) < 2:
            found = f"data: one class only ({self.classes[0]})"
            raise UserError(found, "Give at least two folders of images, one a class")

    def build_model(self, *, initial: bool = True) -> nn.Module:
        """The recipe's network with one output a class."""
        section = self._recipe.model
        assert isinstance(section, ModelSection)  # the recipe's schema sees to it
        if not initial:
            section = section.model_copy(update={"pretrained": False, "weights": None})
        return build_image_model(section, len(self.classes), self._recipe.data.resolution)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross entropy with the recipe's label smoothing."""
        assert isinstance(self._recipe.workload, ClassificationSection)
        smoothing = self._recipe.workload.label_smoothing
        return functional.cross_entropy(model(batch["image"]), batch["label"], label_smoothing=smoothing)

    def metrics(self) -> MetricCollection:
        """top1, top5 (of fewer classes: of all), macro precision, recall and F1, mean loss, confusion matrix (C, C)."""
        n = len(self.classes)
        return MetricCollection(
            {
                "top1": MulticlassAccuracy(n, average="micro"),
                "top5": MulticlassAccuracy(n, average="micro", top_k=min(5, n)),
                "precision": MulticlassPrecision(n),
                "recall": MulticlassRecall(n),
                "f1": MulticlassF1Score(n),
                "confusion": MulticlassConfusionMatrix(n),
                "loss": MeanMetric(),
            },
            compute_groups=False,
        )

    def measure(self, model: nn.Module, batch: Batch, metrics: MetricCollection) -> None:
        """One forward pass; the loss is measured without label smoothing."""
        logits = model(batch["image"]).float()
        losses = functional.cross_entropy(logits, batch["label"], reduction="none")
        for name, metric in metrics.items():
            if name == "loss":
                metric.update(losses)
            else:
                metric.update(logits, batch["label"])

    def pictures(self, model: nn.Module) -> dict[str, bytes]:
        """None: the confusion matrix is drawn from the run's events."""
        return {}

    def exportable(self, model: nn.Module, precision: Precision) -> nn.Module:
        """The network itself."""
        if precision != "fp32":
            fix = "Set export.precision to fp32; TensorRT may still compute in TF32"
            raise UserError(f"export.precision {precision}: classification is exported in float32 alone", fix)
        return model

    def signature(self) -> Signature:
        """`image` (3, R, R) -> `logits` (C,)."""
        preprocess = self.splits.test.preprocess
        side = preprocess.resolution
        return Signature(
            task="classification",
            inputs=(TensorSpec(name="image", dtype="float32", shape=(3, side, side)),),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=(len(self.classes),)),),
            classes=self.classes,
            preprocess=preprocess.model_dump(mode="json"),
        )


def _image_splits(recipe: Recipe) -> ImageSplits:
    """The recipe's splits; training takes its share."""
    splits = _whole_splits(recipe)
    return replace(splits, train=share_of(splits.train, recipe.data.share, recipe.seed))


def _whole_splits(recipe: Recipe) -> ImageSplits:
    data = recipe.data
    preprocess = ImagePreprocess(resolution=data.resolution)
    if isinstance(data, Cifar10Data):
        return cifar10_splits(data, preprocess, recipe.seed)
    assert isinstance(data, DigitsData | ImageFolderData)  # the recipe's schema sees to it
    if isinstance(data, DigitsData):
        root, validation_share, test_share = write_digits(_digits_root(data)), 0.0, 0.0
    else:
        root, validation_share, test_share = Path(data.root).expanduser(), data.validation_share, data.test_share
    return image_splits(
        root,
        preprocess,
        augment=data.augment,
        validation_share=validation_share,
        test_share=test_share,
        seed=recipe.seed,
        folds=data.folds,
        fold=data.fold,
    )


def _digits_root(data: DigitsData) -> Path:
    return Path(data.root).expanduser() if data.root else default_root()
