"""Pickles read without running what they name: arrays come out as numpy has them, everything else is refused."""

from __future__ import annotations

import math
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cifar10_files import pickled

from longhaul.data.plain_pickle import load_plain, stored_bytes

ARRAY = np.random.default_rng(0).integers(0, 256, (3, 4), dtype=np.uint8)


def test_the_files_of_these_tests_are_what_python_2_wrote() -> None:
    """Read by Python's own unpickler, which the published files are read with everywhere."""
    content = {b"labels": [0, 9, 70_000, -1], b"data": ARRAY, b"name": b"x" * 300}
    text = pickled(content)
    found = pickle.loads(text.replace(b"numpy.core.", b"numpy._core."), encoding="bytes")
    np.testing.assert_array_equal(found.pop(b"data"), ARRAY)
    assert found == {key: value for key, value in content.items() if key != b"data"}
    names = {argument for opcode, argument, _ in pickletools.genops(text) if opcode.name == "GLOBAL"}
    assert names == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("protocol", [None, 0, 1, 2, 3, 4])
def test_an_array_comes_out_as_it_went_in(order: str, protocol: int | None) -> None:
    """`None` is Python 2; the others are today's Python, which users may have saved a part of the data with."""
    array = np.asarray(ARRAY, order=order)  # type: ignore[call-overload]
    text = pickled({b"data": array}) if protocol is None else pickle.dumps({b"data": array}, protocol)
    found = load_plain(text)
    np.testing.assert_array_equal(stored_bytes(found[b"data"]), ARRAY)


class _Runs:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_nothing_that_a_file_names_is_run(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    for hostile in (
        pickle.dumps({b"data": _Runs(os.system, f"touch {trap}")}),
        pickle.dumps(_Runs(eval, f"open({str(trap)!r}, 'w')"), 0),
        pickle.dumps(_Runs(open, str(trap), "w"), 2),
        b"cos\nsystem\n(S'touch " + str(trap).encode() + b"'\ntR.",
        b"(S'touch " + str(trap).encode() + b"'\nios\nsystem\n.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93(S'touch " + str(trap).encode() + b"'\ntR.",
    ):
        with pytest.raises(ValueError, match=r"it asks for (posix|os|builtins|_?io|__builtin__)\.\w+, and may hold arrays"):
            load_plain(hostile)
    assert not trap.exists()


@pytest.mark.parametrize(
    "name", ["numpy.load", "numpy.core.multiarray.scalar", "numpy.core.multiarray.fromfile", "copyreg._reconstructor"]
)
def test_of_numpy_too_only_three_names_are_known(name: str) -> None:
    module, _, symbol = name.rpartition(".")
    with pytest.raises(ValueError, match=f"it asks for {module}.{symbol}"):
        load_plain(f"c{module}\n{symbol}\n.".encode())


def test_what_a_file_is_given_cannot_be_changed_for_the_next_file() -> None:
    """BUILD with a dictionary sets attributes of whatever it is applied to."""
    name = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n"
    assert load_plain(name + b"N}X\x04\x00\x00\x00markK\x01s\x86b.").mark == 1
    assert not hasattr(load_plain(name + b"."), "mark")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (ARRAY.astype(np.int64), "its values are b'i8' and not unsigned bytes"),
        (ARRAY.astype(np.float32), "its values are b'f4' and not unsigned bytes"),
        ([[1, 2]], "it is no array"),
        (7, "it is no array"),
        (b"bytes", "it is no array"),
    ],
)
def test_what_is_no_array_of_bytes_is_refused(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        stored_bytes(load_plain(pickled(value)))


def test_an_array_that_lies_about_its_size_is_refused() -> None:
    text = pickled(ARRAY)
    rows = b"(J\x03\x00\x00\x00J\x04\x00\x00\x00t"
    assert rows in text
    for lie in (4, -3, 2**31 - 1):
        with pytest.raises(ValueError, match=rf"its values are no {lie} x 4 bytes"):
            stored_bytes(load_plain(text.replace(rows, b"(J" + lie.to_bytes(4, "little", signed=True) + rows[6:])))


def described(shape: Any = (3, 4), kind: Any = "u1", content: bytes = bytes(12)) -> bytes:
    """A pickle of an array as its writer describes it, whatever that is."""
    return pickle.dumps(_Described(shape, _Kind(kind), content), 2)


class _Kind:
    def __init__(self, name: Any) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        return np.dtype, (self.name,)


class _Described:
    def __init__(self, *state: Any) -> None:
        self.state = state

    def __reduce__(self) -> Any:
        shape, kind, content = self.state
        return np.ndarray, ((0,),), (1, shape, kind, False, content)


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def test_an_array_as_it_is_described_in_these_tests_is_read() -> None:
    assert stored_bytes(load_plain(described())).tolist() == np.zeros((3, 4)).tolist()


@pytest.mark.parametrize("shape", [(3.0, 4.0), ("a", 12), ((1,), 12), (True, 12), [3, 4], {3: 4}, 12, None, "abc"])
def test_a_shape_that_is_not_of_whole_numbers_is_refused(shape: Any) -> None:
    with pytest.raises(ValueError, match="its shape is not of whole numbers"):
        stored_bytes(load_plain(described(shape=shape)))


@pytest.mark.parametrize("kind", [["u1"], {}, ("u1",), None, 1, nested(300)])
def test_a_kind_that_is_no_name_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"its values are \w+ and not unsigned bytes"):
        stored_bytes(load_plain(described(kind=kind)))


@pytest.mark.parametrize("shape", [(0, 2**70), (0, 2**62), (1,) * 70])
def test_a_shape_that_numpy_cannot_count_is_refused(shape: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        stored_bytes(load_plain(described(shape=shape, content=bytes(math.prod(shape)))))


@pytest.mark.parametrize("protocol", [None, 2, 4])
def test_a_file_cut_or_damaged_anywhere_is_refused_or_plain(protocol: int | None) -> None:
    """Whatever the unpickler raises, a `ValueError` of one line; it never takes memory by what a damaged byte says."""
    content = {b"labels": list(range(300)), b"data": ARRAY, b"filenames": [b"a.png"] * 300}
    text = pickled(content) if protocol is None else pickle.dumps(content, protocol)
    draws = np.random.default_rng(0)
    attempts = [text[:length] for length in range(0, len(text), 7)]
    for _ in range(400):
        damaged = bytearray(text)
        damaged[draws.integers(len(text))] = draws.integers(256)
        attempts.append(bytes(damaged))
    for attempt in attempts:
        problem = _problem(attempt)
        assert problem is None or (problem and "\n" not in problem)


def _problem(text: bytes) -> str | None:
    try:
        found = load_plain(text)
        stored_bytes(found[b"data"] if isinstance(found, dict) and b"data" in found else None)
    except ValueError as error:
        return str(error)
    return None
