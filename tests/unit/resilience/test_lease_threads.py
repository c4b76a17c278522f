"""A lease that is held in a thread, where no signal ends the block: the block asks, and ends by the new holder's name."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from runs_in_process import recipe_for

from longhaul.recipe import parse
from longhaul.resilience import lease as room
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.alone import train_alone
from longhaul.training.progress import Progress

TEXT = "{name: tiny, data: {kind: digits}, model: {name: resnet10t}, training: {steps: 1}}"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_SETTLE_S", 0.0)
    monkeypatch.setattr(room, "_RENEW_S", 0.02)


def take_over(run: RunDirectory) -> None:
    """As a driver elsewhere takes a run: it writes until what it has written stays, for a renewal may have been under way."""
    holder = {"holder": "other", "host": "elsewhere", "pid": 1, "renewed_s": time.time()}
    stays = False
    while not stays:
        run.storage.write_bytes("lease.json", json.dumps(holder).encode())
        time.sleep(0.1)
        stays = json.loads(run.storage.read_bytes("lease.json"))["holder"] == "other"


def in_thread(work: Callable[[], object]) -> BaseException | None:
    """What the work raises in a thread of its own."""
    raised: list[BaseException] = []

    def go() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is what is looked at
            raised.append(error)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    return raised[0] if raised else None


def test_a_block_in_a_thread_ends_where_it_asks(tmp_path: Path) -> None:
    run = RunDirectory.create(str(tmp_path), "tiny", parse(TEXT))

    def work() -> None:
        with room.lease(run) as held:
            held.check()
            take_over(run)
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                time.sleep(0.02)
                held.check()

    error = in_thread(work)
    assert isinstance(error, room.HeldError)
    assert "process 1 on elsewhere" in str(error)
    assert json.loads(run.storage.read_bytes("lease.json"))["holder"] == "other"


@pytest.mark.parametrize("by", ["pulse", "validation"])
def test_a_training_in_a_thread_ends_when_its_run_is_taken_over(few_digits: Path, tmp_path: Path, by: str) -> None:
    """By the pulse, every `poll_s`; or at a validation, where the pulse is far away."""
    poll = "resilience.poll_s=0.01" if by == "pulse" else "resilience.poll_s=1000"
    every = "validation.every=100000 steps" if by == "pulse" else "validation.every=1 steps"
    recipe = recipe_for(few_digits, "training.steps=200000", poll, every)
    run = RunDirectory.create(str(tmp_path), "run", recipe)
    wanted = threading.Event()

    def observe(progress: Progress, goal: float) -> None:
        wanted.set()

    def taker() -> None:
        while run.summary().step < 1 and not wanted.is_set():
            time.sleep(0.02)
        take_over(run)

    threading.Thread(target=taker, daemon=True).start()
    error = in_thread(lambda: train_alone(recipe, run, gpu=False, observe=observe))
    assert isinstance(error, room.HeldError)
    assert "process 1 on elsewhere" in str(error)
    assert run.summary().status == "running"  # the run's end is its new holder's to write down
    assert json.loads(run.storage.read_bytes("lease.json"))["holder"] == "other"


def test_who_holds_a_run_and_on_whose_behalf_can_be_read(tmp_path: Path) -> None:
    run = RunDirectory.create(str(tmp_path), "tiny", parse(TEXT))
    assert room.holder(run) is None
    with room.lease(run, "/sweeps/mine"):
        now = room.holder(run)
        assert now is not None
        assert (now.pid, now.owner, now.is_this_process) == (os.getpid(), "/sweeps/mine", True)
    take_over(run)
    other = room.holder(run)
    assert other is not None
    assert (other.owner, other.is_this_process) == (None, False)
