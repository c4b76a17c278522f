"""Folders of spectrogram tiles (`signals.tile_folder`) as sample sets, split by recording."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from longhaul.data.folds import deal
from longhaul.data.pictures import missing, open_picture
from longhaul.data.preprocess import eight_bit
from longhaul.errors import UserError
from longhaul.recipe.inputs import SpectrogramData
from longhaul.signals.tile_folder import Tile, read_tiles


@dataclass(frozen=True)
class SpectrogramSamples:
    """Tiles on disk with their boxes.

    Attributes:
        root: the folder that `ids` are relative to.
        tiles: what is in the set.
        classes: the labels to detect; a box of another label is left out.
        resolution: side of a read tile, in pixels.
        most_boxes: rows of the padded boxes: the most on any tile of the whole data set.
        mirror: whether reads with a seed may turn time around.
    """

    root: Path
    tiles: Sequence[Tile]
    classes: tuple[str, ...]
    resolution: int
    most_boxes: int
    mirror: bool = False

    def __len__(self) -> int:
        return len(self.tiles)

    @cached_property
    def ids(self) -> Sequence[str]:
        """Paths of the tiles, relative to `root`."""
        return [tile.png.relative_to(self.root).as_posix() for tile in self.tiles]

    @cached_property
    def labels(self) -> Sequence[int]:
        """A number for each tile, equal where the same classes are on it: what a stratified share is drawn by."""
        kinds = [frozenset(box.label for box in tile.boxes.bboxes) for tile in self.tiles]
        order = {kind: number for number, kind in enumerate(sorted(set(kinds), key=sorted))}
        return [order[kind] for kind in kinds]

    @cached_property
    def recordings(self) -> Sequence[str]:
        """The recordings that the tiles are from, sorted."""
        return sorted({tile.recording for tile in self.tiles})

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, sizes in bytes and boxes.

        Raises:
            UserError: a file is missing.
        """
        digest = hashlib.sha256(f"{self.resolution}|{'|'.join(self.classes)}\n".encode())
        for name, tile in zip(self.ids, self.tiles, strict=True):
            try:
                size = tile.png.stat().st_size
            except FileNotFoundError:
                raise missing(tile.png, "tile") from None
            digest.update(f"{name}\0{size}\0{tile.boxes.model_dump_json()}\n".encode())
        return digest.hexdigest()

    def at(self, indices: Sequence[int]) -> SpectrogramSamples:
        """The tiles at `indices` alone, in that order."""
        return replace(self, tiles=[self.tiles[index] for index in indices])

    def read(self, index: int, seed: int | None) -> dict[str, Tensor]:
        """`image` (1, R, R) float32 in 0..1, `boxes` (M, 4) float32 in its pixels, `labels` (M,) int64: 0 is padding."""
        tile, side = self.tiles[index], self.resolution
        pixels = F.pil_to_tensor(self._grey(index))
        if pixels.shape[-2:] != (side, side):
            pixels = F.resize(pixels, [side, side], InterpolationMode.BILINEAR, antialias=True)
        image = F.to_dtype(pixels, torch.float32, scale=True)
        boxes, labels = torch.zeros(self.most_boxes, 4), torch.zeros(self.most_boxes, dtype=torch.int64)
        known = [box for box in tile.boxes.bboxes if box.label in self.classes]
        for row, box in enumerate(known):
            boxes[row] = torch.tensor([box.x_min, box.y_min, box.x_max, box.y_max])
            labels[row] = self.classes.index(box.label) + 1
        boxes *= torch.tensor([side / tile.boxes.width, side / tile.boxes.height] * 2)
        if self.mirror and seed is not None and seed % 2:
            image = image.flip(-1)
            boxes[: len(known)] = boxes[: len(known)] * torch.tensor([-1.0, 1, -1, 1]) + torch.tensor([side, 0, side, 0])
            boxes = boxes[:, [2, 1, 0, 3]]
        return {"image": image, "boxes": boxes, "labels": labels}

    def open(self, index: int) -> Image.Image:
        """The tile as a picture, its boxes drawn on it.

        Raises:
            UserError: the file is missing, or no picture.
        """
        picture = self._grey(index).convert("RGB")
        pen = ImageDraw.Draw(picture)
        for box in self.tiles[index].boxes.bboxes:
            pen.rectangle((box.x_min, box.y_min, box.x_max, box.y_max), outline=(255, 64, 64))
        return picture

    def _grey(self, index: int) -> Image.Image:
        tile = self.tiles[index]
        fix = "Cut it anew with `longhaul signals chunk`, or remove it and its JSON"
        picture = open_picture(tile.png, "tile", lambda opened: eight_bit(opened).convert("L"), fix)
        if picture.size != (tile.boxes.width, tile.boxes.height):
            said = f"is {picture.size[0]} x {picture.size[1]} pixels, and its JSON says {tile.boxes.width} x {tile.boxes.height}"
            raise UserError(f"tile {tile.png}: {said}", "Correct width and height, or cut the tile anew")
        return picture


