"""What a recipe may say of its data: folds of every kind, and CIFAR-10."""

from __future__ import annotations

import pytest

from longhaul.errors import UserError
from longhaul.recipe import Recipe, parse

KINDS = {
    "digits": "{kind: digits}",
    "imagefolder": "{kind: imagefolder, root: /data/pictures}",
    "cifar10": "{kind: cifar10, root: /data/cifar}",
    "spectrograms": "{kind: spectrograms, root: /data/tiles, classes: [wifi]}",
}


def recipe(kind: str, *overrides: str) -> Recipe:
    detects = kind == "spectrograms"
    text = f"""
    name: some
    model: {{name: {"fasterrcnn_resnet18_fpn" if detects else "tiny_cnn"}}}
    workload: {{kind: {"detection" if detects else "classification"}}}
    data: {KINDS[kind]}
    training: {{steps: 1}}
    {"export: {batches: [1]}" if detects else ""}
    """
    return parse("\n".join(line[4:] for line in text.splitlines()), overrides=list(overrides))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_has_folds_and_none_by_default(kind: str) -> None:
    plain = recipe(kind).data
    assert (plain.folds, plain.fold) == (0, 0)
    third = recipe(kind, "data.folds=5", "data.fold=4").data
    assert (third.folds, third.fold) == (5, 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.folds=1"], "folds 1 leaves nothing to train on; set folds to 2 or more"),
        (["data.folds=3", "data.fold=3"], "fold 3 is none of 3 folds; they count from 0"),
        (["data.fold=1"], "fold 1 is none of 0 folds"),
        (["data.folds=101"], "data.folds: input should be less than or equal to 100"),
        (["data.folds=true"], "data.folds: must be a number, not true"),
    ],
)
def test_folds_that_cannot_be_are_refused(kind: str, overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        recipe(kind, *overrides)


def test_cifar10_is_read_in_its_own_size_unless_asked_otherwise() -> None:
    data = recipe("cifar10").data
    assert (data.resolution, data.validation_share, data.augment) == (32, 0.1, "none")
    assert recipe("cifar10", "data.resolution=224").data.resolution == 224


@pytest.mark.parametrize("share", ["0", "1", "-0.1", ".nan"])
def test_cifar10_needs_a_validation_share(share: str) -> None:
    with pytest.raises(UserError, match=r"data\.validation_share"):
        recipe("cifar10", f"data.validation_share={share}")


def test_a_detector_on_pictures_and_a_classifier_on_tiles_are_told_what_to_read() -> None:
    with pytest.raises(UserError, match=r"cannot read data\.kind cifar10; set it to spectrograms"):
        recipe("spectrograms", f"data={KINDS['cifar10']}")
    with pytest.raises(UserError, match=r"cannot read data\.kind spectrograms; set it to imagefolder, digits or cifar10"):
        recipe("cifar10", f"data={KINDS['spectrograms']}")
