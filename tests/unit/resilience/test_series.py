"""Series: every row exactly once, whatever the writer was doing when someone looked or the machine went away."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longhaul.errors import IntegrityError
from longhaul.resilience import series
from longhaul.resilience.series import EVENTS, METRICS, SeriesReader, SeriesWriter, latest_values, read_series
from longhaul.storage import Storage


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    if request.param == "local":
        return Storage.open(tmp_path / "series")
    import boto3

    settings = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in (settings | {"AWS_ENDPOINT_URL": request.getfixturevalue("s3_server")}).items():
        monkeypatch.setenv(name, value)
    bucket = f"series-{uuid.uuid4().hex[:8]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return Storage.open(f"s3://{bucket}/metrics")


@pytest.fixture(autouse=True)
def merge_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge at 6 parts: an S3 server in the same process is slow."""
    monkeypatch.setattr(series, "_MERGE_AT", 6)


def put(writer: SeriesWriter, step: int, value: float = 0.5, name: str = "train/loss", segment: int = 1) -> None:
    writer.append(segment=segment, step=step, epoch=step / 10, samples=step * 8, time_s=1000.0 + step, name=name, value=value)


def parts(storage: Storage) -> list[str]:
    return [entry.name for entry in storage.list()]


def steps(table: pa.Table) -> list[int]:
    return table.column("step").to_pylist()


def test_nothing_there_is_an_empty_table(storage: Storage) -> None:
    table = read_series(storage, METRICS)
    assert len(table) == 0
    assert table.schema.equals(METRICS)


def test_rows_come_back_sorted_with_their_types(storage: Storage) -> None:
    with SeriesWriter(storage, METRICS) as writer:
        for step in (3, 1, 2):
            put(writer, step, value=math.nan if step == 2 else step)
    table = read_series(storage, METRICS)
    assert table.schema.equals(METRICS)
    assert steps(table) == [1, 2, 3]
    assert math.isnan(table.column("value").to_pylist()[1])


def test_merging_keeps_every_row_once(storage: Storage) -> None:
    with SeriesWriter(storage, METRICS) as writer:
        for step in range(14):
            put(writer, step)
            writer.flush()
        assert len(parts(storage)) < 6
    assert steps(read_series(storage, METRICS)) == list(range(14))


@pytest.mark.parametrize("deleted", [0, 3])
def test_a_crash_between_merge_and_delete_leaves_no_doubles(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, deleted: int
) -> None:
    class KilledError(BaseException):
        """What a SIGKILL would be."""

    real, left = Storage.delete_file, [deleted]

    def delete_some(self: Storage, name: str) -> None:
        if not left[0]:
            raise KilledError
        left[0] -= 1
        real(self, name)

    monkeypatch.setattr(Storage, "delete_file", delete_some)
    writer = SeriesWriter(storage, METRICS)
    for step in range(5):
        put(writer, step, value=math.nan if step == 2 else step)
        writer.flush()
    put(writer, 5)
    with pytest.raises(KilledError):
        writer.flush()
    monkeypatch.setattr(Storage, "delete_file", real)
    assert len(parts(storage)) == 7 - deleted  # the merged part and what is left of its 6 sources
    assert steps(read_series(storage, METRICS)) == list(range(6))
    with SeriesWriter(storage, METRICS) as after:  # the restarted process
        put(after, 6)
    assert steps(read_series(storage, METRICS)) == list(range(7))


def test_a_failed_delete_does_not_stop_the_writer(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Storage, name: str) -> None:
        raise OSError("no permission to delete")

    monkeypatch.setattr(Storage, "delete_file", refuse)
    with SeriesWriter(storage, METRICS) as writer:
        for step in range(13):  # two merges
            put(writer, step)
            writer.flush()
    assert steps(read_series(storage, METRICS)) == list(range(13))


def test_a_large_part_is_not_merged_again(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "_SEALED_ROWS", 6)
    with SeriesWriter(storage, METRICS) as writer:
        for step in range(6):
            put(writer, step)
            writer.flush()
        sealed = parts(storage)
        for step in range(6, 18):
            put(writer, step)
            writer.flush()
    assert len(sealed) == 1
    assert sealed[0] in parts(storage)
    assert steps(read_series(storage, METRICS)) == list(range(18))


