"""What a recipe says of the data: where they are, what a sample is, how they are split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from longhaul.recipe.section import Number, Section, Share

Pixels = Annotated[int, Field(ge=8, le=4096), Number]


class _Data(Section):
    resolution: Pixels = 224
    """Side of the square image that the network sees, in pixels."""
    share: Annotated[float, Field(gt=0, le=1), Number] = 1.0
    """Share of every class of the training split to train on, at least one sample each; validation and test stay whole."""
    excluded: tuple[str, ...] = ()
    """Ids of training samples to leave out, as the run's quarantine report names them."""
    loader_workers: Annotated[int, Field(ge=0, le=64), Number] = 2
    """Processes a rank that read and decode images; 0 reads in the training process."""
    folds: Annotated[int, Field(ge=0, le=100), Number] = 0
    """Into how many parts all but the test split is dealt for cross-validation, tiles by recording; 0 for one split."""
    fold: Annotated[int, Field(ge=0), Number] = 0
    """Which of the folds is the validation split, from 0."""

    @model_validator(mode="after")
    def _check_folds(self) -> _Data:
        if self.folds == 1:
            raise ValueError("folds 1 leaves nothing to train on; set folds to 2 or more, or to 0 for one split")
        if self.fold >= max(self.folds, 1):
            raise ValueError(f"fold {self.fold} is none of {self.folds} folds; they count from 0")
        return self


class _ImageData(_Data):
    augment: Literal["none", "shift", "flip", "crop"] = "none"
    """Random changes of training images: small shifts and turns (digits); + mirroring; random resized crops + mirroring."""


class DigitsData(_ImageData):
    """The 1,797 handwritten 8 x 8 digits inside scikit-learn, written once as PNG files."""

    kind: Literal["digits"]
    root: str | None = None
    """Folder for the files; left out, `$LONGHAUL_CACHE/digits` (`~/.cache/longhaul/digits`)."""
    resolution: Pixels = 32
    """Side of the square image that the network sees, in pixels."""


class ImageFolderData(_ImageData):
    """Any folder with one sub-folder of images a class, or with `train/`, `val/` and `test/` holding such."""

    kind: Literal["imagefolder"]
    root: str
    """The folder."""
    validation_share: Share = 0.1
    """Share of every class held out for validation, where the folder has no `val/` of its own and there are no folds."""
    test_share: Share = 0.1
    """Share of every class never seen in training, where the folder has no `test/` of its own."""


class Cifar10Data(_ImageData):
    """CIFAR-10, the python version as published: 50,000 training and 10,000 test images of 32 x 32 pixels in ten classes."""

    kind: Literal["cifar10"]
    root: str
    """The folder `cifar-10-batches-py`, or the one that holds it."""
    resolution: Pixels = 32
    """Side of the square image that the network sees, in pixels."""
    validation_share: Annotated[float, Field(gt=0, lt=1), Number] = 0.1
    """Share of every class of the 50,000 held out for validation, where there are no folds."""


class SpectrogramData(_Data):
    """Tiles of recordings (`longhaul signals chunk`): PNG files, each with its boxes in a JSON file beside it.

    All tiles of one recording lie in the same part, as two chunks of one emitter are no two samples of the world.
    """

    kind: Literal["spectrograms"]
    root: str
    """The folder with the tiles: one of `longhaul signals chunk`, or a folder that holds such."""
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    """The labels to detect."""
    ignored: tuple[str, ...] = ()
    """Labels in the data that are left out; any other label that is not a class is an error."""
    resolution: Pixels = 1024
    """Side of the tile that the network sees; tiles of another size are resized. A multiple of 32."""
    augment: Literal["none", "mirror"] = "none"
    """Random changes of training tiles: time runs backwards in half of them (not for signals that it changes, such as chirps)."""
    validation_share: Annotated[float, Field(gt=0, lt=1), Number] = 0.2
    """Share of the recordings held out for validation, where there are no folds."""
    test_share: Share = 0.15
    """Share of the recordings that are in no fold and never seen in training; with 0, the validation split stands for them."""

    @model_validator(mode="after")
    def _check(self) -> SpectrogramData:
        if self.resolution % 32:
            raise ValueError(
                f"resolution {self.resolution} is no multiple of 32; take {max(round(self.resolution / 32), 1) * 32}"
            )
        if len(set(self.classes)) < len(self.classes) or set(self.classes) & set(self.ignored):
            raise ValueError("a label is given twice in classes and ignored; give each once")
        return self


DataSection = Annotated[DigitsData | ImageFolderData | Cifar10Data | SpectrogramData, Field(discriminator="kind")]
