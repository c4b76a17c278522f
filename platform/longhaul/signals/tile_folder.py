"""Folders of tiles: `spec_image/YYYYMMDD_HHMMSS/chunk_<name>_000.png`, beside each a `_bboxes.json` with its boxes.

A tile is complete when its JSON is there: the PNG is written first, each under another name and then moved into place. Folders
that Longhaul made also hold `front_end.json`: what the tiles were made with and from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from longhaul.errors import UserError
from longhaul.signals.front_end import FrontEnd
from longhaul.signals.geometry import LEAST_SHARE, LEAST_SIDE_PX

SETTINGS = "front_end.json"
_BOXES = "_bboxes.json"
_NAME = re.compile(r"chunk_(?P<recording>.+)_(?P<number>\d{3,})")
_STAMP = re.compile(r"\d{8}_\d{6}")


class Box(BaseModel):
    """A labelled box in pixels, half open: x to the right, y downwards."""

    model_config = ConfigDict(frozen=True)

    label: str = Field(min_length=1)
    x_min: float = Field(allow_inf_nan=False)
    y_min: float = Field(allow_inf_nan=False)
    x_max: float = Field(allow_inf_nan=False)
    y_max: float = Field(allow_inf_nan=False)


class TileBoxes(BaseModel):
    """What is on a tile: the contents of its `_bboxes.json`."""

    model_config = ConfigDict(frozen=True)

    image: str
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    bboxes: tuple[Box, ...]

    @model_validator(mode="after")
    def _boxes_fit(self) -> Self:
        for number, box in enumerate(self.bboxes):
            if box.x_min >= box.x_max or box.y_min >= box.y_max:
                raise ValueError(f"bboxes[{number}] is empty or inverted: {_place(box)}")
            if box.x_min < 0 or box.y_min < 0 or box.x_max > self.width or box.y_max > self.height:
                raise ValueError(f"bboxes[{number}] is outside the image of {self.width} x {self.height}: {_place(box)}")
        return self


@dataclass(frozen=True)
class Tile:
    """A complete tile on disk.

    Attributes:
        png: the picture.
        boxes: what is on it.
        recording: the name of the recording that it is from.
    """

    png: Path
    boxes: TileBoxes
    recording: str


class Origin(BaseModel):
    """A recording that tiles were made from; one that changed since has another digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample_rate_hz: float
    samples: int
    annotations_sha256: str
    sha512: str | None = None
    """Of its data, as its metadata state it."""


