"""How samples lie in a data file: SigMF's complex datatypes, to complex64 and back.

Full scale of the integer types is 1: a component is `(x - offset) / 2^(bits - 1)`, with an offset of `2^(bits - 1)` for the
unsigned types. That is the convention of the `sigmf` library (`SigMFFile.read_samples` with `autoscale`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Complex64 = npt.NDArray[np.complex64]
_PATTERN = re.compile(r"c(?P<kind>[fiu])(?P<bits>8|16|32|64)(_(?P<order>le|be))?")
_KNOWN = {"f32", "f64", "i8", "i16", "i32", "u8", "u16", "u32"}


@dataclass(frozen=True)
class SampleFormat:
    """One of SigMF's complex datatypes.

    Attributes:
        name: as the recording has it, such as `ci16_le`.
        component: the type of I and of Q in the file, byte order included; I comes first.
        states_order: whether the name says the byte order, or needs none.
    """

    name: str
    component: np.dtype[Any]
    states_order: bool

    @classmethod
    def parse(cls, name: str) -> SampleFormat:
        """The datatype of that name; one without its byte order is taken as little-endian.

        Raises:
            ValueError: no such datatype, or one of real samples; the message says which.
        """
        found = _PATTERN.fullmatch(name)
        if found is None or found["kind"] + found["bits"] not in _KNOWN:
            if re.fullmatch(r"r[fiu]\d+(_[lb]e)?", name):
                raise ValueError(f"{name!r} has real samples, where complex ones (I and Q) are needed")
            raise ValueError(f"{name!r} is no datatype of SigMF")
        size = int(found["bits"]) // 8
        order = ">" if found["order"] == "be" else "<"
        return cls(name, np.dtype(f"{order}{found['kind']}{size}"), found["order"] is not None or size == 1)

    @property
    def sample_bytes(self) -> int:
        """The size of one sample, I and Q."""
        return 2 * self.component.itemsize

    @property
    def is_float(self) -> bool:
        """Whether I and Q are floating point: not scaled, and able to hold NaN."""
        return self.component.kind == "f"

    @property
    def full_scale(self) -> float:
        """The integer that stands for 1; 1 for the floating-point types."""
        return 1.0 if self.is_float else float(2 ** (8 * self.component.itemsize - 1))

    def decode(self, raw: npt.NDArray[Any], into: Complex64 | None = None) -> Complex64:
        """Components as they lie in the file, I and Q in turn, (2 N,), to (N,) samples: in `into`, or an array of their own."""
        samples = np.empty(len(raw) // 2, dtype=np.complex64) if into is None else into
        parts = samples.view(np.float32)
        if self.is_float:
            with np.errstate(over="ignore"):  # past float32's range is infinite, which the reader reports
                parts[:] = raw
            return samples
        # float32 holds 16 bits exactly; 32 bits are scaled in float64 and rounded once
        exact = np.dtype(np.float32 if self.component.itemsize < 4 else np.float64)
        if self.component.kind == "u":
            raw = np.subtract(raw, self.full_scale, dtype=exact, casting="unsafe")
        np.multiply(raw, 1 / self.full_scale, out=parts, dtype=exact, casting="same_kind")
        return samples

    def encode(self, samples: Complex64) -> tuple[npt.NDArray[Any], int]:
        """Samples (N,) to components (2 N,) for the file, rounded to the nearest; and how many were clipped at full scale."""
        parts = np.ascontiguousarray(samples, dtype=np.complex64).view(np.float32)
        if self.is_float:
            return parts.astype(self.component), 0
        top = self.full_scale
        values = np.rint(parts.astype(np.float64) * top)
        clipped = int(np.count_nonzero((values > top) | (values < -top)))
        np.clip(values, -top, top - 1, out=values)
        if self.component.kind == "u":
            values += top
        return values.astype(self.component), clipped
