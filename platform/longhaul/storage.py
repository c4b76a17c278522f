"""Files on a local path or on S3 behind one small interface, over `pyarrow.fs`.

Everything that outlives a process (run directories, checkpoints, the model registry) goes through `Storage`, so that the
same code serves a laptop's disk and a bucket. A `Storage` is cheap and does not pickle: send its `uri` to other processes
and call `Storage.open` there.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict, Field

from longhaul.errors import UserError

_COPY_BYTES = 8 << 20
_NEARLY_S3 = re.compile(r"s3(:|//)", re.IGNORECASE)  # taken for a folder, it would hide the slip
_PARTIAL = re.compile(r"\.partial-[0-9a-f]{8}$")  # a local file that is still being written, or whose writer died
_S3_CONNECT_TIMEOUT_S = 5.0
_S3_REQUEST_TIMEOUT_S = 60.0
_S3_ATTEMPTS = 5


class FileRecord(BaseModel):
    """What a manifest says of a file: its SHA-256 in hexadecimal and its size in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Entry:
    """One child of a folder: its `name` (no path), whether it is a folder, its size in bytes, when it last changed."""

    name: str
    is_dir: bool
    size: int
    modified_s: float


@dataclass(frozen=True)
class Storage:
    """A folder on a `pyarrow.fs.FileSystem`; all names are relative to it, with `/` between parts.

    Attributes:
        filesystem: where the files are.
        root: the folder's path inside `filesystem`.
        uri: what `Storage.open` takes to get here again: an absolute path, or `s3://bucket/prefix`.
    """

    filesystem: pafs.FileSystem
    root: str
    uri: str

    @classmethod
    def open(cls, uri: str | Path) -> Storage:
        """Open a local folder (made absolute; it need not exist yet) or `s3://bucket/prefix`.

        S3 takes credentials and endpoint from the environment (`AWS_*`, `AWS_ENDPOINT_URL` too), as boto3 does.

        Raises:
            UserError: the scheme is neither a path nor s3, s3:// is misspelt, or there is no bucket.
        """
        text = str(uri)
        if text.startswith("s3://"):
            root = text.removeprefix("s3://").rstrip("/")
            if not root or root.startswith("/") or "?" in root:
                raise UserError(f"storage {text!r}: not of the form s3://bucket/prefix", "Give options as AWS_* variables")
            return cls(_s3_filesystem(root.partition("/")[0]), root, f"s3://{root}")
        if _NEARLY_S3.match(text):
            raise UserError(f"storage {text!r}: nearly s3", "Write s3://bucket/prefix")
        if "://" in text and not text.startswith("file://"):
            raise UserError(f"storage {text!r}: unknown scheme", "Give a local path or s3://bucket/prefix")
        path = str(Path(text.removeprefix("file://")).expanduser().resolve())
        return cls(pafs.LocalFileSystem(), path, path)

    @property
    def is_local(self) -> bool:
        """Whether the files lie on this machine's own file system."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def child(self, name: str) -> Storage:
        """The folder `name` below this one."""
        return Storage(self.filesystem, f"{self.root}/{name}", f"{self.uri}/{name}")

    def path(self, name: str = "") -> str:
        """The path of `name` inside `filesystem`."""
        return f"{self.root}/{name}" if name else self.root

    def exists(self, name: str = "") -> bool:
        """Whether `name` is a file or a (non-empty, on S3) folder."""
        return bool(self.filesystem.get_file_info(self.path(name)).type != pafs.FileType.NotFound)

    def list(self, name: str = "") -> list[Entry]:
        """The direct children of folder `name`, sorted by name; empty where there is no such folder."""
        infos = self.filesystem.get_file_info(pafs.FileSelector(self.path(name), allow_not_found=True))
        entries = [
            Entry(i.base_name, i.type == pafs.FileType.Directory, i.size or 0, i.mtime.timestamp() if i.mtime else 0.0)
            for i in infos
            if not _PARTIAL.search(i.base_name)
        ]
        return sorted(entries, key=lambda entry: entry.name)

    def files(self, name: str = "") -> builtins.list[str]:
        """Every file below folder `name`, however deep, as names relative to that folder, sorted."""
        base = self.path(name)
        infos = self.filesystem.get_file_info(pafs.FileSelector(base, allow_not_found=True, recursive=True))
        names = (i.path[len(base) + 1 :] for i in infos if i.type == pafs.FileType.File)
        return sorted(name for name in names if not _PARTIAL.search(name))

    def read_bytes(self, name: str) -> bytes:
        """The whole file.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._reading(name) as stream:
            return bytes(stream.read())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write the whole file so that a reader sees the old content or the new one, never a part."""
        with self._replacing(name) as target, self.filesystem.open_output_stream(target) as stream:
            stream.write(data)

    def upload(self, source: Path, name: str) -> None:
        """Copy a local file to `name`; it appears under that name only when it is complete."""
        if not self.is_local:
            # pyarrow cannot abort a stream: an interrupt half-way would publish the half. boto3 aborts.
            bucket, _, key = self.path(name).partition("/")
            self._put(source, bucket, key)
            return
        with self._replacing(name) as target, source.open("rb") as src, Path(target).open("wb") as out:
            shutil.copyfileobj(src, out, _COPY_BYTES)

    def _put(self, source: Path, bucket: str, key: str) -> None:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            with source.open("rb") as src:
                _s3_client(self.filesystem.region).upload_fileobj(src, bucket, key)
        except (Boto3Error, BotoCoreError, ClientError) as error:  # as pyarrow's, so that callers need to know one kind
            raise OSError(f"AWS Error uploading s3://{bucket}/{key}: {error}") from error

    def download(self, name: str, target: Path) -> None:
        """Copy the file `name` to the local path `target`, making its folder."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._reading(name) as src, target.open("wb") as out:
            while block := src.read(_COPY_BYTES):
                out.write(block)

    def sha256(self, name: str) -> str:
        """The SHA-256 of a stored file, in hexadecimal, read in blocks."""
        digest = hashlib.sha256()
        with self._reading(name) as stream:
            while block := stream.read(_COPY_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def size(self, name: str) -> int | None:
        """The size of a file in bytes; None where there is no such file."""
        info = self.filesystem.get_file_info(self.path(name))
        return info.size if info.type == pafs.FileType.File else None

    def delete_file(self, name: str) -> None:
        """Delete one file."""
        self.filesystem.delete_file(self.path(name))

    def delete_dir(self, name: str) -> None:
        """Delete a folder and all below it; nothing happens where there is none."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.path(name))

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[Any]:
        """A stream of a file; one that is deleted between the opening and the reading is missing too (S3 says anything)."""
        try:
            with self.filesystem.open_input_stream(self.path(name)) as stream:
                yield stream
        except FileNotFoundError:
            raise
        except OSError as error:
            gone = False
            with contextlib.suppress(OSError):
                gone = self.size(name) is None
            if gone:
                raise FileNotFoundError(f"{self.uri}/{name}: was deleted meanwhile") from error
            raise

    @contextlib.contextmanager
    def _replacing(self, name: str) -> Iterator[str]:
        """Yield the path to write to; S3 shows an object only when complete, a local file is moved into place."""
        target = self.path(name)
        if not self.is_local:
            yield target
            return
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        partial = f"{target}.partial-{uuid.uuid4().hex[:8]}"
        try:
            yield partial
            os.replace(partial, target)
        finally:
            Path(partial).unlink(missing_ok=True)


def _s3_filesystem(bucket: str) -> pafs.FileSystem:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    scheme, _, address = endpoint.rpartition("://")  # pyarrow itself reads these variables only for its own URIs
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return pafs.S3FileSystem(
        endpoint_override=address or None,
        scheme=scheme or "https",
        region=region or (None if endpoint else pafs.resolve_s3_region(bucket)),
        connect_timeout=_S3_CONNECT_TIMEOUT_S,
        request_timeout=_S3_REQUEST_TIMEOUT_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS),
    )


def _s3_client(region: str) -> Any:
    import boto3
    from botocore.config import Config

    retries: Any = {"mode": "standard", "total_max_attempts": _S3_ATTEMPTS}
    config = Config(connect_timeout=_S3_CONNECT_TIMEOUT_S, read_timeout=_S3_REQUEST_TIMEOUT_S, retries=retries)
    return boto3.client("s3", region_name=region, config=config)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a local file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cache_folder(name: str) -> Path:
    """`$LONGHAUL_CACHE/<name>`, or `~/.cache/longhaul/<name>`: what Longhaul makes itself and could make again."""
    return Path(os.environ.get("LONGHAUL_CACHE", Path.home() / ".cache" / "longhaul")) / name
