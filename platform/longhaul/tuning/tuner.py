"""What every use of Ray Tune here has in common: its settings, who hears Ctrl-C, and a folder for its own files."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import uuid
from collections.abc import Iterator
from types import FrameType
from typing import Protocol

from ray.tune.experiment import Trial

from longhaul.storage import Storage

_TUNE = "tune"
_SETTINGS = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: Tune's handler kills what trains
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the run directories have it all
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a cell that fails or is paused before its first validation reports nothing
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
STOPPED = "stopped by Ctrl-C; the same command goes on"


class Stoppable(Protocol):
    """What can be asked to end in order."""

    ending: str | None
    """Why no more trials begin and those that run are paused; None while all goes on."""


def folder(trial: Trial) -> str:
    """A trial's name and folder; Tune's own are made of the whole config."""
    return str(trial.trial_id)


@contextlib.contextmanager
def scratch(storage: Storage) -> Iterator[str]:
    """A name for Tune's own files below `storage`; they, and what a killed call has left, are gone at the end."""
    try:
        yield f"{_TUNE}-{uuid.uuid4().hex[:8]}"
    finally:
        for entry in storage.list():
            if entry.is_dir and entry.name.startswith(f"{_TUNE}-"):
                storage.delete_dir(entry.name)


@contextlib.contextmanager
def stoppable(source: Stoppable) -> Iterator[None]:
    """The first Ctrl-C ends the sweep in order, the second at once; only the main thread may hear them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        source.ending = STOPPED

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """Tune reads these from the environment alone."""
    before = {name: os.environ.get(name) for name in _SETTINGS}
    os.environ.update(_SETTINGS)
    tune_log = logging.getLogger("ray.tune")
    level = tune_log.level
    tune_log.setLevel(logging.ERROR)  # it misses the result files that nobody asked for
    try:
        yield
    finally:
        tune_log.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
