"""CIFAR-10 as published for Python, as sample sets.

Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", University of Toronto (2009).

The folder `cifar-10-batches-py` holds `data_batch_1` to `data_batch_5`, `test_batch` and `batches.meta`, each a pickle of a
dictionary; `data` is (10000, 3072) uint8: a row is an image, its red, green and blue planes of 32 x 32 one after another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from longhaul.data.augment import image_tensor
from longhaul.data.image_folds import hold_out, one_fold
from longhaul.data.images import ImageSplits
from longhaul.data.plain_pickle import load_plain, stored_bytes
from longhaul.data.preprocess import ImagePreprocess
from longhaul.errors import UserError
from longhaul.recipe.inputs import Cifar10Data

FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
TRAINING = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST, META = "test_batch", "batches.meta"
_SIDE = 32
_AGAIN = f"Unpack {ARCHIVE} again"


@dataclass(frozen=True, eq=False)
class Cifar10Samples:
    """Images of CIFAR-10; all splits and all loader processes share one tensor of pixels.

    Attributes:
        pixels: (60000, 3, 32, 32) uint8, the whole data set: torch hands a tensor to another process without copying it.
        rows: the row of each sample in `pixels`.
        ids: `<batch>/<file name>`, as the batches have it; a name that a batch has twice goes on with `#2`.
        labels: the class index of each.
        classes: class names by index.
        preprocess: picture to tensor.
        contents: SHA-256 over the files that `pixels` were read from.
        augment: as in `ImageSamples`.
    """

    pixels: Tensor
    rows: Sequence[int]
    ids: Sequence[str]
    labels: Sequence[int]
    classes: tuple[str, ...]
    preprocess: ImagePreprocess
    contents: str
    augment: str = "none"

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the contents of all files, and the ids."""
        return hashlib.sha256("\n".join([self.contents, *self.ids]).encode()).hexdigest()

    def at(self, indices: Sequence[int]) -> Cifar10Samples:
        """The images at `indices` alone, in that order."""
        ids, labels = [self.ids[index] for index in indices], [self.labels[index] for index in indices]
        return replace(self, rows=[self.rows[index] for index in indices], ids=ids, labels=labels)

    def read(self, index: int, seed: int | None) -> dict[str, Tensor]:
        """`image` (3, R, R) float32 and `label` () int64."""
        image = image_tensor(self.open(index), self.preprocess, self.augment, seed)
        return {"image": image, "label": torch.tensor(self.labels[index])}

    def open(self, index: int) -> Image.Image:
        """The picture, 32 x 32 RGB."""
        return Image.fromarray(self.pixels[self.rows[index]].permute(1, 2, 0).numpy())


def cifar10_splits(data: Cifar10Data, preprocess: ImagePreprocess, seed: int) -> ImageSplits:
    """Training and validation from the five batches, by share or by fold; test is the test batch.

    Raises:
        UserError: the folder or one of its files is missing, cut short, hostile or not what it should be, or a class has fewer
            images than there are folds.
    """
    whole = _read_all(Path(data.root).expanduser(), preprocess)
    place = {name: index for index, name in enumerate(whole.ids)}
    named = list(zip(whole.ids, whole.labels, strict=True))
    training = [image for image in named if not image[0].startswith(f"{TEST}/")]
    if data.folds:
        kept, held = one_fold(training, whole.classes, data.folds, data.fold, seed)
    else:
        kept, held = hold_out(training, data.validation_share, seed + 1)
    if not held:
        raise UserError(f"data.root {data.root}: no image is left for validation", "Raise data.validation_share")
    train, validation = (whole.at(sorted(place[name] for name, _ in part)) for part in (kept, held))
    return ImageSplits(replace(train, augment=data.augment), validation, whole.at(range(len(training), len(named))))


