"""Recordings written as SigMF, in one go or block by block for captures larger than memory.

Symbol wrapped: `sigmf.SigMFFile`, which validates and writes the metadata. Its own way to write samples wants all of them in
memory.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from sigmf import SigMFFile

from longhaul.signals.annotations import Annotation, emitter_comment
from longhaul.signals.sample_format import Complex64, SampleFormat
from longhaul.signals.sigmf_files import DATA, META

_BLOCK = 1 << 20  # samples that are converted at a time
_log = logging.getLogger(__name__)


class RecordingWriter:
    """Writes a recording block by block: `with RecordingWriter(...) as writer: writer.write(samples)`.

    The metadata appear last, so a recording that can be seen is complete; an exception in the `with` leaves nothing behind.

    Args:
        path: of the recording, without a suffix.
        sample_rate_hz: complex samples a second.
        center_hz: RF frequency of the middle of the band, if there is one: then edges are written as absolute frequencies.
        datatype: one of SigMF's complex types, such as `ci16_le`.
        description: a line for whoever finds the file.
        started: when the first sample was taken.

    Attributes:
        samples: written so far.
        clipped: components (I or Q) past full scale, which an integer type cannot hold.
    """

    def __init__(
        self,
        path: Path,
        *,
        sample_rate_hz: float,
        center_hz: float | None = None,
        datatype: str = "cf32_le",
        description: str = "",
        started: datetime | None = None,
    ) -> None:
        self.samples = 0
        self.clipped = 0
        self._format = SampleFormat.parse(datatype)
        if not self._format.states_order:
            raise ValueError(f"{datatype!r} does not say its byte order: append _le or _be")
        self._rate, self._center = float(sample_rate_hz), center_hz
        self._description, self._started = description, started
        self._annotations: list[Annotation] = []
        self._sha512 = hashlib.sha512()
        self._base = Path(path)
        self._base.parent.mkdir(parents=True, exist_ok=True)
        self._part = self._base.with_name(self._base.name + DATA + ".part")
        self._file = self._part.open("wb")

    @property
    def meta_path(self) -> Path:
        """Where the metadata are once the recording is complete."""
        return self._base.with_name(self._base.name + META)

    def write(self, samples: Complex64) -> None:
        """Append samples (N,).

        Raises:
            ValueError: one is NaN or infinite.
        """
        for start in range(0, len(samples), _BLOCK):
            block = samples[start : start + _BLOCK]
            if not np.isfinite(block).all():
                raise ValueError(f"{self._base.name}: a sample after {self.samples} is NaN or infinite")
            components, clipped = self._format.encode(block)
            raw = components.tobytes()
            self._file.write(raw)
            self._sha512.update(raw)
            self.samples += len(block)
            self.clipped += clipped

    def annotate(self, annotations: Iterable[Annotation]) -> None:
        """Add annotations, in any order."""
        self._annotations.extend(annotations)

    def finish(self) -> Path:
        """Make the recording complete; returns the path of its metadata.

        Raises:
            jsonschema.ValidationError: what was given is no valid SigMF.
        """
        self._file.close()
        if self.clipped:
            parts = 2 * self.samples
            _log.warning("%s: %d of %d components were over full scale and clipped", self._base.name, self.clipped, parts)
        meta = SigMFFile(metadata=self._metadata())
        meta.validate()
        self.meta_path.unlink(missing_ok=True)  # an older recording of that name: its metadata would describe other data
        self._part.replace(self._base.with_name(self._base.name + DATA))
        part = self._base.with_name(self._base.name + ".part" + META)
        meta.tofile(part, overwrite=True)
        return part.replace(self.meta_path)

    def abandon(self) -> None:
        """Give up; nothing is left of what was written."""
        self._file.close()
        self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.abandon()

    def _metadata(self) -> dict[str, Any]:
        description = self._description
        if self.clipped:
            description = f"{description} ({self.clipped} of {2 * self.samples} components clipped)".strip()
        capture: dict[str, Any] = {"core:sample_start": 0}
        if self._center is not None:
            capture["core:frequency"] = float(self._center)
        if self._started is not None:
            capture["core:datetime"] = self._started.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        return {
            "global": {
                "core:datatype": self._format.name,
                "core:sample_rate": self._rate,
                "core:sha512": self._sha512.hexdigest(),
                "core:recorder": "Longhaul",
                "core:description": description,
            },
            "captures": [capture],
            "annotations": [self._entry(one) for one in sorted(self._annotations, key=lambda one: one.start)],
        }

    def _entry(self, annotation: Annotation) -> dict[str, Any]:
        center = self._center or 0.0
        entry = {
            "core:sample_start": annotation.start,
            "core:sample_count": annotation.count,
            "core:freq_lower_edge": center + annotation.low_hz,
            "core:freq_upper_edge": center + annotation.high_hz,
            "core:label": annotation.label,
        }
        return entry if annotation.emitter is None else entry | {"core:comment": emitter_comment(annotation.emitter)}


def write_recording(
    path: Path,
    samples: Complex64,
    *,
    sample_rate_hz: float,
    center_hz: float | None = None,
    datatype: str = "cf32_le",
    annotations: Sequence[Annotation] = (),
    description: str = "",
    started: datetime | None = None,
) -> Path:
    """Write samples (N,) and annotations as a recording; returns the path of its metadata.

    Arguments as for `RecordingWriter`. Integer types hold +-1; what is over that is clipped, and counted in the description.

    Raises:
        ValueError: an unknown datatype, or a sample that is NaN or infinite.
    """
    with RecordingWriter(
        path, sample_rate_hz=sample_rate_hz, center_hz=center_hz, datatype=datatype, description=description, started=started
    ) as writer:
        writer.write(samples)
        writer.annotate(annotations)
    return writer.meta_path
