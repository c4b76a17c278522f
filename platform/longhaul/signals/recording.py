"""Recordings: opened, checked, and read a stretch at a time, however large the file.

Nothing is held between reads: each maps the stretch that it needs and lets go of it. So memory and address space are bounded
by what is asked, and a `Recording` can be sent to another process.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from sigmf.hashing import calculate_sha512

from longhaul.errors import UserError
from longhaul.signals.annotations import Annotation, Frame, parse_annotations
from longhaul.signals.sample_format import Complex64, SampleFormat
from longhaul.signals.sigmf_files import ARCHIVE, COLLECTION, META, Source, locate, members, read_metadata, with_data
from longhaul.signals.sigmf_writer import RecordingWriter, write_recording

__all__ = ["Annotation", "Recording", "RecordingWriter", "find_recordings", "open_recording", "write_recording"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recording:
    """A capture of one channel at one centre frequency.

    Attributes:
        path: the `.sigmf-meta` file or the archive.
        name: the file's name without its suffix.
        sample_rate_hz: complex samples a second; also the width of the band.
        center_hz: the RF frequency in its middle, or None where the recording does not say.
        datatype: as SigMF names it, such as `ci16_le`.
        samples: how many there are.
        annotations: by their first sample.
        started: when the first sample was taken, in UTC, or None.
        notes: what is odd but not fatal.
        data: the file with the samples.
        offset: of the first sample in it, in bytes.
        sha512: of the data, as the metadata state it; only `open_recording(verify=True)` compares it.
    """

    path: Path
    name: str
    sample_rate_hz: float
    center_hz: float | None
    datatype: str
    samples: int
    annotations: tuple[Annotation, ...]
    started: datetime | None
    notes: tuple[str, ...]
    data: Path
    offset: int
    sha512: str | None = None

    @property
    def duration_s(self) -> float:
        """The length in seconds."""
        return self.samples / self.sample_rate_hz

    @property
    def size_bytes(self) -> int:
        """The size of the samples on disk."""
        return self.samples * SampleFormat.parse(self.datatype).sample_bytes

    def read(self, start: int, count: int) -> Complex64:
        """Samples `start` to `start + count`, (count,), full scale 1 for integer types; an array of its own.

        Raises:
            ValueError: that is not within the recording.
            UserError: a sample is NaN or infinite, or the file has become shorter.
        """
        if start < 0 or count < 0 or start + count > self.samples:
            raise ValueError(f"{self.name}: samples {start} to {start + count} of {self.samples} cannot be read")
        if count == 0:
            return np.empty(0, dtype=np.complex64)
        form = SampleFormat.parse(self.datatype)
        first = self.offset + start * form.sample_bytes
        with self.data.open("rb") as file:
            # a map past a file's end is no error but kills the process on touch
            if file.seek(0, 2) < first + count * form.sample_bytes:
                raise UserError(f"{self.data}: has become shorter since it was opened", "Fetch the whole data file")
            samples = form.decode(np.memmap(file, dtype=form.component, mode="r", offset=first, shape=(2 * count,)))
        if form.is_float:
            self._check_finite(samples, start)
        return samples

    def _check_finite(self, samples: Complex64, start: int) -> None:
        finite = np.isfinite(samples)
        if not finite.all():
            index = int(np.argmin(finite))
            bad = samples.size - int(np.count_nonzero(finite))
            raise UserError(
                f"{self.data}: sample {start + index} is {samples[index]:g}, no finite number "
                f"({bad} such in samples {start} to {start + samples.size})",
                "Record anew, or cut the recording before it",
            )

    def close(self) -> None:
        """Nothing is held open between reads: here so that a recording may stand in `with`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_recording(path: Path, *, verify: bool = False) -> Recording:
    """Open and check a recording; of the samples nothing is read.

    Args:
        path: a `.sigmf-meta` or `.sigmf-data` file, an uncompressed `.sigmf` archive, or their name without the suffix.
        verify: read all of the data, in blocks, and compare them with `core:sha512`.

    Raises:
        UserError: file, field and fix, for whatever makes the recording unusable.
    """
    source = locate(Path(path))
    metadata, notes = read_metadata(source.meta, source.path)
    form = _format(metadata["global"], source, notes)
    rate = metadata["global"].get("core:sample_rate")
    if rate is None:
        raise UserError(f"{source.path}: core:sample_rate is missing from global", "Add the rate in samples a second")
    source = with_data(source, metadata)
    assert source.data is not None
    header, samples = _extent(metadata, source, form)
    center = _center(metadata["captures"], source, notes)
    first = metadata["global"].get("core:offset", 0)
    segments = _segments(metadata["captures"], first, samples, source, notes)
    frame = Frame(str(source.path), float(rate), center, first, samples, segments)
    annotations, odd = parse_annotations(metadata["annotations"], frame)
    if verify:
        _verify(metadata["global"].get("core:sha512"), source, notes)
    return Recording(
        path=source.path,
        name=source.name,
        sample_rate_hz=float(rate),
        center_hz=center,
        datatype=form.name,
        samples=samples,
        annotations=annotations,
        started=_started(metadata["captures"], notes),
        notes=(*notes, *odd),
        data=source.data,
        offset=source.offset + header,
        sha512=metadata["global"].get("core:sha512"),
    )


