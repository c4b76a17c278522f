"""CIFAR-10 from the files as published: the same pictures, split by share or fold, and every damage named."""

from __future__ import annotations

import io
import os
import pickle
import re
import shutil
from collections import Counter
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cifar10_files import BATCHES, CLASSES, pickled, write_batch, write_cifar10

from longhaul.data.cifar10 import Cifar10Samples, cifar10_splits
from longhaul.data.images import ImageSamples, ImageSplits
from longhaul.data.loader import batches
from longhaul.data.preprocess import ImagePreprocess
from longhaul.data.subset import share_of
from longhaul.errors import UserError
from longhaul.recipe.inputs import Cifar10Data

IMAGES = 20  # a batch


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar10(tmp_path_factory.mktemp("cifar"), images=IMAGES)


def split(root: Path, *, seed: int = 0, resolution: int = 32, **fields: Any) -> ImageSplits:
    data = Cifar10Data.model_validate({"kind": "cifar10", "root": str(root), **fields})
    return cifar10_splits(data, ImagePreprocess(resolution=resolution), seed)


def published(root: Path, name: str) -> dict[bytes, Any]:
    """A batch by Python's own unpickler, as the data set's page shows it."""
    return pickle.load(io.BytesIO((root / name).read_bytes().replace(b"numpy.core.", b"numpy._core.")), encoding="bytes")


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_pictures_and_labels_are_those_of_the_batches(root: Path) -> None:
    test, truth = split(root).test, published(root, "test_batch")
    assert list(test.ids) == [f"test_batch/{name.decode()}" for name in truth[b"filenames"]]
    assert list(test.labels) == truth[b"labels"]
    assert test.classes == CLASSES
    for index in range(IMAGES):
        planes = truth[b"data"][index].reshape(3, 32, 32)
        np.testing.assert_array_equal(np.asarray(test.open(index)), planes.transpose(1, 2, 0))


@pytest.mark.parametrize("resolution", [32, 48, 96])
@pytest.mark.parametrize("augment", ["none", "flip", "crop"])
def test_a_sample_reads_as_the_same_picture_in_a_folder_does(root: Path, tmp_path: Path, resolution: int, augment: str) -> None:
    train = split(root, resolution=resolution, augment=augment).train
    train.open(3).save(tmp_path / "a.png")
    in_folder = ImageSamples(tmp_path, ["a.png"], [train.labels[3]], train.classes, train.preprocess, augment)
    for seed in (None, 5):
        mine, other = train.read(3, seed), in_folder.read(0, seed)
        assert mine["image"].shape == (3, resolution, resolution)
        assert torch.equal(mine["image"], other["image"])
        assert torch.equal(mine["label"], other["label"])


def test_the_folder_and_the_one_above_it_are_the_same(root: Path) -> None:
    assert split(root).train.fingerprint == split(root.parent).train.fingerprint


def test_a_file_name_that_a_batch_has_twice_is_two_samples(root: Path, tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path, images=4)
    names = ["a.png", "a.png", "a.png#2", "a.png"]
    write_batch(folder / "test_batch", np.zeros((4, 3072), np.uint8), [0, 1, 2, 3], names)
    test = split(folder).test
    assert list(test.ids) == [f"test_batch/{name}" for name in ("a.png", "a.png#2", "a.png#2#2", "a.png#3")]
    assert list(test.labels) == [0, 1, 2, 3]


# ---- splits ----------------------------------------------------------------------------------------------------------


def test_validation_is_the_same_share_of_every_class_and_the_test_batch_stays_apart(root: Path) -> None:
    splits = split(root, validation_share=0.2, augment="flip")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [80, 20, 20]
    assert set(Counter(splits.validation.labels).values()) == {5}
    assert not set(splits.train.ids) & set(splits.validation.ids)
    assert {name.partition("/")[0] for name in [*splits.train.ids, *splits.validation.ids]} == set(BATCHES[:5])
    assert [part.augment for part in (splits.train, splits.validation, splits.test)] == ["flip", "none", "none"]
    assert split(root, validation_share=0.2).validation.ids == splits.validation.ids
    assert split(root, validation_share=0.2, seed=1).validation.ids != splits.validation.ids


