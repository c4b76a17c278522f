"""The folder format: written whole, read from anywhere, and what is wrong with it named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longhaul.errors import UserError
from longhaul.signals.front_end import FrontEnd
from longhaul.signals.tile_folder import (
    Box,
    Origin,
    TileSettings,
    boxes_path,
    is_complete,
    read_front_end,
    read_tiles,
    remove_partials,
    settings_difference,
    tile_path,
    tile_settings,
    write_settings,
    write_tile,
)

PIXELS = np.arange(32 * 48, dtype=np.uint32).reshape(32, 48).astype(np.uint8)
BOX = Box(label="wifi", x_min=1.25, y_min=2, x_max=48, y_max=32)


def folder(root: Path, stamp: str = "20260102_030405") -> Path:
    made = root / "spec_image" / stamp
    made.mkdir(parents=True)
    return made


def test_a_tile_comes_back_as_it_was_written(tmp_path: Path) -> None:
    png = tile_path(folder(tmp_path), "a_b_001", 7)
    write_tile(png, PIXELS, [BOX])
    assert png.name == "chunk_a_b_001_007.png"
    assert is_complete(png)
    for root in (png.parent, png.parent.parent, tmp_path):
        (tile,) = read_tiles(root)
        assert (tile.png, tile.recording, tile.boxes.bboxes) == (png, "a_b_001", (BOX,))
    with Image.open(png) as picture:
        assert picture.mode == "L"
        assert np.array_equal(np.asarray(picture), PIXELS)
    written = json.loads(boxes_path(png).read_text())
    assert written == {
        "image": png.name,
        "width": 48,
        "height": 32,
        "bboxes": [{"label": "wifi", "x_min": 1.25, "y_min": 2.0, "x_max": 48.0, "y_max": 32.0}],
    }
    assert sorted(path.name for path in png.parent.iterdir()) == ["chunk_a_b_001_007.png", "chunk_a_b_001_007_bboxes.json"]


def test_tiles_come_by_recording_and_number_past_a_thousand(tmp_path: Path) -> None:
    where = folder(tmp_path)
    for recording, number in (("b", 0), ("a", 1000), ("a", 101), ("a", 0)):
        write_tile(tile_path(where, recording, number), PIXELS, [])
    assert [tile.png.stem for tile in read_tiles(tmp_path)] == ["chunk_a_000", "chunk_a_101", "chunk_a_1000", "chunk_b_000"]


def test_folders_made_by_others_are_read(tmp_path: Path) -> None:
    where = folder(tmp_path)
    Image.fromarray(PIXELS).save(where / "chunk_theirs_000.png")
    (where / "preview.png").write_bytes(b"")
    box = {"label": "wifi", "x_min": 1, "y_min": 2, "x_max": 3, "y_max": 4, "score": 0.9}
    theirs = {"image": "chunk_theirs_000.png", "width": 48, "height": 32, "bboxes": [box], "author": "somebody"}
    (where / "chunk_theirs_000_bboxes.json").write_text(json.dumps(theirs))
    (tile,) = read_tiles(tmp_path)
    assert tile.boxes.bboxes == (Box(label="wifi", x_min=1, y_min=2, x_max=3, y_max=4),)
    assert read_front_end(tmp_path) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"image": "chunk_b_000.png"},
            r"chunk_a_000_bboxes.json: image is 'chunk_b_000.png', and it lies beside chunk_a_000.png",
        ),
        ({"width": 49}, r"chunk_a_000.png: is 48 x 32 pixels, and its JSON says 49 x 32"),
        ({"height": 31, "bboxes": []}, r"chunk_a_000.png: is 48 x 32 pixels, and its JSON says 48 x 31"),
        ({"bboxes": [{**BOX.model_dump(), "x_max": 49}]}, r"bboxes\[0\] is outside the image of 48 x 32: 'wifi' x 1.25 to 49"),
        ({"bboxes": [{**BOX.model_dump(), "y_min": -1}]}, r"bboxes\[0\] is outside the image"),
        (
            {"bboxes": [BOX.model_dump(), {**BOX.model_dump(), "x_max": 1}]},
            r"bboxes\[1\] is empty or inverted: 'wifi' x 1.25 to 1",
        ),
        ({"bboxes": [{**BOX.model_dump(), "label": ""}]}, r"bboxes\[0\].label: "),
        ({"bboxes": [{"label": "wifi"}]}, r"bboxes\[0\].x_min: Field required"),
        ({"bboxes": [{**BOX.model_dump(), "x_max": float("nan")}]}, r"bboxes\[0\].x_max: "),
    ],
)
def test_wrong_json_is_named_with_its_field(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    png = tile_path(folder(tmp_path), "a", 0)
    write_tile(png, PIXELS, [BOX])
    beside = boxes_path(png)
    beside.write_text(json.dumps({**json.loads(beside.read_text()), **changes}))
    with pytest.raises(UserError, match=words):
        read_tiles(tmp_path)


def test_halves_of_tiles_are_named(tmp_path: Path) -> None:
    png = tile_path(folder(tmp_path), "a", 0)
    with pytest.raises(UserError, match=r"there are no tiles"):
        read_tiles(tmp_path)
    write_tile(png, PIXELS, [])
    whole = boxes_path(png).read_bytes()
    boxes_path(png).unlink()
    assert not is_complete(png)
    with pytest.raises(UserError, match=r"chunk_a_000.png: there is no chunk_a_000_bboxes.json beside it"):
        read_tiles(tmp_path)
    boxes_path(png).write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"chunk_a_000_bboxes.json: Invalid JSON"):
        read_tiles(tmp_path)
    boxes_path(png).write_bytes(whole)
    png.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"chunk_a_000.png: broken"):
        read_tiles(tmp_path)
    png.unlink()
    with pytest.raises(UserError, match=r"chunk_a_000_bboxes.json: there is no chunk_a_000.png beside it"):
        read_tiles(tmp_path)


def test_a_write_that_fails_leaves_no_tile_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    png = tile_path(folder(tmp_path), "a", 0)
    write_tile(png, PIXELS, [])

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_tile(png, PIXELS.T, [])
    assert not is_complete(png)  # the old boxes do not stand beside a picture that may be new
    assert [path.name for path in png.parent.iterdir()] == [png.name]


def test_what_a_killed_writer_left_is_no_tile_and_is_removed(tmp_path: Path) -> None:
    where = folder(tmp_path)
    write_tile(tile_path(where, "a", 0), PIXELS, [])
    (where / ".chunk_a_001.png.17.partial").write_bytes(b"half")
    assert len(read_tiles(where)) == 1
    remove_partials(where)
    assert len(list(where.iterdir())) == 2


def test_settings_come_back_and_differences_are_named(tmp_path: Path) -> None:
    origin = Origin(sample_rate_hz=2e6, samples=10, annotations_sha256="0")
    mine = TileSettings(front_end=FrontEnd(nfft=512, hop=256), recordings={"a": origin})
    for stamp in ("20260101_000000", "20260102_000000"):
        where = folder(tmp_path, stamp)
        write_settings(where, mine.model_copy(update={"recordings": {stamp: origin}}))
        write_tile(tile_path(where, stamp, 0), PIXELS, [])
    together = read_front_end(tmp_path)
    assert together is not None
    assert together.front_end == mine.front_end
    assert together.sample_rates_hz == (2e6,)
    assert sorted(together.recordings) == ["20260101_000000", "20260102_000000"]
    write_settings(where, TileSettings(front_end=FrontEnd(nfft=1024, hop=256)))
    with pytest.raises(UserError, match=r"20260102_000000/front_end.json: front_end.nfft is 1024 and not 512"):
        read_front_end(tmp_path)
    (where / "front_end.json").write_text('{"chunk_s": -1}')
    with pytest.raises(UserError, match=r"front_end.json: chunk_s: Input should be greater than 0"):
        read_front_end(tmp_path)
    (where / "front_end.json").unlink()
    assert read_front_end(tmp_path) is None
    assert settings_difference(mine, mine.model_copy(update={"recordings": {}})) is None
    assert settings_difference(mine, mine.model_copy(update={"chunk_s": 0.1})) == "chunk_s is 0.1 and not 0.2"


def test_settings_of_a_user_that_cannot_be_are_named() -> None:
    with pytest.raises(UserError, match=r"^nfft 1000 is no power of two"):
        tile_settings(chunk_s=0.2, nfft=1000, hop=500, tile=64)
    with pytest.raises(UserError, match=r"^tile: Input should be greater"):
        tile_settings(chunk_s=0.2, nfft=1024, hop=512, tile=1)
    with pytest.raises(UserError, match=r"^chunk_s: "):
        tile_settings(chunk_s=0.0, nfft=1024, hop=512, tile=64)
