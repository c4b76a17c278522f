"""One driver a run: two at once would write over each other's checkpoints.

The holder renews `lease.json` in the run directory. A lease of a process that is gone (on this machine) or that has not
been renewed for a minute (elsewhere) is taken over.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from longhaul.errors import UserError
from longhaul.resilience.run_directory import RunDirectory

_RENEW_S = 10.0
_EXPIRES_S = 60.0
_SETTLE_S = 0.5
_SIGNAL = signal.SIGUSR1
_FILE = "lease.json"


class HeldError(UserError):
    """Another driver holds the run."""


class _LeaseLost(BaseException):
    """Ends a block whose lease is another's; `lease` makes a `HeldError` of it, so that nobody between writes down an end."""


@dataclass(frozen=True)
class Lease:
    """What the holder has: looked at by a block that runs in a thread, where no signal can end it."""

    _lost: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """End the block, by an exception that is not to be caught in it, where another has taken the run over."""
        if self._lost.is_set():
            raise _LeaseLost


@contextlib.contextmanager
def lease(run: RunDirectory, owner: str | None = None) -> Iterator[Lease]:
    """Hold the run while the block runs.

    Neither S3 nor a network drive has a lock that all know. So a holder writes its name, waits a moment and looks whether it
    still stands there: of several that start at once only the last to write goes on. One that finds another name there later
    (it hung for longer than a lease lasts) interrupts its block, where that runs in the main thread; in any other the block has
    to ask, every few seconds (`Lease.check`).

    Args:
        run: its directory.
        owner: on whose behalf, such as a sweep's address; see `holder`.

    Raises:
        HeldError: another living process holds it, or has taken it over.
    """
    mine = {"holder": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "owner": owner}
    held, in_main = Lease(), threading.current_thread() is threading.main_thread()
    current = _read(run)
    if current and _alive(current):
        raise _held_by(run, current)
    _write(run, mine)
    time.sleep(_SETTLE_S)
    if not _is(run, mine):
        raise _held_by(run, _read(run) or {})
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(_RENEW_S):
            with contextlib.suppress(OSError):  # storage that is away for a moment must not end the run
                if not _is(run, mine):
                    held._lost.set()
                    if in_main:  # else whatever the main thread does would be hit
                        _thread.interrupt_main(_SIGNAL)
                    return
                _write(run, mine)

    keeper = threading.Thread(target=renew, name="longhaul-lease", daemon=True)
    keeper.start()
    try:
        with _interruptible():
            yield held
    except _LeaseLost:
        raise _held_by(run, _read(run) or {}) from None
    finally:
        ended.set()
        keeper.join()
        with contextlib.suppress(OSError):
            if _is(run, mine):
                run.storage.delete_file(_FILE)


@dataclass(frozen=True)
class Holder:
    """Who holds a run: a process, and on whose behalf it does (None where it did not say)."""

    host: str
    pid: int
    owner: str | None

    @property
    def is_this_process(self) -> bool:
        """Whether it is the one that asks."""
        return (self.host, self.pid) == (socket.gethostname(), os.getpid())


def holder(run: RunDirectory) -> Holder | None:
    """Who holds the run just now; None where nobody living does."""
    current = _read(run)
    if current is None or not _alive(current):
        return None
    return Holder(str(current.get("host")), int(current.get("pid", 0)), current.get("owner"))


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """While the block runs in the main thread, `_SIGNAL` raises in it; SIGINT may be ignored (a shell started us behind it)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def lost(number: int, frame: FrameType | None) -> None:
        raise _LeaseLost

    before = signal.signal(_SIGNAL, lost)
    try:
        yield
    finally:
        signal.signal(_SIGNAL, before)


def _held_by(run: RunDirectory, holder: dict[str, Any]) -> HeldError:
    return HeldError(
        f"run {run.uri}: is being trained by process {holder.get('pid')} on {holder.get('host')}",
        f"Wait for it, stop it, or give another --name (a dead holder's lease ends after {_EXPIRES_S:g} s)",
    )


def _is(run: RunDirectory, holder: dict[str, Any]) -> bool:
    current = _read(run)
    return current is not None and current.get("holder") == holder["holder"]


def _write(run: RunDirectory, holder: dict[str, Any]) -> None:
    run.storage.write_bytes(_FILE, json.dumps({**holder, "renewed_s": time.time()}).encode())


def _read(run: RunDirectory) -> dict[str, Any] | None:
    try:
        found = json.loads(run.storage.read_bytes(_FILE))
        return found if isinstance(found, dict) else None
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _alive(holder: dict[str, Any]) -> bool:
    if holder.get("host") == socket.gethostname():
        try:
            os.kill(int(holder["pid"]), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
    return time.time() - float(holder.get("renewed_s", 0)) < _EXPIRES_S
