"""Append-only tables as Parquet parts: what a run writes while it goes, and anyone reads with pyarrow alone.

A writer buffers rows and puts them out as a new part every so often; parts are small at first, for a live view, and rarer
later. Many parts are merged into one now and then; a reader that meets both a merged part and its sources (a crash between
the two steps) drops the doubles by the row's key.
"""

from __future__ import annotations

import io
import time
import uuid
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longhaul.storage import Storage

METRICS = pa.schema(
    [
        ("segment", pa.int32()),  # goes up by one at each (re)start of the workers
        ("step", pa.int64()),  # optimizer steps done
        ("epoch", pa.float64()),
        ("samples", pa.int64()),
        ("time_s", pa.float64()),  # seconds since 1970
        ("name", pa.string()),  # such as train/loss, val/top1
        ("value", pa.float64()),
    ]
)
EVENTS = pa.schema(
    [
        ("segment", pa.int32()),
        ("step", pa.int64()),
        ("time_s", pa.float64()),
        ("kind", pa.string()),  # such as started, resumed, checkpoint, checkpoint_rejected, finished, failed
        ("message", pa.string()),
        ("detail", pa.string()),  # JSON
    ]
)
_MERGE_AT = 32
_FIRST_FLUSH_S, _LAST_FLUSH_S = 1.0, 60.0


class SeriesWriter:
    """Appends rows to the series in a folder.

    Args:
        storage: the folder.
        schema: `METRICS` or `EVENTS`.

    Use one writer a process; `close` (or leaving the `with` block) puts out what is buffered.
    """

    def __init__(self, storage: Storage, schema: pa.Schema) -> None:
        self._storage = storage
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self._own_parts: list[str] = []
        self._started_s = self._flushed_s = time.monotonic()

    def append(self, **row: Any) -> None:
        """Buffer one row; put the buffer out when its time has come (2 % of the run so far, 1 s to 60 s)."""
        self._rows.append(row)
        now = time.monotonic()
        if now - self._flushed_s >= min(max(0.02 * (now - self._started_s), _FIRST_FLUSH_S), _LAST_FLUSH_S):
            self.flush()

    def flush(self) -> None:
        """Put out what is buffered as one part, and merge this writer's parts when they have become many."""
        self._flushed_s = time.monotonic()
        if not self._rows:
            return
        table = pa.Table.from_pylist(self._rows, schema=self._schema)
        self._own_parts.append(self._write(table))
        self._rows = []
        if len(self._own_parts) >= _MERGE_AT:
            merged = self._write(pa.concat_tables([_read_part(self._storage, part) for part in self._own_parts]))
            for part in self._own_parts:
                self._storage.delete_file(part)
            self._own_parts = [merged]

    def close(self) -> None:
        """Put out what is buffered."""
        self.flush()

    def __enter__(self) -> SeriesWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, table: pa.Table) -> str:
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        name = f"part-{time.time_ns()}-{uuid.uuid4().hex[:8]}.parquet"
        self._storage.write_bytes(name, buffer.getvalue())
        return name


def read_series(storage: Storage, schema: pa.Schema) -> pa.Table:
    """The whole series in a folder, sorted by segment, step and time, without doubles; empty where there is none."""
    tables = []
    for entry in storage.list():
        if entry.name.endswith(".parquet"):
            try:
                tables.append(_read_part(storage, entry.name))
            except FileNotFoundError:  # merged away between listing and reading; its rows are in the newer part
                continue
    if not tables:
        return schema.empty_table()
    unique = pa.concat_tables(tables).group_by(schema.names, use_threads=False).aggregate([])
    return unique.sort_by([(key, "ascending") for key in ("segment", "step", "time_s")])


def _read_part(storage: Storage, name: str) -> pa.Table:
    return pq.read_table(io.BytesIO(storage.read_bytes(name)))
