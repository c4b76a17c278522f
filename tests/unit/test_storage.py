"""The same promises on a local path and on S3: whole files or none, listings, hashes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from longhaul.errors import UserError
from longhaul.storage import Storage, file_sha256

MIB = 1 << 20
UPLOAD_FROM_STDIN = """
import sys
from pathlib import Path
from longhaul.storage import Storage
Storage.open(sys.argv[1]).upload(Path("/dev/stdin"), "file")
"""


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    if request.param == "local":
        return Storage.open(tmp_path / "store")
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3_endpoint"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return Storage.open(f"s3://{bucket}/deep/prefix/")


def test_bytes_come_back_and_are_replaced_whole(storage: Storage) -> None:
    storage.write_bytes("a/b/file.bin", b"first content")
    assert storage.read_bytes("a/b/file.bin") == b"first content"
    storage.write_bytes("a/b/file.bin", b"2nd")
    assert storage.read_bytes("a/b/file.bin") == b"2nd"
    assert storage.size("a/b/file.bin") == 3
    assert storage.files() == ["a/b/file.bin"]


def test_uri_leads_back_to_the_same_folder(storage: Storage) -> None:
    storage.child("run").write_bytes("file", b"x")
    assert Storage.open(storage.uri).read_bytes("run/file") == b"x"
    assert Storage.open(storage.child("run").uri).files() == ["file"]
    assert storage.path("run/file").endswith("run/file")
    assert storage.is_local == (not storage.uri.startswith("s3://"))


def test_listing(storage: Storage) -> None:
    for name in ("b/2", "b/1", "a", "b/c/3"):
        storage.write_bytes(name, b"x" * 5)
    assert [(e.name, e.is_dir) for e in storage.list()] == [("a", False), ("b", True)]
    assert [(e.name, e.is_dir) for e in storage.list("b")] == [("1", False), ("2", False), ("c", True)]
    entry = storage.list()[0]
    assert entry.size == 5
    assert entry.modified_s > 1.6e9
    assert storage.files("b") == ["1", "2", "c/3"]
    assert storage.exists("b")
    assert storage.exists("b/1")


def test_what_is_not_there(storage: Storage) -> None:
    assert storage.list("no") == []
    assert storage.files("no") == []
    assert not storage.exists("no")
    assert storage.size("no") is None
    storage.delete_dir("no")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("no")
    with pytest.raises(FileNotFoundError):
        storage.delete_file("no")


def test_delete(storage: Storage) -> None:
    for name in ("a", "b/1", "b/c/2"):
        storage.write_bytes(name, b"x")
    storage.delete_file("a")
    storage.delete_dir("b")
    assert storage.files() == []


@pytest.mark.parametrize("size", [0, 1, 9 * MIB + 1], ids=["empty", "byte", "several blocks"])
def test_upload_download_and_hash(storage: Storage, tmp_path: Path, size: int) -> None:
    source, back = tmp_path / "source", tmp_path / "new" / "folder" / "back"
    source.write_bytes(os.urandom(MIB) * 10 if size > MIB else b"x" * size)
    os.truncate(source, size)
    storage.upload(source, "up/loaded")
    assert storage.size("up/loaded") == size
    assert storage.sha256("up/loaded") == file_sha256(source)
    storage.download("up/loaded", back)
    assert back.read_bytes() == source.read_bytes()


def test_failed_upload_leaves_the_old_content(storage: Storage, tmp_path: Path) -> None:
    storage.write_bytes("file", b"old")
    with pytest.raises(FileNotFoundError):
        storage.upload(tmp_path / "missing", "file")
    assert storage.read_bytes("file") == b"old"
    assert storage.files() == ["file"]


@pytest.mark.parametrize("old", [b"old", None], ids=["over old content", "new name"])
def test_writer_killed_midway_publishes_nothing(storage: Storage, old: bytes | None) -> None:
    if old is not None:
        storage.write_bytes("file", old)
    command = [sys.executable, "-c", UPLOAD_FROM_STDIN, storage.uri]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        # A pipe holds far less than this: when the write returns, the first blocks have gone on to the storage.
        writer.stdin.write(b"n" * (24 * MIB))
        assert storage.size("file") == (len(old) if old else None)
        writer.kill()
        assert writer.wait() == -signal.SIGKILL
    assert_holds_only(storage, old)


class FailingDisk(type(Path())):  # type: ignore[misc]
    """A file whose disk fails after 20 MiB."""

    def open(self, *_: object, **__: object) -> io.BufferedReader:  # type: ignore[override]
        class Raw(io.RawIOBase):
            left = 20 * MIB

            def readable(self) -> bool:
                return True

            def readinto(self, buffer: bytearray) -> int:
                if self.left <= 0:
                    raise OSError(5, "the disk failed")
                self.left -= len(buffer)
                return len(buffer)

        return io.BufferedReader(Raw())


@pytest.mark.parametrize("old", [b"old", None], ids=["over old content", "new name"])
def test_source_failing_midway_publishes_nothing(storage: Storage, old: bytes | None) -> None:
    if old is not None:
        storage.write_bytes("file", old)
    with pytest.raises(OSError, match="the disk failed"):
        storage.upload(FailingDisk("x"), "file")
    assert_holds_only(storage, old)


def assert_holds_only(storage: Storage, content: bytes | None) -> None:
    names = [] if content is None else ["file"]
    assert storage.files() == names
    assert [entry.name for entry in storage.list()] == names
    if content is not None:
        assert storage.read_bytes("file") == content


def test_reader_never_sees_a_part_of_a_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage.open(tmp_path)
    storage.write_bytes("file", b"old")
    seen: list[tuple[bytes, list[str]]] = []

    def spying(replace: Callable[[str, str], None]) -> Callable[[str, str], None]:
        def move(source: str, target: str) -> None:
            seen.append((storage.read_bytes("file"), storage.files()))
            assert Path(source).read_bytes() == b"new content"
            replace(source, target)

        return move

    monkeypatch.setattr(os, "replace", spying(os.replace))
    storage.write_bytes("file", b"new content")
    assert seen == [(b"old", ["file"])]
    assert storage.read_bytes("file") == b"new content"


def test_a_failing_local_write_cleans_up(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    (tmp_path / "file" / "below").mkdir(parents=True)  # a folder stands where the file should go
    with pytest.raises(OSError, match="file"):
        storage.write_bytes("file", b"x")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("uri", ["s3//bucket/x", "s3:/bucket/x", "s3:bucket/x", "S3://bucket/x"])
def test_a_slip_of_s3_is_no_folder(uri: str) -> None:
    with pytest.raises(UserError, match="nearly s3"):
        Storage.open(uri)
    assert Storage.open("s3/x").is_local


@pytest.mark.parametrize("uri", ["gs://bucket/x", "http://somewhere", "s3://", "s3:///x", "s3://bucket/x?scheme=http"])
def test_an_address_that_cannot_be_used(uri: str) -> None:
    with pytest.raises(UserError, match=r"storage .*: (unknown scheme|not of the form s3://bucket/prefix)"):
        Storage.open(uri)


def test_local_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for uri in ("runs", Path("runs"), f"file://{tmp_path}/runs", "~/runs", "./x/../runs"):
        assert Storage.open(uri).uri == str(tmp_path / "runs")


def test_a_file_that_is_deleted_between_opening_and_reading_is_missing(storage: Storage) -> None:
    """As retention does it to somebody who has just listed the checkpoint."""
    if storage.is_local:
        pytest.skip("a local file that is open stays readable")

    def read_what_goes() -> None:
        storage.write_bytes("gone", b"content")
        with storage._reading("gone") as stream:
            storage.delete_file("gone")
            stream.read()

    with pytest.raises(FileNotFoundError, match="was deleted meanwhile"):
        read_what_goes()
