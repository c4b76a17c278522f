"""Tiles as samples: boxes follow the resize and the mirror, recordings are never on both sides, bad data are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_tiles import CLASSES, draw_tiles, write_tile

from longhaul.data.spectrograms import SpectrogramSamples, spectrogram_splits
from longhaul.errors import UserError
from longhaul.recipe.inputs import SpectrogramData


def _data(root: Path, **changes: object) -> SpectrogramData:
    return SpectrogramData.model_validate(
        {"kind": "spectrograms", "root": str(root), "classes": CLASSES, "resolution": 64, "test_share": 0.2, **changes}
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_tiles(tmp_path_factory.mktemp("tiles"), recordings=12, chunks=3)


def _one(tmp_path: Path, box: tuple[int, int, int, int], **changes: object) -> SpectrogramSamples:
    """A black tile of 64 x 64 with one white box, in each of three recordings."""
    for recording in range(3):
        pixels = np.zeros((64, 64))
        x_min, y_min, x_max, y_max = box
        pixels[y_min:y_max, x_min:x_max] = 255
        named = {"label": "wifi", "x_min": x_min, "y_min": y_min, "x_max": x_max, "y_max": y_max}
        write_tile(tmp_path, f"chunk_r{recording}_000", pixels, [named])
    return spectrogram_splits(_data(tmp_path, classes=("wifi",), **changes), 0).train


@pytest.mark.parametrize("resolution", [32, 64, 128])
def test_boxes_stay_on_what_they_frame_in_every_size(tmp_path: Path, resolution: int) -> None:
    sample = _one(tmp_path, (8, 16, 40, 24), resolution=resolution).read(0, None)
    scale = resolution / 64
    assert sample["boxes"].tolist() == [[8 * scale, 16 * scale, 40 * scale, 24 * scale]]
    rows, columns = torch.nonzero(sample["image"][0] > 0.5, as_tuple=True)
    assert (int(columns.min()), int(columns.max()) + 1) == (8 * scale, 40 * scale)
    assert (int(rows.min()), int(rows.max()) + 1) == (16 * scale, 24 * scale)


def test_the_mirror_turns_tile_and_boxes_alike(tmp_path: Path) -> None:
    samples = _one(tmp_path, (8, 16, 40, 24), augment="mirror")
    plain, mirrored = samples.read(0, 2), samples.read(0, 3)
    assert torch.equal(plain["image"], samples.read(0, None)["image"])
    assert torch.equal(mirrored["image"], plain["image"].flip(-1))
    assert mirrored["boxes"].tolist() == [[24, 16, 56, 24]]
    columns = torch.nonzero(mirrored["image"][0] > 0.5)[:, 1]
    assert (int(columns.min()), int(columns.max()) + 1) == (24, 56)


def test_samples_stack_however_many_boxes_they_have(root: Path) -> None:
    samples = spectrogram_splits(_data(root), 0).train
    read = [samples.read(index, None) for index in range(len(samples))]
    assert len({int((sample["labels"] > 0).sum()) for sample in read}) > 1
    assert {tuple(sample["boxes"].shape) for sample in read} == {(3, 4)}
    for sample in read:
        assert float(sample["boxes"][sample["labels"] == 0].sum()) == 0.0


def test_no_recording_is_on_two_sides_in_any_fold(root: Path) -> None:
    seen: list[str] = []
    for fold in range(3):
        splits = spectrogram_splits(_data(root, folds=3, fold=fold), 0)
        parts = [set(part.recordings) for part in (splits.train, splits.validation, splits.test)]
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]
        assert len(set.union(*parts)) == 12
        seen += splits.validation.recordings
    assert len(seen) == len(set(seen)) == 12 - len(parts[2])  # each recording is held out in one fold


def test_the_test_recordings_are_the_same_in_every_fold(root: Path) -> None:
    tests = [spectrogram_splits(_data(root, folds=3, fold=fold), 0).test.ids for fold in range(3)]
    assert tests[0] == tests[1] == tests[2]
    assert any(spectrogram_splits(_data(root, folds=3), seed).test.ids != tests[0] for seed in range(1, 6))  # the seed deals


def test_the_fingerprint_follows_boxes_and_size(root: Path, tmp_path: Path) -> None:
    first = _one(tmp_path, (8, 16, 40, 24)).fingerprint
    assert _one(tmp_path, (8, 16, 40, 24)).fingerprint == first
    assert _one(tmp_path, (8, 16, 41, 24)).fingerprint != first
    assert _one(tmp_path, (8, 16, 40, 24), resolution=32).fingerprint != first


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"folds": 4}, "4 recordings cannot be dealt into 4 folds and a test split.*lower data.folds"),
        ({"folds": 5, "test_share": 0}, "4 recordings cannot be dealt into 5 folds.*Add recordings"),
        ({"classes": ("wifi",)}, r"chunk_rec0_000.png: bboxes\[\d\].label 'bluetooth': is neither a class nor ignored"),
        ({"classes": ("wifi", "bluetoth")}, "Correct it to 'bluetoth', or add it to data.classes"),
        ({"classes": (*CLASSES, "lte_uplink")}, "'lte_uplink': no box below .* has this label.*'bluetooth', 'wifi'"),
    ],
)
def test_data_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    root = draw_tiles(tmp_path / "few", recordings=4, chunks=4, seed=1)
    with pytest.raises(UserError, match=words):
        spectrogram_splits(_data(root, **changes), 0)


def test_ignored_labels_are_left_out(root: Path) -> None:
    samples = spectrogram_splits(_data(root, classes=("wifi",), ignored=("bluetooth",)), 0).train
    assert {int(label) for index in range(len(samples)) for label in samples.read(index, None)["labels"]} == {0, 1}


def test_a_broken_tile_and_one_of_another_size_are_named(tmp_path: Path) -> None:
    samples = _one(tmp_path, (8, 16, 40, 24))
    png, beside = samples.tiles[0].png, Path(str(samples.tiles[0].png).replace(".png", "_bboxes.json"))
    whole = png.read_bytes()
    png.write_bytes(whole[:60])
    with pytest.raises(UserError, match=rf"{png.name}: broken"):
        samples.read(0, None)
    png.unlink()
    with pytest.raises(UserError, match=rf"{png.name}: missing"):
        samples.read(0, None)
    png.write_bytes(whole)
    beside.write_text(json.dumps({**json.loads(beside.read_text()), "width": 128}))
    with pytest.raises(UserError, match=rf"{png.name}.*64.*128"):
        _ = [one.read(0, None) for one in [spectrogram_splits(_data(tmp_path, classes=("wifi",)), 0).train]]


def test_a_tile_of_sixteen_bits_keeps_its_grey(tmp_path: Path) -> None:
    from PIL import Image

    samples = _one(tmp_path, (8, 16, 40, 24))
    Image.fromarray(np.full((64, 64), 0x8000, dtype=np.uint16)).save(samples.tiles[0].png)
    assert float(samples.read(0, None)["image"].mean()) == pytest.approx(128 / 255)
