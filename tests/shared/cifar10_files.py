"""CIFAR-10 in little, byte for byte as Python 2 wrote the published files: protocol 2, strings as `BINSTRING`."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = ("airplane", "automobile", "bird", "cat")
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


def write_cifar10(root: Path, *, images: int = 20, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> Path:
    """`root/cifar-10-batches-py` with `images` a batch; a class can be told by its colour. Returns that folder."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    draws = np.random.default_rng(seed)
    colours = np.random.default_rng(1).integers(40, 216, (len(classes), 3, 1))
    for name in BATCHES:
        labels = draws.permutation(np.arange(images) % len(classes))
        noise = draws.integers(-30, 30, (images, 3, 1024))
        data = (colours[labels] + noise).reshape(images, 3072).astype(np.uint8)
        names = [f"{classes[label]}_s_{number:06d}.png" for number, label in enumerate(labels)]
        write_batch(folder / name, data, labels.tolist(), names)
    meta = {b"num_cases_per_batch": images, b"label_names": [name.encode() for name in classes], b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickled(meta))
    return folder


def write_batch(path: Path, data: np.ndarray, labels: list[Any], names: list[str]) -> None:
    """One batch with the four entries of a published one."""
    content = {
        b"batch_label": f"batch {path.name}".encode(),
        b"labels": labels,
        b"data": data,
        b"filenames": [name.encode() for name in names],
    }
    path.write_bytes(pickled(content))


def pickled(value: Any) -> bytes:
    """What Python 2's `cPickle.dumps(value, 2)` gives, without its memo."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return (b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(key) + _opcodes(item) for key, item in value.items()) + b"u"
    if isinstance(value, np.ndarray):
        fortran = not value.flags.c_contiguous
        kind = b"cnumpy\ndtype\n" + _opcodes(value.dtype.str[1:].encode()) + b"K\x00K\x01\x87R"
        kind += b"(K\x03" + _opcodes(value.dtype.str[:1].encode()) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        shape = b"(" + b"".join(map(_opcodes, value.shape)) + b"t"
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        content = _opcodes(value.tobytes(order="F" if fortran else "C"))
        return made + b"(K\x01" + shape + kind + (b"\x88" if fortran else b"\x89") + content + b"tb"
    raise TypeError(type(value))
