"""The signal that a request brought: described and checked at once, read a stretch at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from longhaul.errors import UserError
from longhaul.serving.http.settings import Limits
from longhaul.serving.refusals import BodyTooLarge, BrokenSignal
from longhaul.signals.chunks import Division, divide
from longhaul.signals.recording import Recording
from longhaul.signals.sample_format import Complex64, SampleFormat
from longhaul.signals.tile_folder import TileSettings

MOST_HZ = 1e12
"""Of a centre frequency: SigMF's own bound."""
_BLOCK = 1 << 18  # samples
_MOST_LEVEL = 1e15  # of full scale; its square is well within float32


class ByteFile(Protocol):
    """What `open(..., "rb")`, a spooled body, and pyarrow's files have in common."""

    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def read(self, size: int = -1, /) -> bytes: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Signal:
    """Samples within a file. One reader at a time.

    Attributes:
        recording: rate, centre, format, length; its `name` is what messages call it, its path means nothing.
        file: holds the samples; closed with the signal.
        offset: where in the file they begin, in bytes.
        notes: what is odd but not fatal.
    """

    recording: Recording
    file: ByteFile
    offset: int
    notes: tuple[str, ...] = ()

    def read(self, start: int, count: int) -> Complex64:
        """Samples `start` to `start + count`, (count,).

        Raises:
            BrokenSignal: one of them is NaN, infinite or absurdly large, or the file ends before them.
        """
        form = SampleFormat.parse(self.recording.datatype)
        samples = np.empty(count, dtype=np.complex64)
        self.file.seek(self.offset + start * form.sample_bytes)
        for done in range(0, count, _BLOCK):  # neither the raw bytes nor what decoding makes on its way lie there as a whole
            block = samples[done : done + _BLOCK]
            raw = self.file.read(block.size * form.sample_bytes)
            if len(raw) < block.size * form.sample_bytes:
                last = start + done + len(raw) // form.sample_bytes
                raise BrokenSignal(f"{self.recording.name}: ends within sample {last}", "Send it whole")
            form.decode(np.frombuffer(raw, dtype=form.component), block)
        if form.is_float:
            check_level(self.recording.name, samples, start)
        return samples

    def stretch(self, start_s: float, duration_s: float | None) -> Signal:
        """A part of it, as a signal of its own.

        Raises:
            BrokenSignal: the part has no sample.
        """
        whole = self.recording
        first = round(start_s * whole.sample_rate_hz)
        left = whole.samples - first
        count = left if duration_s is None else min(left, round(duration_s * whole.sample_rate_hz))
        if count <= 0:
            raise BrokenSignal(
                f"{whole.name}: nothing from {start_s:g} s on; it is {whole.duration_s:g} s long", "Ask for another stretch"
            )
        offset = self.offset + first * SampleFormat.parse(whole.datatype).sample_bytes
        return replace(self, recording=replace(whole, samples=count), offset=offset)

    def divide(self, tiles: TileSettings, limits: Limits) -> Division:
        """The chunks that it gives.

        Raises:
            BrokenSignal: it is shorter than half a chunk.
            BodyTooLarge: it is longer than a request may bring.
        """
        rate, samples = self.recording.sample_rate_hz, self.recording.samples
        if samples > limits.samples:
            raise BodyTooLarge(f"the signal has {samples:,} samples, the limit is {limits.samples:,}", "Send less at a time")
        chunk = max(1, tiles.chunk_samples(rate))
        most = limits.tiles // tiles.front_end.pieces * chunk
        if chunk >= tiles.front_end.nfft and samples > most:
            raise BodyTooLarge(
                f"the signal gives more than {limits.tiles} tiles, which is the limit",
                f"Send {most / rate:g} s at most, or use the stream",
            )
        try:
            return divide(self.recording, tiles)
        except UserError as error:
            problem = error.problem.replace(str(self.recording.path), self.recording.name)
            raise BrokenSignal(problem, f"Send at least half a chunk of {tiles.chunk_s:g} s") from None

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def describe(name: str, datatype: str, sample_rate_hz: float, center_hz: float | None, samples: int) -> Recording:
    """The description of samples that came without metadata; `name` is what messages call them."""
    return Recording(
        path=Path(name),
        name=name,
        sample_rate_hz=sample_rate_hz,
        center_hz=center_hz,
        datatype=datatype,
        samples=samples,
        annotations=(),
        started=None,
        notes=(),
        data=Path(name),
        offset=0,
    )


def check_frequencies(name: str, sample_rate_hz: float, center_hz: float | None, limits: Limits) -> None:
    """Refuse a sample rate or a centre frequency that cannot be.

    Raises:
        BrokenSignal: it cannot.
    """
    if not limits.least_rate_hz <= sample_rate_hz <= limits.most_rate_hz:  # also NaN
        raise BrokenSignal(
            f"{name}: a sample rate of {sample_rate_hz:g} Hz is not within {limits.least_rate_hz:g} to {limits.most_rate_hz:g}",
            "Give complex samples a second",
        )
    if center_hz is not None and not (math.isfinite(center_hz) and abs(center_hz) <= MOST_HZ):
        raise BrokenSignal(f"{name}: a centre frequency of {center_hz:g} Hz cannot be", "Give it in Hz")


def check_level(name: str, samples: Complex64, start: int) -> None:
    """Refuse samples (N,) that no receiver gives; `start` is the first one's number.

    Raises:
        BrokenSignal: one of them is NaN, infinite or absurdly large.
    """
    parts = samples.view(np.float32)
    if parts.min() >= -_MOST_LEVEL and parts.max() <= _MOST_LEVEL:  # False for NaN too
        return
    good = np.all(np.abs(parts.reshape(-1, 2)) <= _MOST_LEVEL, axis=1)
    index = int(np.argmin(good))
    raise BrokenSignal(
        f"{name}: sample {start + index} is {samples[index]:g}, where full scale is 1 "
        f"({good.size - int(np.count_nonzero(good))} such in samples {start} to {start + good.size})",
        "Record anew, or check datatype and byte order",
    )