def _read_all(root: Path, preprocess: ImagePreprocess) -> Cifar10Samples:
    """All batches as one set, those for training first."""
    folder = _folder(root)
    digest = hashlib.sha256()
    classes = _classes(_content(folder / META, digest), folder / META)
    pixels, ids, labels = [], [], []
    for name in (*TRAINING, TEST):
        batch = _batch(_content(folder / name, digest), folder / name, len(classes))
        pixels.append(batch.pixels)
        ids += _unique(name, batch.names)
        labels += batch.labels
    whole = torch.from_numpy(np.concatenate(pixels)).view(-1, 3, _SIDE, _SIDE)
    return Cifar10Samples(whole, range(len(ids)), ids, labels, classes, preprocess, digest.hexdigest())


def _folder(root: Path) -> Path:
    folder = root / FOLDER if (root / FOLDER).is_dir() else root
    if (folder / META).is_file() or any((folder / name).is_file() for name in (*TRAINING, TEST)):
        return folder
    found = "holds no batches of CIFAR-10" if root.is_dir() else "no such folder"
    for archive in (root / ARCHIVE, root.parent / ARCHIVE):
        if archive.is_file():
            raise UserError(f"data.root {root}: {found}", f"Unpack it: tar -xzf {archive} -C {archive.parent}")
    fix = f"Give the folder {FOLDER}, or the one that holds it: what {ARCHIVE}, the python version of CIFAR-10, unpacks to"
    raise UserError(f"data.root {root}: {found}", fix)


def _content(path: Path, digest: hashlib._Hash) -> dict[bytes, Any]:
    """The dictionary in a file, whose bytes go into `digest` too."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"CIFAR-10 {path}: missing", _AGAIN) from None
    digest.update(f"{path.name}\0{len(content)}\n".encode())
    digest.update(content)
    try:
        found = load_plain(content)
    except ValueError as error:
        raise _broken(path, str(error)) from None
    if not isinstance(found, dict):
        raise _broken(path, "it holds no dictionary")
    return found


@dataclass(frozen=True)
class _Batch:
    """One file: pixels (N, 3072), and a name and a label of each."""

    pixels: NDArray[np.uint8]
    names: list[str]
    labels: list[int]


def _batch(content: dict[bytes, Any], path: Path, classes: int) -> _Batch:
    try:
        pixels = stored_bytes(content.get(b"data"))
    except ValueError as error:
        raise _broken(path, f"data: {error}") from None
    if pixels.ndim != 2 or pixels.shape[1] != 3 * _SIDE**2 or not len(pixels):
        shape = " x ".join(map(str, pixels.shape))
        raise _broken(path, f"data: it is {shape}, and should have rows of {3 * _SIDE**2} values")
    labels = _list(content, b"labels", int, path)
    names = [name.decode("utf-8", "replace") for name in _list(content, b"filenames", bytes, path)]
    for what, column in (("labels", labels), ("filenames", names)):
        if len(column) != len(pixels):
            raise _broken(path, f"it has {len(pixels)} images and {len(column)} {what}")
    for row, label in enumerate(labels):
        if not 0 <= label < classes:
            raise _broken(path, f"labels[{row}] is {label}, and the classes of {META} count from 0 to {classes - 1}")
    return _Batch(pixels, names, labels)


def _classes(content: dict[bytes, Any], path: Path) -> tuple[str, ...]:
    names = tuple(name.decode("utf-8", "replace") for name in _list(content, b"label_names", bytes, path))
    if len(set(names)) < len(names) or not names:
        raise _broken(path, "label_names: it has none, or one of them twice")
    return names


def _list(content: dict[bytes, Any], key: bytes, kind: type, path: Path) -> list[Any]:
    found = content.get(key)
    if not isinstance(found, list) or not all(type(value) is kind for value in found):
        what = "numbers" if kind is int else "names"
        raise _broken(path, f"{key.decode()}: it is no list of {what}")
    return found


def _unique(batch: str, names: Sequence[str]) -> list[str]:
    """`<batch>/<name>`, with `#2`, `#3` ... behind what has come before."""
    given: dict[str, None] = {}  # in order, and quick to look up
    for name in names:
        unique, times = f"{batch}/{name}", 1
        while unique in given:
            times += 1
            unique = f"{batch}/{name}#{times}"
        given[unique] = None
    return list(given)


def _broken(path: Path, reason: str) -> UserError:
    return UserError(f"CIFAR-10 {path}: broken ({reason})", _AGAIN)