class TileSettings(BaseModel):
    """What the tiles of a folder were made with, and from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    front_end: FrontEnd = FrontEnd()
    chunk_s: float = Field(0.2, gt=0)
    """Length of a chunk."""
    remainder: Literal["half", "drop"] = "half"
    """The end of a recording that fills no chunk: `half` keeps it if it is half a chunk at least, as a tile of its own scale."""
    least_side_px: float = Field(LEAST_SIDE_PX, gt=0)
    """A box thinner than this is left out of the boxes, and counted."""
    least_share: float = Field(LEAST_SHARE, ge=0, le=1)
    """So is one of which a tile shows less than this share."""
    recordings: Mapping[str, Origin] = {}

    @property
    def sample_rates_hz(self) -> tuple[float, ...]:
        """Of the recordings, ascending; a pixel means another band at each."""
        return tuple(sorted({origin.sample_rate_hz for origin in self.recordings.values()}))

    def chunk_samples(self, sample_rate_hz: float) -> int:
        """The length of a chunk in samples."""
        return round(self.chunk_s * sample_rate_hz)

    def keeps_end(self, samples: int, sample_rate_hz: float) -> bool:
        """Whether the end of a recording, of so many samples, is a chunk of its own."""
        least = max(self.chunk_samples(sample_rate_hz) / 2, self.front_end.nfft)
        return self.remainder == "half" and samples >= least


def tile_settings(*, chunk_s: float, nfft: int, hop: int, tile: int, cut: tuple[int, int] = (1, 1)) -> TileSettings:
    """Settings as a user gives them; all others have their defaults.

    Raises:
        UserError: a value that cannot be, with the name of its field.
    """
    front_end = {"nfft": nfft, "hop": hop, "tile": tile, "cut": cut}
    try:
        return TileSettings.model_validate({"front_end": front_end, "chunk_s": chunk_s})
    except ValidationError as error:
        raise UserError(_first(error).removeprefix("front_end: ").removeprefix("front_end."), "Correct it") from None


def tile_path(folder: Path, recording: str, number: int) -> Path:
    """Where tile `number` of a recording lies."""
    return folder / f"chunk_{recording}_{number:03}.png"


def boxes_path(png: Path) -> Path:
    """Where the boxes of a tile lie."""
    return png.with_name(png.stem + _BOXES)


def write_tile(png: Path, pixels: NDArray[np.uint8], boxes: Sequence[Box]) -> None:
    """Write a tile (height, width), the PNG first; whoever sees the JSON sees a complete tile."""
    packed = BytesIO()
    Image.fromarray(pixels).save(packed, format="PNG", compress_level=1)  # noise hardly packs: higher levels only take longer
    height, width = pixels.shape
    content = TileBoxes(image=png.name, width=width, height=height, bboxes=tuple(boxes))
    boxes_path(png).unlink(missing_ok=True)
    write_whole(png, packed.getvalue())
    write_whole(boxes_path(png), (content.model_dump_json(indent=1) + "\n").encode())


def is_complete(png: Path) -> bool:
    """Whether a tile is there with its boxes."""
    return boxes_path(png).is_file() and png.is_file()


def read_tiles(root: Path) -> list[Tile]:
    """Every tile below a folder, by recording and number.

    Args:
        root: the folder of one stamp, `spec_image`, or any folder above.

    Raises:
        UserError: no tiles; a PNG without JSON or the other way round; boxes that are inverted or outside the image; a JSON that
            is about another picture, or one of another size.
    """
    root = Path(root)
    pngs = {png: match for png in root.rglob("chunk_*.png") if (match := _NAME.fullmatch(png.stem))}
    for beside in root.rglob(f"chunk_*{_BOXES}"):
        png = beside.with_name(beside.name.removesuffix(_BOXES) + ".png")
        if png not in pngs and _NAME.fullmatch(png.stem):
            raise UserError(f"tile {beside}: there is no {png.name} beside it", "Cut it anew, or remove the JSON")
    if not pngs:
        raise UserError(
            f"{root}: there are no tiles (chunk_<name>_000.png) below it",
            "Make some: longhaul signals chunk RECORDINGS --out FOLDER",
        )
    order = sorted(pngs, key=lambda png: (png.parent, pngs[png]["recording"], int(pngs[png]["number"])))
    return [Tile(png, _read_boxes(png), pngs[png]["recording"]) for png in order]


def read_front_end(root: Path) -> TileSettings | None:
    """What the tiles below a folder were made with; None if they come from elsewhere, all or some.

    Args:
        root: as for `read_tiles`.

    Raises:
        UserError: a `front_end.json` is damaged, or two of them differ.
    """
    folders = sorted({png.parent for png in Path(root).rglob("chunk_*.png")})
    found = [settings for folder in folders if (settings := read_settings(folder)) is not None]
    if not found or len(found) < len(folders):
        return None
    together = found[0]
    for folder, settings in zip(folders, found, strict=True):
        if difference := settings_difference(together, settings):
            raise UserError(f"{folder / SETTINGS}: {difference} in {folders[0] / SETTINGS}", "Train on folders made alike")
        together = together.model_copy(update={"recordings": {**together.recordings, **settings.recordings}})
    return together


def read_settings(folder: Path) -> TileSettings | None:
    """The `front_end.json` of one folder, or None if there is none.

    Raises:
        UserError: it is damaged.
    """
    file = folder / SETTINGS
    try:
        return TileSettings.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise UserError(f"{file}: {_first(error)}", "Restore the file, or convert into another folder") from None


def write_settings(folder: Path, settings: TileSettings) -> None:
    """Write `front_end.json`, in one move."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / SETTINGS, (settings.model_dump_json(indent=1) + "\n").encode())


def settings_difference(mine: TileSettings, other: TileSettings) -> str | None:
    """The first setting that differs, as `field is x and not y`, or None; recordings do not count."""
    ours, theirs = (_flat(one.model_dump(mode="json", exclude={"recordings"})) for one in (mine, other))
    for field in {**ours, **theirs}:
        if ours.get(field) != theirs.get(field):
            return f"{field} is {theirs.get(field)} and not {ours.get(field)}"
    return None


def stamp_folders(out: Path) -> list[Path]:
    """The stamp folders below `out/spec_image`, oldest first."""
    return sorted(folder for folder in (out / "spec_image").glob("*") if _STAMP.fullmatch(folder.name) and folder.is_dir())


def is_stamp(text: str) -> bool:
    """Whether a text is a folder's name, YYYYMMDD_HHMMSS."""
    return _STAMP.fullmatch(text) is not None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears complete or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Remove what a killed conversion left half-written."""
    for partial in folder.glob(".*.partial"):
        partial.unlink(missing_ok=True)


def _read_boxes(png: Path) -> TileBoxes:
    file = boxes_path(png)
    try:
        boxes = TileBoxes.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"tile {png}: there is no {file.name} beside it", "Convert again to complete the folder, or remove the PNG"
        ) from None
    except ValidationError as error:
        raise UserError(f"tile {file}: {_first(error)}", "Correct the file, or cut the tile anew") from None
    if boxes.image != png.name:
        raise UserError(
            f"tile {file}: image is {boxes.image!r}, and it lies beside {png.name}", "Correct image, or cut the tile anew"
        )
    try:
        with Image.open(png) as picture:  # reads the header alone
            size = picture.size
    except UnidentifiedImageError:
        raise UserError(f"tile {png}: broken (no picture)", "Cut it anew, or remove it and its JSON") from None
    if size != (boxes.width, boxes.height):
        said = f"is {size[0]} x {size[1]} pixels, and its JSON says {boxes.width} x {boxes.height}"
        raise UserError(f"tile {png}: {said}", "Correct width and height, or cut the tile anew")
    return boxes


def _place(box: Box) -> str:
    return f"{box.label!r} x {box.x_min:g} to {box.x_max:g}, y {box.y_min:g} to {box.y_max:g}"


def _first(error: ValidationError) -> str:
    """The first of pydantic's errors in a line."""
    one = error.errors(include_url=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in one["loc"]).lstrip(".")
    message = one["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat
