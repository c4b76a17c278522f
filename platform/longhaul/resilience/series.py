"""Append-only tables as Parquet parts: what a run writes while it goes, and anyone reads with pyarrow alone.

A writer buffers rows and puts them out as a new part every so often; parts are small at first, for a live view, and rarer
later. Many parts are merged into one now and then; a reader that meets both a merged part and its sources (a crash between
the two steps) drops the doubles: two rows that are equal in every column are one row.
"""

from __future__ import annotations

import contextlib
import io
import logging
import time
import uuid
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longhaul.errors import IntegrityError
from longhaul.storage import Storage

log = logging.getLogger(__name__)

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
_SEALED_ROWS = 200_000  # a part this large is never rewritten, so that merging costs the same on day 40 as on day one
_FIRST_FLUSH_S, _LAST_FLUSH_S = 1.0, 60.0
_SORT = [(key, "ascending") for key in ("segment", "step", "time_s")]


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
        """Put out what is buffered as one part, and merge this writer's parts when they have become many.

        Storage that is away keeps nobody from working: the rows stay buffered for the next time.
        """
        self._flushed_s = time.monotonic()
        if not self._rows:
            return
        try:
            self._own_parts.append(self._write(pa.Table.from_pylist(self._rows, schema=self._schema)))
            self._rows = []
            if len(self._own_parts) >= _MERGE_AT:
                self._merge()
        except OSError as error:
            log.warning("%s: %d rows wait for the storage to come back: %s", self._storage.uri, len(self._rows), error)

    def close(self) -> None:
        """Put out what is buffered.

        Raises:
            OSError: the storage is away, and rows are lost with this writer.
        """
        self.flush()
        if self._rows:
            raise OSError(f"{self._storage.uri}: {len(self._rows)} rows could not be written; the storage does not answer")

    def __enter__(self) -> SeriesWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _merge(self) -> None:
        sources = self._own_parts
        table = pa.concat_tables([_read_part(self._storage, part, self._schema) for part in sources])
        merged = self._write(table)
        # From here on the sources are doubles; a failure to delete some costs readers time and nothing else.
        self._own_parts = [merged] if table.num_rows < _SEALED_ROWS else []
        for part in sources:
            with contextlib.suppress(OSError):
                self._storage.delete_file(part)

    def _write(self, table: pa.Table) -> str:
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        name = f"part-{time.time_ns()}-{uuid.uuid4().hex[:8]}.parquet"
        self._storage.write_bytes(name, buffer.getvalue())
        return name


class SeriesReader:
    """Reads a series again and again while it grows, fetching only parts that it has not seen.

    Args:
        storage: the folder; it need not exist yet.
        schema: `METRICS` or `EVENTS`.
    """

    def __init__(self, storage: Storage, schema: pa.Schema) -> None:
        self._storage = storage
        self._schema = schema
        self._parts: dict[str, pa.Table] = {}
        self._built_from: set[str] = set()
        self._table: pa.Table = schema.empty_table()

    def read(self) -> pa.Table:
        """The whole series, sorted by segment, step and time, without doubles; the same object while nothing is new.

        Raises:
            IntegrityError: a part is damaged, or is not of this series; the message names it.
        """
        while not self._fetch():
            pass
        if set(self._parts) != self._built_from:
            rows = pa.concat_tables([self._schema.empty_table(), *self._parts.values()])
            unique = rows.group_by(self._schema.names, use_threads=False).aggregate([])
            self._table = unique.sort_by(_SORT)
            self._built_from = set(self._parts)
        return self._table

    def _fetch(self) -> bool:
        """Bring `_parts` in line with the folder; False when a part was merged away meanwhile and it must be listed again.

        The rows of a part that is gone are in a newer part, which the listing at hand may not have.
        """
        listed = _parts(self._storage)
        self._parts = {name: table for name, table in self._parts.items() if name in listed}
        for name in listed:
            if name not in self._parts:
                try:
                    self._parts[name] = _read_part(self._storage, name, self._schema)
                except FileNotFoundError:
                    return False
        return True


def read_series(storage: Storage, schema: pa.Schema) -> pa.Table:
    """The whole series in a folder, sorted by segment, step and time, without doubles; empty where there is none.

    Raises:
        IntegrityError: a part is damaged, or is not of this series; the message names it.
    """
    return SeriesReader(storage, schema).read()


def latest_values(storage: Storage, names: set[str]) -> dict[str, dict[str, Any]]:
    """The newest row of each of the metrics `names` in the folder `storage`, by name; reads only as many parts as it must.

    Raises:
        IntegrityError: a part is damaged, or holds no metrics; the message names it.
    """
    found: dict[str, dict[str, Any]] = {}
    for part in reversed(_parts(storage)):  # their names begin with the time of writing
        try:
            table = _read_part(storage, part, METRICS)
        except FileNotFoundError:  # merged away; what it held is in a part that is newer still
            return latest_values(storage, names)
        rows = {row["name"]: row for row in table.sort_by(_SORT).to_pylist() if row["name"] in names}
        found = rows | found
        if len(found) == len(names):
            break
    return found


def _parts(storage: Storage) -> list[str]:
    return [entry.name for entry in storage.list() if entry.name.endswith(".parquet")]


def _read_part(storage: Storage, name: str, schema: pa.Schema) -> pa.Table:
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(name)))
    except pa.ArrowInvalid as error:
        what = f"damaged ({' '.join(str(error).split())[:120]})"
        raise IntegrityError(f"{storage.uri}/{name}: {what}; move it away to read the rest") from None
    if not table.schema.equals(schema):
        raise IntegrityError(f"{storage.uri}/{name}: has the columns {', '.join(table.column_names)}; move it away")
    return table
