"""One driver a run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longhaul.errors import UserError
from longhaul.recipe import parse
from longhaul.resilience import lease as room
from longhaul.resilience.run_directory import RunDirectory

TEXT = "{name: tiny, data: {kind: digits}, model: {name: resnet10t}, training: {steps: 1}}"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.setattr(room, "_SETTLE_S", 0.0)
    return RunDirectory.create(str(tmp_path), "tiny", parse(TEXT))


def hold(run: RunDirectory, **fields: object) -> None:
    holder = {"holder": "other", "host": "elsewhere", "pid": 1, "renewed_s": time.time(), **fields}
    run.storage.write_bytes("lease.json", json.dumps(holder).encode())


def test_a_held_run_is_refused_and_free_again_afterwards(run: RunDirectory) -> None:
    with room.lease(run), pytest.raises(UserError, match="is being trained by process"), room.lease(run):
        pass
    assert not run.storage.exists("lease.json")
    with room.lease(run):
        pass


def test_a_holder_elsewhere_counts_for_a_minute(run: RunDirectory) -> None:
    hold(run, renewed_s=time.time() - 50)
    with pytest.raises(UserError, match="process 1 on elsewhere"), room.lease(run):
        pass
    hold(run, renewed_s=time.time() - 70)
    with room.lease(run):
        pass


def test_the_lease_of_a_process_that_is_gone_is_taken_over_at_once(run: RunDirectory) -> None:
    import socket

    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    hold(run, host=socket.gethostname(), pid=ended.pid)
    with room.lease(run):
        pass


def test_who_writes_last_of_two_that_start_at_once_holds_it(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.time, "sleep", lambda seconds: hold(run))
    with pytest.raises(UserError, match="process 1 on elsewhere"), room.lease(run):
        pass
    assert json.loads(run.storage.read_bytes("lease.json"))["holder"] == "other"


def test_a_lease_that_was_taken_over_ends_the_block_and_is_left_to_its_holder(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_RENEW_S", 0.02)
    with pytest.raises(UserError, match="process 1 on elsewhere"), room.lease(run):  # noqa: PT012 - the wait is the point
        hold(run)
        for _ in range(500):
            time.sleep(0.02)
    assert json.loads(run.storage.read_bytes("lease.json"))["holder"] == "other"
