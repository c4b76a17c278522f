"""The flight recorder: what each rank was doing, on storage every few seconds, so that its end can be explained.

A process that is killed takes its memory and often its node's disk with it. So a thread beside the training writes one small
file a rank: state, step, the last log lines, the open span of the ledger. The same thread is the watchdog: a process that
makes no progress for too long is ended with its stacks saved, and the group restarts. Ray Train's health check is answered
by another thread than the one that trains, so it does not see such a hang.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError

from longhaul.errors import IntegrityError
from longhaul.resilience.ledger import Span, ledger_writer, read_ledger, span_row
from longhaul.resilience.requests import Request, asked
from longhaul.resilience.run_directory import RunDirectory

Doing = Literal["startup", "data", "step", "validation", "saving", "waiting"]
HANG_EXIT = 86
_FOLDER = "flight"
_LINES = 50
_NEAR_S, _FAR_S = 2.0, 10.0  # between two writes: on a local path, on S3
_KEEP_SEGMENTS, _LOOK_BACK = 20, 3
_LAST_S = 10.0
_STARTUP_S = 900.0  # the least that start-up may take: a large model's first step compiles and allocates

log = logging.getLogger(__name__)


class FlightState(BaseModel):
    """One rank at one moment.

    Attributes:
        state: what its training thread is at, since `state_since_ns`.
        log: its last log lines.
        stacks: of all its threads, where the watchdog ended it.
        span: rank 0's open span of the ledger.
    """

    model_config = ConfigDict(extra="forbid")

    segment: int
    attempt: str
    rank: int
    world_size: int
    host: str
    pid: int
    step: int = 0
    state: Doing = "startup"
    state_since_ns: int = 0
    time_ns: int = 0
    log: list[str] = []
    stacks: str | None = None
    span: Span | None = None


class FlightRecorder:
    """Use as a context around a rank's work.

    Args:
        run: where to write.
        state: who this is.
        hang_s: how long it may make no progress.
        span: gives rank 0's open span.
    """

    def __init__(self, run: RunDirectory, state: FlightState, hang_s: float, span: Callable[[], Span] | None = None) -> None:
        self._run, self._state, self._hang_s, self._span = run, state, hang_s, span
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._handler = _Lines(self._lines)
        self._ended = threading.Event()
        self._beat = time.monotonic()
        # Two threads: storage that hangs must not keep the watchdog from seeing that it does.
        self._thread = threading.Thread(target=self._record, name="longhaul-flight", daemon=True)
        self._watchdog = threading.Thread(target=self._watch, name="longhaul-watchdog", daemon=True)
        self.request: Request | None = None
        self.beat("startup", state.step)

    def beat(self, state: Doing, step: int | None = None) -> None:
        """Progress: from now on this rank is at `state`."""
        self._beat = time.monotonic()
        self._state.state, self._state.state_since_ns = state, time.time_ns()
        if step is not None:
            self._state.step = step

    def new_segment(self, segment: int, attempt: str, step: int) -> None:
        """After a rollback: another line of history, in the same process."""
        self._write()
        self._state = self._state.model_copy(update={"segment": segment, "attempt": attempt, "step": step})

    def __enter__(self) -> FlightRecorder:
        logging.getLogger().addHandler(self._handler)
        self._write()
        self._thread.start()
        self._watchdog.start()
        return self

    def __exit__(self, kind: object, error: object, _: object) -> None:
        if kind is not None:
            self._lines.append(f"{type(error).__name__}: {error}")
        self._ended.set()
        self._thread.join(_LAST_S)
        self._watchdog.join()
        logging.getLogger().removeHandler(self._handler)
        self._write()

    def _watch(self) -> None:
        while not self._ended.wait(min(_NEAR_S, self._hang_s / 4)):
            idle = time.monotonic() - self._beat
            limit = max(self._hang_s, _STARTUP_S) if self._state.state == "startup" else self._hang_s
            if idle > limit:
                self._end(idle)

    def _record(self) -> None:
        every = _NEAR_S if self._run.storage.is_local else _FAR_S
        while not self._ended.wait(min(every, self._hang_s / 4)):
            self._write()
            if self._span is not None:  # rank 0: here, because on S3 a look costs what a training step takes
                with contextlib.suppress(OSError):
                    self.request = asked(self._run)

    def _end(self, idle: float) -> None:
        self._state.stacks = _stacks()
        message = f"rank {self._state.rank}: no progress in {self._state.state!r} for {idle:.0f} s; this process ends itself"
        log.error(message)
        last = threading.Thread(target=self._write, name="longhaul-last-words", daemon=True)
        last.start()
        last.join(_LAST_S)
        os._exit(HANG_EXIT)  # the training thread cannot be interrupted from here: it may be stuck inside a library

    def _write(self) -> None:
        state = self._state
        state.time_ns, state.log = time.time_ns(), list(self._lines)
        state.span = self._span() if self._span is not None else None
        try:
            self._run.storage.write_bytes(_name(state.segment, state.rank), (state.model_dump_json() + "\n").encode())
        except Exception:  # whatever it was: a record that cannot be written must not end what it records
            log.debug("the flight state could not be written", exc_info=True)


class _Lines(logging.Handler):
    """Keeps the last lines."""

    def __init__(self, lines: deque[str]) -> None:
        super().__init__()
        self._lines = lines
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Format and keep."""
        text = self.format(record).encode(errors="replace").decode()  # a file name may hold bytes that are no text
        self._lines.extend(text.splitlines())