@dataclass(frozen=True)
class SpectrogramSplits:
    """Training, validation and test tiles; no recording is in two of them, but where test stands in for validation."""

    train: SpectrogramSamples
    validation: SpectrogramSamples
    test: SpectrogramSamples


def spectrogram_splits(data: SpectrogramData, seed: int) -> SpectrogramSplits:
    """The tiles below `data.root`, split by recording so that every label is in every part in its share.

    Raises:
        UserError: no tiles, damaged ones, a label that is neither a class nor ignored, or fewer recordings than parts.
    """
    root = Path(data.root).expanduser()
    tiles = read_tiles(root)
    _check_labels(tiles, data, root)
    most = max([sum(box.label in data.classes for box in tile.boxes.bboxes) for tile in tiles] + [1])
    train, validation, test = _recordings(tiles, data, seed, root)

    def samples(names: Sequence[str], *, mirror: bool = False) -> SpectrogramSamples:
        chosen = set(names)
        mine = [tile for tile in tiles if tile.recording in chosen]
        return SpectrogramSamples(root, mine, data.classes, data.resolution, most, mirror)

    return SpectrogramSplits(samples(train, mirror=data.augment == "mirror"), samples(validation), samples(test or validation))


def _recordings(tiles: Sequence[Tile], data: SpectrogramData, seed: int, root: Path) -> tuple[list[str], list[str], list[str]]:
    """Names for training, validation and test."""
    groups: dict[str, Counter[str]] = {}
    for tile in tiles:
        groups.setdefault(tile.recording, Counter()).update(box.label for box in tile.boxes.bboxes if box.label in data.classes)
    parts = [1 / data.folds] * data.folds if data.folds else [1 - data.validation_share, data.validation_share]
    if len(groups) < len(parts) + (data.test_share > 0):
        asked = f"{data.folds} folds" if data.folds else "a training and a validation split"
        held = " and a test split" if data.test_share else ""
        fix = "Add recordings, lower data.folds" + (", or set data.test_share to 0" if data.test_share else "")
        raise UserError(f"data.root {root}: {len(groups)} recordings cannot be dealt into {asked}{held}", fix)
    test: list[str] = []
    if data.test_share:
        # As many as asked for, but so that each of the other parts gets one.
        share = min(max(data.test_share, 1 / len(groups)), 1 - len(parts) / len(groups))
        _, test = deal(groups, [1 - share, share], seed)
        test = test[: len(groups) - len(parts)]
    rest = {name: labels for name, labels in groups.items() if name not in test}
    dealt = deal(rest, parts, seed + 1)
    validation = dealt[data.fold if data.folds else 1]
    return [name for name in rest if name not in validation], validation, test


def _check_labels(tiles: Sequence[Tile], data: SpectrogramData, root: Path) -> None:
    known = {*data.classes, *data.ignored}
    for tile in tiles:
        for number, box in enumerate(tile.boxes.bboxes):
            if box.label not in known:
                near = difflib.get_close_matches(box.label, known, n=1, cutoff=0.6)
                hint = f"correct it to {near[0]!r}, or " if near else ""
                where = f"tile {tile.png}: bboxes[{number}].label {box.label!r}"
                fix = f"{hint}add it to data.classes or to data.ignored"
                raise UserError(f"{where}: is neither a class nor ignored", fix[0].upper() + fix[1:])
    missing = [label for label in data.classes if not any(box.label == label for t in tiles for box in t.boxes.bboxes)]
    if missing:
        found = sorted({box.label for tile in tiles for box in tile.boxes.bboxes})
        has = f"It has {', '.join(map(repr, found))}" if found else "It has no boxes at all"
        raise UserError(f"data.classes {missing[0]!r}: no box below {root} has this label", has)