def test_a_part_that_is_merged_away_while_reading_is_found_in_its_successor(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = SeriesWriter(storage, METRICS)
    for step in range(5):
        put(writer, step)
        writer.flush()
    real, listings = Storage.list, []

    def list_then_merge(self: Storage, name: str = "") -> list[object]:
        found = real(self, name)
        if not listings:  # the writer merges right after the reader's first listing
            listings.append(found)
            put(writer, 5)
            writer.flush()
        return found

    monkeypatch.setattr(Storage, "list", list_then_merge)
    assert steps(read_series(storage, METRICS)) == list(range(6))


def test_a_reader_sees_no_partial_file(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    with SeriesWriter(storage, METRICS) as writer:
        put(writer, 1)
    whole = next(tmp_path.glob("*.parquet"))
    (tmp_path / f"{whole.name}.partial-0a1b2c3d").write_bytes(whole.read_bytes()[:50])  # a writer killed in the middle
    assert steps(read_series(storage, METRICS)) == [1]


@pytest.mark.parametrize("cut", [0, 3, 100, -1])
def test_a_damaged_part_is_named(storage: Storage, cut: int) -> None:
    with SeriesWriter(storage, METRICS) as writer:
        put(writer, 1)
    (name,) = parts(storage)
    storage.write_bytes(name, storage.read_bytes(name)[:cut])
    with pytest.raises(IntegrityError, match=name):
        read_series(storage, METRICS)
    with pytest.raises(IntegrityError, match=name):
        latest_values(storage, {"train/loss"})


def test_a_foreign_part_is_named(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "part-foreign.parquet")
    with pytest.raises(IntegrityError, match=r"part-foreign\.parquet: has the columns a, b"):
        read_series(storage, METRICS)


def test_metrics_and_events_do_not_mix(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    with SeriesWriter(storage, METRICS) as writer:
        put(writer, 1)
    with pytest.raises(IntegrityError):
        read_series(storage, EVENTS)


def test_a_reader_fetches_each_part_once(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    real = Storage.read_bytes
    monkeypatch.setattr(Storage, "read_bytes", lambda self, name: (fetched.append(name), real(self, name))[1])
    reader, writer = SeriesReader(storage, METRICS), SeriesWriter(storage, METRICS)
    for step in range(5):
        put(writer, step)
        writer.flush()
        assert steps(reader.read()) == list(range(step + 1))
    assert sorted(fetched) == parts(storage)
    before = reader.read()
    assert reader.read() is before


def test_a_reader_follows_a_merge(storage: Storage) -> None:
    reader, writer = SeriesReader(storage, METRICS), SeriesWriter(storage, METRICS)
    for step in range(9):
        put(writer, step)
        writer.flush()
        assert steps(reader.read()) == list(range(step + 1))


def test_a_reader_that_met_a_damaged_part_is_right_after_the_repair(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    for step in range(2):
        with SeriesWriter(storage, METRICS) as writer:
            put(writer, step)
    name = parts(storage)[1]
    whole = storage.read_bytes(name)
    reader = SeriesReader(storage, METRICS)
    storage.write_bytes(name, whole[:20])
    with pytest.raises(IntegrityError):
        reader.read()
    storage.delete_file(name)
    assert steps(reader.read()) == [0]


def test_latest_values_prefer_the_newest_segment_and_read_little(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for segment, last in ((1, 9), (2, 6)):  # the second start went back to step 3
        for step in range(3 if segment == 2 else 0, last):
            with SeriesWriter(storage, METRICS) as writer:
                put(writer, step, value=segment + step / 10, segment=segment)
    fetched: list[str] = []
    real = Storage.read_bytes
    monkeypatch.setattr(Storage, "read_bytes", lambda self, name: (fetched.append(name), real(self, name))[1])
    found = latest_values(storage, {"train/loss"})
    assert found["train/loss"]["value"] == pytest.approx(2.5)
    assert len(fetched) == 1
    assert latest_values(storage, {"val/top1"}) == {}


def test_rows_wait_for_a_storage_that_is_away(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is kept from working, and nothing is lost."""
    write = Storage.write_bytes

    def away(self: Storage, name: str, data: bytes) -> None:
        raise OSError("AWS Error SLOW_DOWN during PutObject operation")

    with SeriesWriter(storage, METRICS) as writer:
        monkeypatch.setattr(Storage, "write_bytes", away)
        for step in range(3):
            put(writer, step)
            writer.flush()
        assert read_series(storage, METRICS).num_rows == 0
        monkeypatch.setattr(Storage, "write_bytes", write)
        put(writer, 3)
    assert read_series(storage, METRICS).column("step").to_pylist() == [0, 1, 2, 3]
