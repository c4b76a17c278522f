"""The way of a tracker's rows: a thread, a queue and a folder for each, so that none of them can delay a training step."""

from __future__ import annotations

import collections
import contextlib
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from longhaul.resilience.run_directory import RunDirectory

logger = logging.getLogger(__name__)

Status = Literal["finished", "stopped", "failed"]
_BACKLOG_ROWS = 2000
_TRIES = 5  # a row that a tracker refuses so often is dropped: it is the row's fault, or hours have passed
_RETRY_S = 60.0
_PUBLISH_S = 600.0


class Row(NamedTuple):
    """Metrics that were measured at one step; `time_s` is seconds since 1970."""

    metrics: dict[str, float]
    step: int
    epoch: float
    segment: int
    time_s: float


class Tracker(Protocol):
    """One run at one tracker; only its own thread calls it. Any method may raise."""

    @property
    def run_id(self) -> str:
        """What continues this run after a restart."""
        ...

    def log(self, row: Row) -> None:
        """Hand over one row."""
        ...

    def close(self, status: Status) -> None:
        """End the run at the tracker."""
        ...


@dataclass(frozen=True)
class Shelf:
    """The local folder where a tracker writes: inside the run directory, or beside it until it is published to S3."""

    run: RunDirectory
    name: str
    folder: Path

    @classmethod
    def open(cls, run: RunDirectory, name: str, *, fetch: bool = False) -> Shelf:
        """The folder `trackers/<name>` of a run; `fetch` brings what is there from S3."""
        if run.storage.is_local:
            folder = Path(run.storage.root) / "trackers" / name
            folder.mkdir(parents=True, exist_ok=True)
            return cls(run, name, folder)
        shelf = cls(run, name, Path(tempfile.mkdtemp(prefix=f"longhaul-{name}-")))
        for file in run.storage.files(f"trackers/{name}") if fetch else []:
            run.storage.download(f"trackers/{name}/{file}", shelf.folder / file)
        return shelf

    def publish(self) -> None:
        """Copy the folder to the run directory, where it is not there already."""
        if not self.run.storage.is_local:
            for file in sorted(path for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink()):
                self.run.storage.upload(file, f"trackers/{self.name}/{file.relative_to(self.folder).as_posix()}")

    def discard(self) -> None:
        """Delete the folder, where it was only a stop on the way to S3."""
        if not self.run.storage.is_local:
            shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Feed:
    """The thread that hands rows to one tracker.

    Args:
        name: the tracker's, for the log.
        make: opens it; tried again when it raises.
        shelf: where it writes; published now and then, and at the end.
        retry_s: seconds between two tries.
    """

    name: str
    make: Callable[[], Tracker]
    shelf: Shelf
    retry_s: float = _RETRY_S
    _rows: collections.deque[Row] = field(default_factory=lambda: collections.deque(maxlen=_BACKLOG_ROWS), init=False)
    _news: threading.Condition = field(default_factory=threading.Condition, init=False)
    _closing: threading.Event = field(default_factory=threading.Event, init=False)
    _status: Status = field(default="finished", init=False)
    _tracker: Tracker | None = field(default=None, init=False)
    _warned: bool = field(default=False, init=False)
    _published_s: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._work, name=f"tracker {self.name}", daemon=True)
        self._thread.start()

    def put(self, row: Row) -> None:
        """Take a row; the oldest waiting one gives way when too many wait."""
        with self._news:
            self._rows.append(row)
            self._news.notify()

    def finish(self, status: Status) -> None:
        """Ask for the end: what waits is delivered, then the tracker's run is closed."""
        with self._news:
            self._status = status
            self._closing.set()
            self._news.notify()

    def join(self, timeout_s: float) -> None:
        """Wait for the end after `finish`; gives up, with a warning, after `timeout_s`."""
        self._thread.join(max(timeout_s, 0.0))
        if self._thread.is_alive():
            left = len(self._rows)
            logger.warning("tracker %s: not done in %.0f s; %d rows are in the run directory only", self.name, timeout_s, left)

    def _work(self) -> None:
        tries = 0
        while True:
            with self._news:
                while not self._rows and not self._closing.is_set() and self._tracker is not None:
                    self._news.wait()
                row = self._rows[0] if self._rows else None
            closing = self._closing.is_set()
            if self._deliver(row):
                tries = 0
                if closing and row is None:
                    return self._end()
            elif closing:
                return self._give_up()
            else:
                tries += 1
                if tries >= _TRIES and self._tracker is not None and row is not None:
                    tries = self._drop(row)
                self._closing.wait(self.retry_s)

    def _deliver(self, row: Row | None) -> bool:
        """Open the tracker if it is not open, hand it the row; False when either failed."""
        try:
            if self._tracker is None:
                self._tracker = self.make()
            if row is not None:
                self._tracker.log(row)
                self._drop(row)
            if time.monotonic() - self._published_s > _PUBLISH_S:
                self._published_s = time.monotonic()
                self.shelf.publish()
        except Exception as error:  # noqa: BLE001 - whatever a tracker's library raises, the training goes on
            if not self._warned:
                what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                logger.warning("tracker %s: %s; the training goes on, and it is tried again later", self.name, what)
            self._warned = True
            return False
        if self._warned:
            logger.info("tracker %s: answers again", self.name)
        self._warned = False
        return True

    def _drop(self, row: Row) -> int:
        with self._news:
            if self._rows and self._rows[0] is row:  # else the backlog was full and pushed it out
                self._rows.popleft()
        return 0

    def _end(self) -> None:
        try:
            if self._tracker is not None:
                self._tracker.close(self._status)
            self.shelf.publish()
            self.shelf.discard()
        except Exception as error:  # noqa: BLE001 - as above
            logger.warning("tracker %s: could not be closed: %s", self.name, error)

    def _give_up(self) -> None:
        logger.warning("tracker %s: still away at the end; %d rows are in the run directory only", self.name, len(self._rows))
        with contextlib.suppress(Exception):
            self.shelf.publish()
            self.shelf.discard()
