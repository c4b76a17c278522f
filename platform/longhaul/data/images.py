"""Folders of images, one sub-folder a class, as sample sets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, Self

import torch
from PIL import Image
from torch import Tensor

from longhaul.data.augment import image_tensor
from longhaul.data.image_folds import Named, hold_out, one_fold
from longhaul.data.pictures import missing, open_picture
from longhaul.data.preprocess import ImagePreprocess, to_rgb
from longhaul.errors import UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


class LabelledImages(Protocol):
    """A sample set of pictures with one class each, wherever they lie: what classification and explanations read.

    Attributes:
        ids, labels: the name and the class index of each.
        classes: class names by index.
        preprocess: picture to tensor.
        augment: how reads with a seed change a picture (`data.augment`).
        fingerprint: as in `SampleSet`.
    """

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def labels(self) -> Sequence[int]: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def preprocess(self) -> ImagePreprocess: ...

    @property
    def augment(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def at(self, indices: Sequence[int]) -> Self:
        """The images at `indices` alone, in that order."""
        ...

    def read(self, index: int, seed: int | None) -> dict[str, Tensor]:
        """`image` (3, R, R) float32 and `label` () int64."""
        ...

    def open(self, index: int) -> Image.Image:
        """The decoded picture, in its own size.

        Raises:
            UserError: it cannot be read.
        """
        ...


@dataclass(frozen=True)
class ImageSamples:
    """Labelled images on disk.

    Attributes:
        root: the folder that `ids` are relative to.
        ids: file names, sorted.
        labels: the class index of each.
        classes: class names by index.
        preprocess: picture to tensor.
        augment: `none`, `shift`, `flip` or `crop` (`recipe.inputs`), for reads with a seed.
    """

    root: Path
    ids: Sequence[str]
    labels: Sequence[int]
    classes: tuple[str, ...]
    preprocess: ImagePreprocess
    augment: str = "none"

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names and sizes in bytes: contents of a million images would take minutes to hash.

        A file that is replaced by another of the same size goes unnoticed.

        Raises:
            UserError: a file is missing.
        """
        digest = hashlib.sha256()
        for name in self.ids:
            path = self.root / name
            try:
                digest.update(f"{name}\0{path.stat().st_size}\n".encode())
            except FileNotFoundError:
                raise missing(path, "image") from None
        return digest.hexdigest()

    def at(self, indices: Sequence[int]) -> ImageSamples:
        """The images at `indices` alone, in that order."""
        return replace(self, ids=[self.ids[i] for i in indices], labels=[self.labels[i] for i in indices])

    def read(self, index: int, seed: int | None) -> dict[str, Tensor]:
        """`image` (3, R, R) float32 and `label` () int64."""
        image = image_tensor(self.open(index), self.preprocess, self.augment, seed)
        return {"image": image, "label": torch.tensor(self.labels[index])}

    def open(self, index: int) -> Image.Image:
        """The decoded picture.

        Raises:
            UserError: the file is missing, cut short or no picture.
        """
        return open_picture(self.root / self.ids[index], "image", to_rgb, "Replace or remove the file")


@dataclass(frozen=True)
class ImageSplits:
    """Training, validation and test images, with the classes that they share."""

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages


def image_splits(
    root: Path,
    preprocess: ImagePreprocess,
    *,
    augment: str,
    validation_share: float,
    test_share: float,
    seed: int,
    folds: int = 0,
    fold: int = 0,
) -> ImageSplits:
    """Split a folder: by its `train/`, `val/` and `test/`, or by shares of each class where those are not there.

    A missing `test/` is answered by the validation split; a missing `val/` by a share of `train/`. Shares are drawn a class at
    a time from the names and `seed` alone. With `folds`, training and validation are dealt anew (`image_folds.one_fold`).

    Raises:
        UserError: no such folder, no class folders, an empty class folder, splits with other classes than `train/`, or a class
            with fewer images than folds.
    """
    if not root.is_dir():
        raise UserError(f"data.root {root}: no such folder", "Give the folder that holds one sub-folder of images a class")
    classes, parts = _parts(root, test_share, seed)
    if folds:
        parts["train"], parts["val"] = one_fold(parts["train"] + parts["val"], classes, folds, fold, seed)
    elif not parts["val"]:
        parts["train"], parts["val"] = hold_out(parts["train"], validation_share, seed + 1)
    parts["test"] = parts["test"] or parts["val"]

    def samples(part: str, change: str) -> ImageSamples:
        names, labels = zip(*sorted(parts[part]), strict=True) if parts[part] else ((), ())
        if not names:
            raise UserError(f"data.root {root}: no image is left for {part}", "Raise data.validation_share and data.test_share")
        return ImageSamples(root, names, labels, tuple(classes), preprocess, change)

    return ImageSplits(samples("train", augment), samples("val", "none"), samples("test", "none"))


def _parts(root: Path, test_share: float, seed: int) -> tuple[list[str], dict[str, list[Named]]]:
    """Classes, and the images of the folder's own parts; without such, all are for training but the share for the test."""
    # A class may be called train: only a `train/` that holds class folders itself is a split.
    has_parts = (root / "train").is_dir() and any(child.is_dir() for child in (root / "train").iterdir())
    classes, files = _listing(root / "train" if has_parts else root, root)
    if not has_parts:
        kept, held = hold_out(files, test_share, seed)
        return classes, {"train": kept, "val": [], "test": held}
    parts: dict[str, list[Named]] = {"train": files, "val": [], "test": []}
    for part in ("val", "test"):
        if (root / part).is_dir():
            other, parts[part] = _listing(root / part, root)
            if other != classes:
                odd = sorted(set(other) ^ set(classes))
                raise UserError(f"data.root {root}: {part}/ and train/ differ in classes {', '.join(odd)}", "Make them equal")
    return classes, parts


def _listing(folder: Path, root: Path) -> tuple[list[str], list[Named]]:
    classes = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not classes:
        raise UserError(
            f"data.root {folder}: holds no class folders", "Put the images of each class into a sub-folder of its own"
        )
    files = []
    for label, name in enumerate(classes):
        found = [f for f in sorted((folder / name).rglob("*")) if f.suffix.lower() in SUFFIXES and not f.name.startswith(".")]
        if not found:
            raise UserError(f"class folder {folder / name}: holds no image", "Add images to it, or remove the folder")
        files += [(f.relative_to(root).as_posix(), label) for f in found]
    return classes, files
