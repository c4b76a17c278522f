"""Folders of images: what is refused and how, how parts are drawn, and that augmentation is a function of its seed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from longhaul.data.images import ImageSamples, ImageSplits, image_splits
from longhaul.data.preprocess import ImagePreprocess
from longhaul.errors import UserError

PREPROCESS = ImagePreprocess(resolution=12)


def picture(path: Path, seed: int = 0, side: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 3, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def folder(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        for number in range(count):
            picture(root / name / f"{number:03d}.png", number)
    return root


def split(
    root: Path, *, augment: str = "none", validation: float = 0.2, test: float = 0.2, seed: int = 0, folds: int = 0, fold: int = 0
) -> ImageSplits:
    shares = {"validation_share": validation, "test_share": test}
    return image_splits(root, PREPROCESS, augment=augment, seed=seed, folds=folds, fold=fold, **shares)


def parts(splits: ImageSplits) -> tuple[set[str], set[str], set[str]]:
    return set(splits.train.ids), set(splits.validation.ids), set(splits.test.ids)


# ---- what is refused -------------------------------------------------------------------------------------------------


def refusal(root: Path, **options: float) -> str:
    with pytest.raises(UserError) as caught:
        split(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere").startswith(f"data.root {tmp_path / 'nowhere'}: no such folder. Give the folder")


def test_images_without_class_folders_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "loose.png")
    (tmp_path / ".hidden").mkdir()
    assert (
        refusal(tmp_path)
        == f"data.root {tmp_path}: holds no class folders. Put the images of each class into a sub-folder of its own"
    )


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    folder(tmp_path, {"cat": 3, "dog": 0, "eel": 3})
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "notes.txt").write_text("none yet")
    assert refusal(tmp_path) == f"class folder {tmp_path / 'dog'}: holds no image. Add images to it, or remove the folder"


@pytest.mark.parametrize("part", ["val", "test"])
def test_parts_with_other_classes_are_refused_naming_them(tmp_path: Path, part: str) -> None:
    folder(tmp_path / "train", {"cat": 2, "dog": 2})
    folder(tmp_path / part, {"cat": 2, "eel": 2})
    assert refusal(tmp_path) == f"data.root {tmp_path}: {part}/ and train/ differ in classes dog, eel. Make them equal"


def test_shares_that_leave_a_part_empty_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, {"cat": 4, "dog": 4})
    assert "no image is left for val" in refusal(tmp_path, validation=0.0)
    folder(tmp_path / "single", {"cat": 1, "dog": 1})
    assert "no image is left for" in refusal(tmp_path / "single")


# ---- which image is in which part ------------------------------------------------------------------------------------


def test_shares_are_the_same_in_every_class_disjoint_and_together_everything(tmp_path: Path) -> None:
    root = folder(tmp_path, {"cat": 20, "dog": 10, "eel": 3})
    train, validation, test = parts(split(root))
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert train | validation | test == {f.relative_to(root).as_posix() for f in root.rglob("*.png")}
    count = {
        name: [sum(i.startswith(name) for i in part) for part in (train, validation, test)] for name in ("cat", "dog", "eel")
    }
    assert count == {"cat": [13, 3, 4], "dog": [6, 2, 2], "eel": [1, 1, 1]}


def test_the_draw_is_stable_and_follows_the_seed(tmp_path: Path) -> None:
    """The same names give the same parts on every machine; new images do not move the old ones about more than they must."""
    root = folder(tmp_path, {"cat": 20, "dog": 20})
    assert parts(split(root)) == parts(split(root))
    assert parts(split(root))[2] != parts(split(root, seed=1))[2]
    before = parts(split(root))[2]
    picture(root / "cat" / "999.png")
    assert len(before - parts(split(root))[2]) <= 1


def test_folders_of_their_own_are_taken_and_missing_ones_made_up(tmp_path: Path) -> None:
    folder(tmp_path / "train", {"cat": 10, "dog": 10})
    train, validation, test = parts(split(tmp_path))
    assert validation == test
    assert not train & validation
    folder(tmp_path / "val", {"cat": 2, "dog": 2})
    train, validation, test = parts(split(tmp_path))
    assert len(train) == 20
    assert validation == test == {f"val/{name}/{number:03d}.png" for name in ("cat", "dog") for number in (0, 1)}
    folder(tmp_path / "test", {"cat": 1, "dog": 1})
    assert parts(split(tmp_path))[2] == {"test/cat/000.png", "test/dog/000.png"}


def in_folds(root: Path, folds: int, **options: float) -> list[tuple[set[str], set[str], set[str]]]:
    return [parts(split(root, folds=folds, fold=fold, **options)) for fold in range(folds)]  # type: ignore[arg-type]


def test_folds_hold_out_each_image_once_and_leave_the_test_split_alone(tmp_path: Path) -> None:
    root = folder(tmp_path, {"cat": 20, "dog": 10})
    whole = split(root)
    for train, validation, test in (dealt := in_folds(root, 4)):
        assert test == set(whole.test.ids)
        assert not train & validation
        assert train | validation == set(whole.train.ids) | set(whole.validation.ids)
    held = [name for _, validation, _ in dealt for name in validation]
    assert len(held) == len(set(held)) == 24


def test_folds_are_dealt_from_train_and_val_alike(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("val", 3), ("test", 2)):
        folder(tmp_path / part, {"cat": count, "dog": count})
    for train, validation, test in (dealt := in_folds(tmp_path, 3)):
        assert len(train) == 12
        assert len(validation) == 6
        assert test == {f"test/{name}/{number:03d}.png" for name in ("cat", "dog") for number in (0, 1)}
    assert any(name.startswith("val/") for name in dealt[0][0])


def test_where_the_validation_split_stands_for_the_test_no_fold_trains_on_it(tmp_path: Path) -> None:
    folder(tmp_path / "train", {"cat": 6, "dog": 6})
    folder(tmp_path / "val", {"cat": 3, "dog": 3})
    for train, validation, test in in_folds(tmp_path, 3):
        assert test == validation
        assert not train & test


def test_with_folds_no_share_is_needed_and_only_training_is_augmented(tmp_path: Path) -> None:
    root = folder(tmp_path, {"cat": 6, "dog": 6})
    splits = split(root, validation=0.0, test=0.0, folds=2, augment="flip")
    assert (splits.train.augment, splits.validation.augment, splits.test.augment) == ("flip", "none", "none")


def test_more_folds_than_images_of_a_class_are_refused(tmp_path: Path) -> None:
    root = folder(tmp_path, {"cat": 9, "dog": 4})
    assert refusal(root, folds=4) == ("data.folds 4: class dog has 3 images outside the test split. Set data.folds to at most 3")


def test_labels_follow_the_sorted_class_names(tmp_path: Path) -> None:
    folder(tmp_path, {"eel": 4, "cat": 4})
    picture(tmp_path / "cat" / "deeper" / "x.JPG")
    train = split(tmp_path, augment="flip").train
    assert train.classes == ("cat", "eel")
    assert list(train.ids) == sorted(train.ids)
    assert [name.startswith("eel") for name in train.ids] == [label == 1 for label in train.labels]
    assert int(train.read(0, None)["label"]) == 0
    assert split(tmp_path, augment="flip").validation.augment == "none"


def test_the_fingerprint_follows_names_and_sizes(tmp_path: Path) -> None:
    """Not contents: a file replaced by one of the same size goes unnoticed, as its docstring says."""
    folder(tmp_path, {"cat": 4, "dog": 4})
    train = split(tmp_path).train
    assert train.fingerprint == split(tmp_path).train.fingerprint
    assert split(tmp_path, seed=3).train.fingerprint != train.fingerprint
    picture(tmp_path / train.ids[0], side=30)
    assert split(tmp_path).train.fingerprint != train.fingerprint
    (tmp_path / train.ids[1]).unlink()
    with pytest.raises(UserError, match=re.escape(f"image {tmp_path / train.ids[1]}: missing")):
        _ = ImageSamples(tmp_path, train.ids, train.labels, train.classes, PREPROCESS).fingerprint


# ---- reading ---------------------------------------------------------------------------------------------------------


def alone(path: Path) -> ImageSamples:
    return ImageSamples(path.parent, [path.name], [0], ("x",), PREPROCESS)


def attempt(path: Path) -> tuple[torch.Tensor | None, str | None]:
    """The image, or the user error's problem; anything else that is raised is a defect."""
    try:
        return alone(path).read(0, None)["image"], None
    except UserError as error:
        return None, error.problem


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"image {tmp_path / 'gone.png'}: missing. ")):
        alone(tmp_path / "gone.png").read(0, None)


