"""SigMF as a body: metadata and data as two fields of a form, or an archive."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from longhaul.errors import UserError
from longhaul.serving.http.intake.archives import find_packed
from longhaul.serving.http.intake.signals import ByteFile, Signal, check_frequencies
from longhaul.serving.http.settings import Limits
from longhaul.serving.refusals import BrokenSignal
from longhaul.signals.recording import Recording, open_recording
from longhaul.signals.sigmf_files import DATA, META

_CAPTURES = 1000
_NAME = "recording"
_GLOBAL = ("datatype", "version", "sample_rate", "num_channels", "offset", "trailing_bytes", "metadata_only")
_CAPTURE = ("sample_start", "frequency", "header_bytes", "global_index")


def recording_in_pair(
    meta: bytes, data: ByteFile, name: str, limits: Limits, *, offset: int = 0, size: int | None = None
) -> Signal:
    """The signal of metadata and samples.

    Args:
        meta: the text of a `.sigmf-meta` file.
        data: the file with the samples.
        name: what messages call the recording.
        limits: bounds on its frequencies.
        offset: where in `data` the recording's data begin, in bytes.
        size: how many bytes they are; to the file's end if left out.

    Raises:
        BrokenSignal: it cannot be used; the message names the field.
    """
    length = data.seek(0, 2) - offset if size is None else size
    recording = _described(_essentials(meta), length, name)
    check_frequencies(name, recording.sample_rate_hz, recording.center_hz, limits)
    return Signal(recording, data, offset + recording.offset, recording.notes)


def recording_in_archive(file: ByteFile, name: str, limits: Limits) -> Signal:
    """The signal of an archive.

    Raises:
        Refusal: `find_packed`'s and `recording_in_pair`'s.
    """
    packed = find_packed(file, name, limits)
    return recording_in_pair(packed.meta, file, name, limits, offset=packed.offset, size=packed.size)


def _described(meta: bytes, size: int, name: str) -> Recording:
    """What `open_recording` makes of it: it gets the metadata, and a data file that has the size and nothing on disk."""
    with tempfile.TemporaryDirectory(prefix="longhaul-sigmf-") as folder:
        file = Path(folder) / f"{_NAME}{META}"
        file.write_bytes(meta)
        data = file.with_name(_NAME + DATA)
        data.touch()
        os.truncate(data, size)
        try:
            recording = open_recording(file)
        except UserError as error:
            # the client knows neither folder nor file names
            told = error.problem.replace(str(file), name).replace(str(data), f"{name}, data").replace(folder, "")
            raise BrokenSignal(told, error.fix) from None
    return replace(recording, name=name, path=Path(name), data=Path(name))


def _essentials(raw: bytes) -> bytes:
    """The metadata without what is not needed here, so that reading them takes no time that a client decides on.

    What is not of SigMF's shape is left as it is: `open_recording` says what is wrong with it.
    """
    try:
        metadata = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return raw
    if not isinstance(metadata, dict):
        return raw[:1000] if len(raw) > 1000 else raw
    captures = metadata.get("captures")
    if isinstance(captures, list) and len(captures) > _CAPTURES:
        raise BrokenSignal(f"the metadata have {len(captures):,} captures, the limit is {_CAPTURES:,}", "Split the recording")
    kept: dict[str, Any] = {"annotations": []} if isinstance(metadata.get("annotations"), list) else {}
    if "global" in metadata:
        kept["global"] = _only(metadata["global"], _GLOBAL)
    if isinstance(captures, list):
        kept["captures"] = [_only(capture, _CAPTURE) for capture in captures]
    return json.dumps(kept).encode()


def _only(entry: object, fields: tuple[str, ...]) -> object:
    """The named fields of an object, each if it is a plain value; a stand-in for anything else, which the schema refuses."""
    if not isinstance(entry, dict):
        return None
    wanted = {f"core:{field}": entry.get(f"core:{field}") for field in fields}
    return {
        name: "" if isinstance(value, (dict, list)) else value[:200] if isinstance(value, str) else value
        for name, value in wanted.items()
        if name in entry
    }
