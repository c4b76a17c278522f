"""What a drill needs around it, put up and taken down: a folder, an S3 server, a cluster, an environment of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from longhaul.drill.conductor import DISTURBED, Conductor, Glance, RunEndedError
from longhaul.drill.full_disk import full_disk
from longhaul.drill.object_store import object_store
from longhaul.drill.preparation import Preparation
from longhaul.drill.report import Check, Report

_RAY = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}

_LOG_LINES = 400


def perform(prepared: Preparation, seed: int, show: Callable[[Glance], None], *, keep: bool = False) -> Report:
    """Run a drill; whatever happens, no process and (but with `keep`) no file of it is left.

    Args:
        prepared: what to run.
        seed: of its schedule, for the report.
        show: is given a glance several times a second.
        keep: leave the folder with the logs of drivers and cluster.
    """
    began_s = time.monotonic()
    recipe = prepared.recipe.name
    report = Report(recipe=recipe, seed=seed, overrides=prepared.overrides, steps=prepared.steps, outcomes=[])
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ended_by_sigterm())
        folder = Path(tempfile.mkdtemp(prefix="lh-drill-"))  # short: the paths of Ray's sockets are limited
        report.folder = str(folder) if keep else None
        if not keep:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        disk = stack.enter_context(full_disk(folder / "full"))
        scratch = folder / "tmp"  # what killed processes leave goes with the drill
        scratch.mkdir()
        store = stack.enter_context(object_store())
        own = {"RAY_TMPDIR": str(folder), "TMPDIR": str(scratch), **_importable(), **_token()}
        stack.enter_context(_environment({**_RAY, **store.environment, **own}))
        from longhaul.drill.findings import examine
        from longhaul.drill.nodes import nodes

        show(Glance("starting a cluster", 0, prepared.steps, []))
        cluster = stack.enter_context(nodes(prepared.recipe.scaling.most))
        conductor = Conductor(prepared, cluster, store, folder, disk, show)
        try:
            disturbed, twin = conductor.run()
            examine(conductor, disturbed, twin, report)
        except RunEndedError as error:
            report.checks.append(Check(name="undisturbed run", passed=False, finding=str(error)))
        report.outcomes = conductor.outcomes
        log = folder / f"{DISTURBED}.log"
        if not report.passed and log.exists():
            report.log = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    report.wall_s = time.monotonic() - began_s
    return report


def _token() -> dict[str, str]:
    """Ray's own guard of the drill's cluster, unless the user has switched it off."""
    return {"RAY_AUTH_TOKEN": secrets.token_hex(32)} if os.environ.get("RAY_AUTH_MODE") == "token" else {}


def _importable() -> dict[str, str]:
    """Where all processes find the package that this one runs."""
    import longhaul

    former = os.environ.get("PYTHONPATH")
    here = str(Path(longhaul.__file__).parents[1])
    return {"PYTHONPATH": os.pathsep.join([here, former] if former else [here])}


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Everything that is started within the block inherits these variables."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM takes everything down as Ctrl-C does."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