def test_each_training_image_is_held_out_in_one_fold(root: Path) -> None:
    dealt = [split(root, folds=4, fold=fold) for fold in range(4)]
    held = [name for splits in dealt for name in splits.validation.ids]
    assert len(held) == len(set(held)) == 100
    for splits in dealt:
        assert not set(splits.train.ids) & set(splits.validation.ids)
        assert len(splits.train) == 75
        assert splits.test.ids == dealt[0].test.ids
    with pytest.raises(UserError, match=r"data\.folds 26: class airplane has 25 images outside the test split"):
        split(root, folds=26)


def test_the_fingerprint_follows_contents_and_split_and_not_the_size_to_be_seen_in(root: Path, tmp_path: Path) -> None:
    first = split(root).train.fingerprint
    assert split(root, resolution=64).train.fingerprint == first
    assert split(root, seed=1).train.fingerprint != first
    folder = shutil.copytree(root, tmp_path / "copy")
    assert split(folder).train.fingerprint == first
    changed = bytearray((folder / "data_batch_3").read_bytes())
    changed[-900] ^= 1  # of the same size
    (folder / "data_batch_3").write_bytes(changed)
    assert split(folder).train.fingerprint != first


def test_a_part_of_it_is_drawn_as_of_a_folder(root: Path) -> None:
    train = split(root, validation_share=0.2).train
    part = share_of(train, 0.25, 0)
    assert set(Counter(part.labels).values()) == {5}
    index = list(train.ids).index(part.ids[7])
    assert torch.equal(part.read(7, None)["image"], train.read(index, None)["image"])
    assert part.fingerprint != train.fingerprint


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_all_splits_and_parts_share_one_array(root: Path) -> None:
    splits = split(root)
    parts = [splits.train, splits.validation, splits.test, splits.train.at([1, 2])]
    assert len({part.pixels.data_ptr() for part in parts if isinstance(part, Cifar10Samples)}) == 1


def test_a_loader_process_is_handed_the_array_and_not_a_copy(root: Path) -> None:
    """A forked process has it anyway; to a spawned one torch sends where the tensor lies in shared memory."""
    samples = split(root).test
    assert isinstance(samples, Cifar10Samples)
    assert len(ForkingPickler.dumps(samples)) < samples.pixels.nbytes / 20


def test_loader_processes_read_the_same_batches(root: Path) -> None:
    samples = split(root, augment="flip").test
    here, there = (torch.cat([batch["image"] for batch in batches(samples, 8, workers=workers)]) for workers in (0, 2))
    assert torch.equal(here, there)


# ---- what is refused -------------------------------------------------------------------------------------------------


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        split(root)
    assert "\n" not in str(caught.value)
    assert "http" not in str(caught.value)
    return str(caught.value)


def test_a_missing_folder_says_what_to_give(tmp_path: Path) -> None:
    fix = "Give the folder cifar-10-batches-py, or the one that holds it: what cifar-10-python.tar.gz, the python version"
    assert refusal(tmp_path / "nowhere").startswith(f"data.root {tmp_path / 'nowhere'}: no such folder. {fix}")
    assert refusal(tmp_path).startswith(f"data.root {tmp_path}: holds no batches of CIFAR-10. {fix}")


def test_an_archive_that_lies_there_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").touch()
    archive = tmp_path / "cifar-10-python.tar.gz"
    for given in (tmp_path, tmp_path / "cifar-10-batches-py"):
        assert refusal(given).endswith(f"Unpack it: tar -xzf {archive} -C {tmp_path}")


