"""Finding a recording inside a SigMF archive (an uncompressed tar) of any file-like thing, within bounds.

Nothing is unpacked: the samples stay where they lie, and where that is, is told. So no member's path means anything, a link or
a device is only a member that is not looked at, and an archive cannot grow.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import IO, cast

from longhaul.serving.http.intake.signals import ByteFile
from longhaul.serving.http.settings import Limits
from longhaul.serving.refusals import BodyTooLarge, BrokenSignal, UnsupportedContentType
from longhaul.signals.sigmf_files import DATA, META

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd"}
_HEADER_BYTES = 64 << 10  # a tar header that wants more is no header of a recording
_ALL_HEADERS_BYTES = 256 << 10  # `tarfile` parses them in Python, while nobody else's Python runs


@dataclass(frozen=True)
class Packed:
    """A recording in an archive: its metadata as written, and where its data lie, in bytes."""

    meta: bytes
    offset: int
    size: int


class _Bounded:
    """A file for `tarfile`, which reads headers only, each as long as the archive says, and as many as there are."""

    def __init__(self, file: ByteFile) -> None:
        self._file = file
        self._position = 0
        self._left = _ALL_HEADERS_BYTES

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._position = self._file.seek(offset, whence)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        self._left -= max(size, 1)
        if not 0 <= size <= _HEADER_BYTES or self._left < 0:
            raise BrokenSignal("the archive has headers without end", "Pack the recording anew, as plain tar")
        block = self._file.read(size)
        self._position += len(block)
        return block


def find_packed(file: ByteFile, name: str, limits: Limits) -> Packed:
    """The one recording of an archive.

    Args:
        file: the archive; closed by the caller.
        name: what messages call it.
        limits: bounds on members and metadata.

    Raises:
        UnsupportedContentType: it is compressed.
        BrokenSignal: it is no tar archive, cut short, or does not hold exactly one recording.
        BodyTooLarge: more members, or longer metadata, than a request may bring.
    """
    size = file.seek(0, 2)
    file.seek(0)
    _refuse_compressed(file.read(8), name)
    file.seek(0)
    try:
        with tarfile.open(fileobj=cast(IO[bytes], _Bounded(file)), mode="r:") as archive:
            files = _files(archive, name, limits)
    except BrokenSignal:
        raise
    # numbers in headers may be anything, a header may follow a header without end, and an expected one be missing
    except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError, IndexError) as error:
        raise BrokenSignal(f"{name} is no tar archive, or damaged ({error})", "Send it whole, uncompressed") from None
    metas = [member for member in files if member.name.endswith(META)]
    if len(metas) != 1:
        raise BrokenSignal(f"{name} holds {len(metas)} {META} files, where one is needed", "Pack each recording into its own")
    stem = metas[0].name.removesuffix(META)
    data = [member for member in files if member.name == stem + DATA]
    if len(data) != 1 or data[0].issparse():
        raise BrokenSignal(f"{name} needs one plain {DATA} file beside its {META}", "Pack the recording with its data")
    for member in (metas[0], data[0]):
        if member.size < 0 or member.offset_data + member.size > size:
            raise BrokenSignal(f"{name} ends within its recording", "Send it whole")
    if metas[0].size > limits.metadata_bytes:
        raise BodyTooLarge(f"{name}: its metadata have more than {limits.metadata_bytes:,} bytes", "Leave out what is not needed")
    file.seek(metas[0].offset_data)
    return Packed(file.read(metas[0].size), data[0].offset_data, data[0].size)


def _refuse_compressed(start: bytes, name: str) -> None:
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            raise UnsupportedContentType(f"{name} is compressed ({kind})", "Send it uncompressed: a plain tar")


def _files(archive: tarfile.TarFile, name: str, limits: Limits) -> list[tarfile.TarInfo]:
    files = []
    for number, member in enumerate(archive):
        if number >= limits.archive_members:
            raise BodyTooLarge(f"{name} has more than {limits.archive_members} members", "Pack one recording")
        if member.isfile():
            files.append(member)
    return files
