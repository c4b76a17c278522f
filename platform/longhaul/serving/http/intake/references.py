"""A signal by reference: a recording below one of the allowed roots, of which only what is asked for is read.

Roots are folders of this machine or `s3://bucket/prefix`. A folder's files count by where they really are: a link that leads
out of the roots, leads to nothing.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from longhaul.serving.http.intake.sigmf_body import recording_in_archive, recording_in_pair
from longhaul.serving.http.intake.signals import ByteFile, Signal
from longhaul.serving.http.settings import Limits
from longhaul.serving.refusals import BadReference, BodyTooLarge, NotReady
from longhaul.signals.sigmf_files import ARCHIVE, DATA, META
from longhaul.storage import Storage

_FIX = "Give a .sigmf-meta file or a .sigmf archive below a root that the server allows"
_S3 = "s3://"
_NO_PLACE = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}


class Reference(BaseModel):
    """Where a recording is, and which stretch of it is meant."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: Annotated[str, Field(min_length=1, max_length=2048, pattern=r"^(/|s3://)[^\x00]+$")] = Field(
        examples=["s3://captures/2026/roof.sigmf-meta"]
    )
    start_s: float = Field(
        0.0, ge=0, le=1e9, allow_inf_nan=False, examples=[12.5],
        description="Where the stretch begins, in seconds of the recording. Times in the answer count from there.",
    )  # fmt: skip
    duration_s: float | None = Field(
        None, gt=0, le=1e9, allow_inf_nan=False, examples=[0.2], description="How long it is; to the recording's end if left out."
    )


class Root:
    """One place below which references may point.

    Args:
        address: an absolute folder, or `s3://bucket/prefix`.
    """

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        self.is_remote = address.startswith(_S3)

    @cached_property
    def _storage(self) -> Storage:
        return Storage.open(self._address)  # asks S3 for the bucket's region: not before somebody needs it

    def name_of(self, uri: str) -> str | None:
        """A reference as a name below this root; None if it is elsewhere."""
        if uri.startswith(_S3) != self.is_remote:
            return None
        if self.is_remote:
            name = uri.removeprefix(self._address + "/")
            return name if name != uri else None
        try:
            return str(Path(uri).resolve().relative_to(Path(self._address).resolve()))
        except (ValueError, OSError, RuntimeError):  # RuntimeError: links in a circle
            return None

    def holds(self, name: str) -> bool:
        """Whether a name, links followed, is still below this root."""
        return self.is_remote or self.name_of(f"{self._address}/{name}") is not None

    def size(self, name: str) -> int | None:
        """The size of a file in bytes; None if there is none, or it lies elsewhere."""
        return self._storage.size(name) if self.holds(name) else None

    def open(self, name: str) -> ByteFile:
        """The file, to be read here and there."""
        file: ByteFile = self._storage.filesystem.open_input_file(self._storage.path(name))
        return file


class References:
    """Opens what references point to.

    Args:
        roots: where they may point.
        limits: bounds on what is read.
    """

    def __init__(self, roots: Sequence[str], limits: Limits) -> None:
        self._roots = [Root(root) for root in roots]
        self._limits = limits

    def open(self, reference: Reference) -> Signal:
        """The signal that is meant; the caller closes it. It reads: call it on a thread.

        Raises:
            BadReference: outside the roots, or no recording there.
            Refusal: the recording cannot be used.
            NotReady: the storage does not answer.
        """
        uri = reference.uri
        if ".." in PurePosixPath(uri).parts or "//" in uri.removeprefix(_S3):
            raise BadReference(f"reference {uri!r}: goes up, or has an empty part", _FIX)
        for root in self._roots:
            name = root.name_of(uri)
            if name is not None:
                return self._recording(root, name, uri).stretch(reference.start_s, reference.duration_s)
        raise BadReference(f"reference {uri!r}: is not below a root that the server allows", _FIX)

    def _recording(self, root: Root, name: str, uri: str) -> Signal:
        try:
            return self._archive(root, name, uri) if name.endswith(ARCHIVE) else self._pair(root, name, uri)
        except OSError as error:
            no_place = isinstance(error, (FileNotFoundError, NotADirectoryError, PermissionError)) or error.errno in _NO_PLACE
            if no_place or "ACCESS_DENIED" in str(error):
                raise BadReference(f"reference {uri!r}: cannot be read", _FIX) from None
            raise NotReady(f"reference {uri!r}: the storage does not answer", "Try again later") from error

    def _archive(self, root: Root, name: str, uri: str) -> Signal:
        if root.size(name) is None:
            raise BadReference(f"reference {uri!r}: there is no such file", _FIX)
        return _closed_on_failure(root.open(name), lambda file: recording_in_archive(file, uri, self._limits))

    def _pair(self, root: Root, name: str, uri: str) -> Signal:
        stem = name.removesuffix(META) if name.endswith(META) else name.removesuffix(DATA)
        size = root.size(stem + META)
        if size is None:
            raise BadReference(f"reference {uri!r}: there is no such recording", _FIX)
        if size > self._limits.metadata_bytes:
            raise BodyTooLarge(
                f"{uri}: its metadata have {size:,} bytes, the limit is {self._limits.metadata_bytes:,}", "Split it"
            )
        with_meta = root.open(stem + META)
        try:
            meta = with_meta.read(size)
        finally:
            with_meta.close()
        data = _data_name(meta, stem)
        if root.size(data) is None:
            raise BadReference(f"reference {uri!r}: its data file is not there", "Put it beside the metadata")
        return _closed_on_failure(root.open(data), lambda file: recording_in_pair(meta, file, uri, self._limits))


def _closed_on_failure(file: ByteFile, read: Callable[[ByteFile], Signal]) -> Signal:
    try:
        return read(file)
    except BaseException:
        file.close()
        raise


def _data_name(meta: bytes, stem: str) -> str:
    """The data file's name: beside the metadata, called as they say (`core:dataset`) or as they are."""
    try:
        dataset = json.loads(meta.decode("utf-8-sig"))["global"]["core:dataset"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return stem + DATA
    if not isinstance(dataset, str) or "/" in dataset or dataset in ("", ".", ".."):
        return stem + DATA
    folder = stem.rpartition("/")[0]
    return f"{folder}/{dataset}" if folder else dataset