@pytest.mark.parametrize("name", [*BATCHES, "batches.meta"])
def test_a_missing_file_is_named(root: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(root, tmp_path / "copy")
    (folder / name).unlink()
    assert refusal(folder) == f"CIFAR-10 {folder / name}: missing. Unpack cifar-10-python.tar.gz again"


@pytest.mark.parametrize("name", ["data_batch_2", "test_batch", "batches.meta"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_cut_short_is_named(root: Path, tmp_path: Path, name: str, share: float) -> None:
    folder = shutil.copytree(root, tmp_path / "copy")
    whole = (root / name).read_bytes()
    (folder / name).write_bytes(whole[: int(share * len(whole))])
    assert refusal(folder).startswith(f"CIFAR-10 {folder / name}: broken (")


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        (b"J\x00\x0c\x00\x00", b"G@\xa8\x00\x00\x00\x00\x00\x00", "data: its shape is not of whole numbers"),
        (b"U\x02u1", b"](U\x02u1e", "data: its values are list and not unsigned bytes"),
    ],
)
def test_an_array_that_is_described_wrongly_is_named(root: Path, tmp_path: Path, good: bytes, bad: bytes, words: str) -> None:
    folder = shutil.copytree(root, tmp_path / "copy")
    whole = (root / "data_batch_4").read_bytes()
    assert good in whole
    (folder / "data_batch_4").write_bytes(whole.replace(good, bad, 1))
    assert refusal(folder).startswith(f"CIFAR-10 {folder / 'data_batch_4'}: broken ({words})")


def test_a_hostile_pickle_is_refused_and_not_run(root: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'sprung'}",)

    folder = shutil.copytree(root, tmp_path / "copy")
    (folder / "data_batch_4").write_bytes(pickle.dumps({b"data": Trap(), b"labels": [], b"filenames": []}))
    assert f"CIFAR-10 {folder / 'data_batch_4'}: broken (it asks for posix.system, and may hold arrays" in refusal(folder)
    assert not (tmp_path / "sprung").exists()


PIXELS = np.zeros((4, 3072), np.uint8)
NAMES = list("abcd")


@pytest.mark.parametrize(
    ("data", "labels", "names", "words"),
    [
        (PIXELS[:, :3071], [0] * 4, NAMES, "data: it is 4 x 3071, and should have rows of 3072 values"),
        (PIXELS.reshape(4, 3, 32, 32), [0] * 4, NAMES, "data: it is 4 x 3 x 32 x 32, and should have rows"),
        (PIXELS[:0], [], [], "data: it is 0 x 3072, and should have rows"),
        (PIXELS.astype(np.int32), [0] * 4, NAMES, "data: its values are b'i4' and not unsigned bytes"),
        (None, [0] * 4, NAMES, "data: it is no array"),
        (PIXELS, [0] * 3, NAMES, "it has 4 images and 3 labels"),
        (PIXELS, [0] * 4, NAMES[:3], "it has 4 images and 3 filenames"),
        (PIXELS, [0, 1, 4, 0], NAMES, r"labels[2] is 4, and the classes of batches.meta count from 0 to 3"),
        (PIXELS, [0, 1, -1, 0], NAMES, r"labels[2] is -1, and the classes"),
        (PIXELS, [0, 1, b"2", 0], NAMES, "labels: it is no list of numbers"),
        (PIXELS, None, NAMES, "labels: it is no list of numbers"),
        (PIXELS, [0] * 4, None, "filenames: it is no list of names"),
    ],
)
def test_a_batch_that_is_not_as_published_is_named_with_what_is_wrong(
    root: Path, tmp_path: Path, data: np.ndarray | None, labels: list[Any] | None, names: list[str] | None, words: str
) -> None:
    folder = shutil.copytree(root, tmp_path / "copy")
    content = {b"data": data, b"labels": labels, b"filenames": None if names is None else [name.encode() for name in names]}
    (folder / "data_batch_1").write_bytes(pickled({key: value for key, value in content.items() if value is not None}))
    assert re.match(re.escape(f"CIFAR-10 {folder / 'data_batch_1'}: broken ({words}"), refusal(folder))


@pytest.mark.parametrize("meta", [{}, {b"label_names": []}, {b"label_names": [b"cat", b"cat"]}, {b"label_names": [1]}, [b"cat"]])
def test_classes_that_are_none_are_refused(root: Path, tmp_path: Path, meta: Any) -> None:
    folder = shutil.copytree(root, tmp_path / "copy")
    (folder / "batches.meta").write_bytes(pickled(meta))
    assert refusal(folder).startswith(f"CIFAR-10 {folder / 'batches.meta'}: broken (")
