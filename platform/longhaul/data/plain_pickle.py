"""Pickles of arrays and plain containers, read without running anything that they name.

Unpickling calls whatever a file asks for. Here the names that numpy's own pickles ask for are answered by stand-ins, which only
keep what the file says of an array; any other name is refused. `stored_bytes` makes the array from what was kept.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longhaul.errors import first_line

_CONSTRUCTORS = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}
_TYPES = {("numpy", "ndarray"), ("numpy", "dtype")}


def load_plain(content: bytes) -> Any:
    """What a pickle holds; strings of Python 2 as bytes, an array as something for `stored_bytes`.

    Raises:
        ValueError: it asks for anything but arrays and plain containers, is cut short, or is no pickle.
    """
    try:
        return _Reader(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # noqa: BLE001 - damaged bytes make the unpickler raise nearly anything
        raise ValueError(first_line(error)) from None


def stored_bytes(value: Any) -> NDArray[np.uint8]:
    """An array of unsigned bytes that `load_plain` has read; it cannot be written to.

    Raises:
        ValueError: it is no array, one of another type, or its size is not what it says.
    """
    try:
        _, shape, kind, fortran, content = value.state
        name = kind.arguments[0]
    except (AttributeError, TypeError, ValueError, IndexError, KeyError):
        raise ValueError("it is no array") from None
    if name not in ("u1", b"u1"):  # no set: a name that cannot be hashed is no name either
        told = repr(name) if isinstance(name, str | bytes) else type(name).__name__  # what is nested deeply has no repr
        raise ValueError(f"its values are {told} and not unsigned bytes")
    if type(shape) is not tuple or not all(type(side) is int for side in shape):  # True, too, is no side
        raise ValueError("its shape is not of whole numbers")
    if not isinstance(content, bytes) or min(shape, default=0) < 0 or len(content) != math.prod(shape):
        raise ValueError(f"its values are no {' x '.join(map(str, shape))} bytes")
    try:
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")
    except OverflowError:  # no bytes at all, and a side beyond what numpy counts
        raise ValueError("its shape is too large") from None


class _Stored:
    """What a pickle says of an array, or of an array's type: kept as it is."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


# The one that is written in Python: the other's memory grows to whatever number a damaged file gives for a place in it.
class _Reader(pickle._Unpickler):
    """`pickle.Unpickler` that knows the names in a pickle of an array, as Python 2 and 3 write it, and no other."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        # A function of its own each time: a pickle may set attributes of what it is given.
        if (module, name) in _CONSTRUCTORS | _TYPES:
            return lambda *arguments: _Stored(arguments)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, encoding: text.encode({"latin1": "latin1"}[encoding])
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and may hold arrays and plain containers alone")