def find_recordings(root: Path) -> list[Path]:
    """Every recording below a folder, sorted: `.sigmf-meta` files, archives, the members of collections.

    A member that a collection names and that is missing is among them: opening it says so.

    Args:
        root: a folder, a collection or a recording.

    Raises:
        UserError: there is none, or `root` is a collection that cannot be read.
    """
    root = Path(root)
    if root.suffix == COLLECTION:
        return sorted(members(root))
    if not root.is_dir():
        return [locate(root).path]
    found = {path for suffix in (META, ARCHIVE) for path in root.rglob(f"*{suffix}") if path.is_file()}
    for collection in sorted(root.rglob(f"*{COLLECTION}")):
        try:
            found.update(members(collection))
        except UserError as error:  # what lies in the folder is found without it
            _log.warning("left out: %s", error)
    if not found:
        raise UserError(f"{root}: there is no recording in this folder", "It needs .sigmf-meta files or .sigmf archives")
    return sorted(found)


def _format(settings: dict[str, Any], source: Source, notes: list[str]) -> SampleFormat:
    try:
        form = SampleFormat.parse(settings["core:datatype"])
    except ValueError as error:
        raise UserError(
            f"{source.path}: core:datatype {error}", "Convert the recording to cf32_le, ci16_le, ci8 or cu8, or correct the field"
        ) from error
    if not form.states_order:
        notes.append(f"core:datatype {form.name} does not say the byte order; taken as little-endian")
    channels = settings.get("core:num_channels", 1)
    if channels != 1:
        raise UserError(f"{source.path}: core:num_channels is {channels}", "Split it into one recording a channel")
    return form


def _extent(metadata: dict[str, Any], source: Source, form: SampleFormat) -> tuple[int, int]:
    """The bytes before the first sample, and the number of samples."""
    headers = [capture.get("core:header_bytes", 0) for capture in metadata["captures"]]
    if any(headers[1:]):
        raise UserError(
            f"{source.path}: captures after the first have core:header_bytes, so the samples are not in one piece",
            "Convert the recording to a conforming one",
        )
    header = sum(headers)
    size = source.size - header - metadata["global"].get("core:trailing_bytes", 0)
    assert source.data is not None
    samples, rest = divmod(size, form.sample_bytes)
    if samples <= 0:
        raise UserError(f"{source.data}: holds no samples ({source.size} bytes)", "Fetch the whole data file")
    if rest:
        raise UserError(
            f"{source.data}: {size} bytes are no whole number of {form.name} samples of {form.sample_bytes} bytes: truncated, or "
            "core:datatype is wrong",
            "Fetch the whole data file, or correct core:datatype",
        )
    return header, samples


def _center(captures: list[dict[str, Any]], source: Source, notes: list[str]) -> float | None:
    if not captures:
        notes.append("there are no captures: centre frequency and time of day are unknown")
    given = [(capture["core:sample_start"], capture.get("core:frequency")) for capture in captures]
    known = [(start, float(frequency)) for start, frequency in given if frequency is not None]
    for start, frequency in known:
        if frequency != known[0][1]:
            raise UserError(
                f"{source.path}: core:frequency changes from {known[0][1]:.12g} to {frequency:.12g} Hz at sample {start}",
                "Split it into one recording a centre frequency",
            )
    if known and len(known) < len(given):
        notes.append(f"{len(given) - len(known)} of {len(given)} captures have no core:frequency; the others' was taken")
    return known[0][1] if known else None


def _segments(captures: list[dict[str, Any]], first: int, samples: int, source: Source, notes: list[str]) -> tuple[int, ...]:
    """Where captures begin, in samples of the file."""
    starts = tuple(int(capture["core:sample_start"]) - first for capture in captures)
    for number, start in enumerate(starts):
        if not 0 <= start < samples:
            raise UserError(
                f"{source.path}: captures[{number}]: core:sample_start {start + first} is outside the data, which are samples "
                f"{first} to {first + samples}",
                "Fetch the whole data file, or correct core:sample_start",
            )
    shifts = {
        capture["core:global_index"] - capture["core:sample_start"] for capture in captures if "core:global_index" in capture
    }
    if len(shifts) > 1:
        notes.append("core:global_index says that samples were lost between captures; they are read as if in one piece")
    return starts


def _started(captures: list[dict[str, Any]], notes: list[str]) -> datetime | None:
    text = captures[0].get("core:datetime") if captures else None
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        notes.append(f"core:datetime {text!r} is no time of ISO 8601; left out")
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _verify(expected: str | None, source: Source, notes: list[str]) -> None:
    if expected is None:
        notes.append("there is no core:sha512 to verify the data against")
        return
    if calculate_sha512(source.data, offset=source.offset, size=source.size) != expected.lower():
        raise UserError(f"{source.data}: the data are not those that core:sha512 describes", "Fetch the data file anew")