def test_a_text_file_called_png_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("I am no picture")
    with pytest.raises(UserError, match=re.escape(f"image {tmp_path / 'a.png'}: broken (")) as caught:
        alone(tmp_path / "a.png").read(0, None)
    assert str(caught.value).count(str(tmp_path)) == 1


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif"])
@pytest.mark.filterwarnings("ignore")
def test_a_file_cut_anywhere_is_a_user_error_or_the_whole_picture(tmp_path: Path, suffix: str) -> None:
    """Whatever the decoder raises, and never half a picture; a trailer that holds no pixels may be missing."""
    path = picture(tmp_path / f"a.{suffix}")
    whole, data = alone(path).read(0, None)["image"], path.read_bytes()
    for length in range(0, len(data), max(len(data) // 150, 1)):
        path.write_bytes(data[:length])
        image, problem = attempt(path)
        assert (image is None) == (problem is not None)
        if problem is not None:
            assert str(path) in problem
            assert "\n" not in problem
        else:
            assert torch.equal(image, whole)
            assert length >= len(data) - 20


@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_are_a_user_error_or_some_picture(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    for suffix in ("png", "jpg", "tif", "gif"):
        path = picture(tmp_path / f"a.{suffix}")
        data = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(data)
            for place in draws.integers(0, min(len(data), 200), 3):
                damaged[place] = draws.integers(256)
            path.write_bytes(bytes(damaged))
            _, problem = attempt(path)
            assert problem is None or str(path) in problem


GREY = np.arange(100, dtype=np.uint8).reshape(10, 10)
COLOUR = np.random.default_rng(3).integers(0, 256, (10, 10, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("pixels", "mode", "rgb"),
    [
        (GREY, "L", np.stack([GREY] * 3, -1)),
        (np.dstack([COLOUR, GREY]), "RGBA", COLOUR),
        (np.dstack([GREY, GREY]), "LA", np.stack([GREY] * 3, -1)),
        ((GREY > 50), "1", np.stack([(GREY > 50) * np.uint8(255)] * 3, -1)),
        (GREY.astype(np.uint16) * 257, "I;16", np.stack([GREY] * 3, -1)),
        (GREY.astype(np.uint16) * 256 + 255, "I;16", np.stack([GREY] * 3, -1)),
    ],
    ids=["grey", "rgba", "grey+alpha", "bits", "16 bits", "16 bits, lower byte"],
)
def test_other_modes_are_read_as_rgb(tmp_path: Path, pixels: np.ndarray, mode: str, rgb: np.ndarray) -> None:
    """16-bit grey is scaled to 8 bits: Pillow's own conversion would make everything above 255 white."""
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as stored:
        assert stored.mode == mode
    np.testing.assert_array_equal(np.asarray(alone(tmp_path / "a.png").open(0)), rgb)


def test_palettes_are_resolved(tmp_path: Path) -> None:
    image = Image.fromarray(COLOUR).convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(alone(tmp_path / "a.png").open(0)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_grey_levels_without_a_known_white_are_refused(tmp_path: Path, kind: type) -> None:
    Image.fromarray(GREY.astype(kind)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: broken \(mode [IF]: .+8 or 16 bits\)"):
        alone(tmp_path / "a.tif").open(0)


# ---- augmentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", ["shift", "flip", "crop"])
def test_augmentation_is_a_function_of_the_seed_and_of_nothing_else(tmp_path: Path, augment: str) -> None:
    folder(tmp_path, {"cat": 4, "dog": 4})
    train = split(tmp_path, augment=augment).train
    before = torch.get_rng_state()
    first = train.read(0, 11)["image"]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(train.read(0, 11)["image"], first)
    assert first.shape == (3, 12, 12)
    assert first.dtype == torch.float32
    assert len({train.read(0, seed)["image"].numpy().tobytes() for seed in range(20)}) > 10
    plain = train.read(0, None)["image"]
    assert torch.equal(plain, PREPROCESS(train.open(0)))
    assert not torch.equal(first, plain)


def test_without_augmentation_the_seed_means_nothing(tmp_path: Path) -> None:
    train = split(folder(tmp_path, {"cat": 4, "dog": 4})).train
    assert torch.equal(train.read(0, 11)["image"], train.read(0, None)["image"])
