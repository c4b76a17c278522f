"""Folders of images, one sub-folder a class, as sample sets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from longhaul.data.pictures import missing, open_picture
from longhaul.data.preprocess import ImagePreprocess, to_rgb
from longhaul.errors import UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


@dataclass(frozen=True)
class ImageSamples:
    """Labelled images on disk.

    Attributes:
        root: the folder that `ids` are relative to.
        ids: file names, sorted.
        labels: the class index of each.
        classes: class names by index.
        preprocess: picture to tensor.
        augment: `none`, `shift`, `flip` or `crop` (`recipe.schema`), for reads with a seed.
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
        """SHA-256 over names and sizes in bytes (contents of a million images would take minutes to hash).

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
        image = self.open(index)
        if seed is None or self.augment == "none":
            pixels = self.preprocess.fit(image)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)  # not torch.manual_seed: that would reset the GPU too
                pixels = self._augmented(image)
        return {"image": self.preprocess.normalise(pixels), "label": torch.tensor(self.labels[index])}

    def open(self, index: int) -> Image.Image:
        """The decoded picture.

        Raises:
            UserError: the file is missing, cut short or no picture.
        """
        return open_picture(self.root / self.ids[index], "image", to_rgb, "Replace or remove the file")

    def _augmented(self, image: Image.Image) -> Tensor:
        side = self.preprocess.resolution
        if self.augment == "crop":
            pixels: Tensor = v2.RandomResizedCrop(side, antialias=True)(F.pil_to_tensor(image))
        else:
            turn = v2.RandomAffine(
                degrees=10, translate=(0.08, 0.08), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR
            )
            pixels = turn(self.preprocess.fit(image))
        if self.augment != "shift":
            pixels = v2.RandomHorizontalFlip()(pixels)
        return pixels


@dataclass(frozen=True)
class ImageSplits:
    """Training, validation and test images, with the classes that they share."""

    train: ImageSamples
    validation: ImageSamples
    test: ImageSamples


def image_splits(
    root: Path, preprocess: ImagePreprocess, *, augment: str, validation_share: float, test_share: float, seed: int
) -> ImageSplits:
    """Split a folder: by its `train/`, `val/` and `test/`, or by shares of each class where those are not there.

    A missing `test/` is answered by `val/`; a missing `val/` by a share of `train/`. Shares are drawn a class at a time from
    the names and `seed` alone.

    Raises:
        UserError: no such folder, no class folders, an empty class folder, or splits with other classes than `train/`.
    """
    if not root.is_dir():
        raise UserError(f"data.root {root}: no such folder", "Give the folder that holds one sub-folder of images a class")
    # A class may be called train: only a `train/` that holds class folders itself is a split.
    has_parts = (root / "train").is_dir() and any(child.is_dir() for child in (root / "train").iterdir())
    classes, files = _listing(root / "train" if has_parts else root, root)
    parts: dict[str, list[tuple[str, int]]] = {"train": files, "val": [], "test": []}
    if has_parts:
        for part in ("val", "test"):
            if (root / part).is_dir():
                other, parts[part] = _listing(root / part, root)
                if other != classes:
                    odd = sorted(set(other) ^ set(classes))
                    raise UserError(f"data.root {root}: {part}/ and train/ differ in classes {', '.join(odd)}", "Make them equal")
    if not parts["test"] and not has_parts:
        parts["train"], parts["test"] = _hold_out(parts["train"], test_share, seed)
    if not parts["val"]:
        parts["train"], parts["val"] = _hold_out(parts["train"], validation_share, seed + 1)
    parts["test"] = parts["test"] or parts["val"]

    def samples(part: str, change: str) -> ImageSamples:
        names, labels = zip(*sorted(parts[part]), strict=True) if parts[part] else ((), ())
        if not names:
            raise UserError(f"data.root {root}: no image is left for {part}", "Raise data.validation_share and data.test_share")
        return ImageSamples(root, names, labels, tuple(classes), preprocess, change)

    return ImageSplits(samples("train", augment), samples("val", "none"), samples("test", "none"))


def _listing(folder: Path, root: Path) -> tuple[list[str], list[tuple[str, int]]]:
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


def _hold_out(files: list[tuple[str, int]], share: float, seed: int) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """The same share of each class, at least one image of each where a class has two or more."""
    kept, held = [], []
    for label in sorted({label for _, label in files}):
        names = sorted(name for name, its in files if its == label)
        keys = [hashlib.sha256(f"{seed}|{name}".encode()).hexdigest() for name in names]
        drawn = [names[i] for i in np.argsort(keys)]
        count = min(max(round(share * len(names)), 1), len(names) - 1) if share else 0
        held += [(name, label) for name in drawn[:count]]
        kept += [(name, label) for name in drawn[count:]]
    return kept, held
