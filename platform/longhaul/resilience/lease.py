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
from types import FrameType
from typing import Any

from longhaul.errors import UserError
from longhaul.resilience.run_directory import RunDirectory

_RENEW_S = 10.0
_EXPIRES_S = 60.0
_SETTLE_S = 0.5
_SIGNAL = signal.SIGUSR1
_FILE = "lease.json"


@contextlib.contextmanager
def lease(run: RunDirectory) -> Iterator[None]:
    """Hold the run while the block runs.

    Neither S3 nor a network drive has a lock that all know. So a holder writes its name, waits a moment and looks whether it
    still stands there: of several that start at once only the last to write goes on. One that finds another name there later
    (it hung for longer than a lease lasts) interrupts its block.

    Raises:
        UserError: another living process holds it, or has taken it over.
    """
    mine = {"holder": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
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
                    _thread.interrupt_main(_SIGNAL)
                    return
                _write(run, mine)

    keeper = threading.Thread(target=renew, name="longhaul-lease", daemon=True)
    keeper.start()
    try:
        with _interruptible():
            yield
    except _LeaseLost:
        raise _held_by(run, _read(run) or {}) from None
    finally:
        ended.set()
        keeper.join()
        with contextlib.suppress(OSError):
            if _is(run, mine):
                run.storage.delete_file(_FILE)


class _LeaseLost(BaseException):
    """Raised in the main thread, wherever it is."""


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


def _held_by(run: RunDirectory, holder: dict[str, Any]) -> UserError:
    return UserError(
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