def flights(run: RunDirectory, segment: int | None = None) -> list[FlightState]:
    """The last words of every rank of a segment (the newest), by rank; unreadable ones are left out."""
    folder = run.storage.child(_FOLDER)
    names = sorted(entry.name for entry in folder.list() if entry.name.endswith(".json"))
    if segment is None and names:
        segment = int(names[-1].split("-")[0])
    found = []
    for name in names:
        if int(name.split("-")[0]) == segment:
            with contextlib.suppress(FileNotFoundError, ValidationError):
                found.append(FlightState.model_validate_json(folder.read_bytes(name)))
    return found


def recover_span(run: RunDirectory) -> int:
    """Put the last span of a rank 0 that died, which only its flight file has, into the ledger.

    Where the watchdog ended the group, the time since rank 0's last progress was `hung`, whatever it was at.

    Returns:
        The furthest step that the run has ever reached.
    """
    try:
        table = read_ledger(run)
    except IntegrityError as error:  # a damaged record is no reason not to train
        log.warning("the ledger cannot be read: %s", error)
        return 0
    known = max(table.column("end_ns").filter(_is_worker(table)).to_pylist(), default=0)
    steps = table.column("step").to_pylist()
    # Not only the newest: another rank of the new group may have written its first file already.
    segments = sorted({int(entry.name.split("-")[0]) for entry in run.storage.child(_FOLDER).list()})[-_LOOK_BACK:]
    for segment in segments:
        states = flights(run, segment)
        hung = any(state.stacks for state in states)
        for state in states:
            if state.span is not None and state.span.end_ns > known:
                with ledger_writer(run) as writer:
                    writer.append(**span_row(_with_hang(state.span, state.state_since_ns) if hung else state.span))
                steps.append(state.span.step)
    return max(steps, default=0)


def _with_hang(span: Span, since_ns: int) -> Span:
    """The span with what it counted after `since_ns` moved to `hung`; the class that was in force then comes last."""
    left, shares = max(span.end_ns - max(since_ns, span.start_ns), 0), dict(span.shares)
    for name in reversed([name for name in shares if name != "hung"]):
        moved = min(left, shares[name])
        left, shares[name] = left - moved, shares[name] - moved
        shares["hung"] = shares.get("hung", 0) + moved
    return span.model_copy(update={"shares": shares})


def _is_worker(table: pa.Table) -> pa.Array:
    return pc.equal(table.column("source"), "worker")


def forget_old_flights(run: RunDirectory) -> None:
    """Delete the files of all but the newest segments."""
    folder = run.storage.child(_FOLDER)
    names = sorted(entry.name for entry in folder.list())
    segments = sorted({name.split("-")[0] for name in names})
    for name in names:
        if name.split("-")[0] in segments[:-_KEEP_SEGMENTS]:
            with contextlib.suppress(FileNotFoundError):
                folder.delete_file(name)


def _name(segment: int, rank: int) -> str:
    return f"{_FOLDER}/{segment:05d}-{rank:05d}.json"


def _stacks() -> str:
    with tempfile.TemporaryFile() as file:  # faulthandler wants a real file
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")


def this_host() -> str:
    """The name of this machine."""
    return socket.gethostname()
