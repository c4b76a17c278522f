"""scikit-learn's digits on disk: the right pictures, once, also when two processes want them at the same moment."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from longhaul.data import digits
from longhaul.data.digits import default_root, write_digits
from longhaul.errors import UserError


def test_parts_have_their_sizes_and_share_no_picture(digits_root: Path) -> None:
    names = {part: [f.name for f in (digits_root / part).rglob("*.png")] for part in ("train", "val", "test")}
    assert {part: len(found) for part, found in names.items()} == {"train": 1149, "val": 288, "test": 360}
    assert sorted(name for found in names.values() for name in found) == [f"{number:04d}.png" for number in range(1797)]


def test_every_class_has_its_share_of_every_part(digits_root: Path) -> None:
    for part, share in (("train", 1149 / 1797), ("val", 288 / 1797), ("test", 360 / 1797)):
        for digit, count in enumerate(np.bincount(load_digits().target)):
            expected = share * count
            assert abs(len(list((digits_root / part / str(digit)).iterdir())) - expected) < 2


def test_pixels_are_scikit_learns_scaled_to_eight_bits(digits_root: Path) -> None:
    source = load_digits()
    for file in digits_root.rglob("*.png"):
        number = int(file.stem)
        assert file.parent.name == str(source.target[number])
        pixels = np.asarray(Image.open(file))
        np.testing.assert_array_equal(pixels, np.rint(source.images[number] * 255 / 16).astype(np.uint8))


def test_the_cache_follows_the_environment(digits_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_root() == digits_root
    monkeypatch.setenv("LONGHAUL_CACHE", str(tmp_path))
    assert default_root() == tmp_path / "digits"
    monkeypatch.delenv("LONGHAUL_CACHE")
    assert default_root() == Path.home() / ".cache" / "longhaul" / "digits"


def test_a_folder_that_is_there_is_left_as_it_is(digits_root: Path) -> None:
    stamp = (digits_root / "complete").stat().st_mtime_ns
    assert write_digits(digits_root) == digits_root
    assert (digits_root / "complete").stat().st_mtime_ns == stamp


def test_two_processes_at_once_both_succeed_and_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have written all of their copy before either may move it into place: one of the two renames must fail."""
    processes = multiprocessing.get_context("fork")
    barrier = processes.Barrier(2)
    write = digits._write

    def write_and_wait(scratch: Path) -> None:
        write(scratch)
        barrier.wait(timeout=100)

    monkeypatch.setattr(digits, "_write", write_and_wait)
    root = tmp_path / "cache" / "digits"
    started = [processes.Process(target=write_digits, args=(root,)) for _ in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0, 0]
    assert len(list(root.rglob("*.png"))) == 1797
    assert [child.name for child in root.parent.iterdir()] == ["digits"]


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"mine: the digits cannot be written there \(Directory not empty\)"):
        write_digits(tmp_path / "mine")
    with pytest.raises(UserError, match="cannot be written there"):
        write_digits(tmp_path / "mine" / "thesis.txt" / "digits")
    assert [f.name for f in tmp_path.rglob("*")] == ["mine", "thesis.txt"]
