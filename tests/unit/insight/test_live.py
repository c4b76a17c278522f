"""The live view, with a clock and a wait of the test's own: nothing here depends on timing."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable

import pytest
from rich.console import Console

from longhaul.insight.live import RunEye, duration_text, following, line, number, watch
from longhaul.recipe import parse
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.storage import Storage

from .conftest import T0, TEXT, MakeRun, write_steps, write_summary_at


class Script:
    """Stands for waiting: each wait advances the clock by 3 s and plays the next scene of the run."""

    def __init__(self, *scenes: Callable[[], None]) -> None:
        self.now = T0
        self.scenes = list(scenes)

    def clock(self) -> float:
        return self.now

    def wait(self, _: float) -> bool:
        self.now += 3
        if self.scenes:
            self.scenes.pop(0)()
            return False
        return True


def log_console() -> Console:
    return Console(file=io.StringIO(), width=200)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def scene(run: RunDirectory, first: int, last: int, status: str = "running", **changes: object) -> Callable[[], None]:
    def play() -> None:
        write_steps(run, range(first, last + 1), start_s=T0 + 2 * (first - 1))
        state = {
            "status": status,
            "goal": "val/top1",
            "segment": 1,
            "step": last,
            "total_steps": 20,
            "epoch": last / 10,
        } | changes
        write_summary_at(run, T0 + 2 * last, Summary(**state))

    return play


@pytest.fixture
def run(root: str) -> RunDirectory:
    return RunDirectory.create(root, "tiny", parse(TEXT))


def test_watching_a_run_from_before_its_start_to_its_end(run: RunDirectory) -> None:
    script = Script(scene(run, 1, 5), scene(run, 6, 10), scene(run, 11, 20, "finished", best=0.95))
    console = log_console()
    seen = watch(run, console, wait=script.wait, clock=script.clock)
    assert (seen.status, seen.step, seen.best, seen.ended) == ("finished", 20, 0.95, True)
    assert script.scenes == []
    lines = text_of(console).splitlines()
    assert lines[0].startswith("tiny: pending")
    assert any("step 10/20 | epoch 1/2" in text for text in lines)
    assert lines[-1].startswith("tiny: finished | step 20/20 | epoch 2/2")
    assert "val/top1 0.95 (best 0.95)" in lines[-1]
    assert "\x1b" not in text_of(console)


def test_a_log_gets_a_line_every_ten_seconds_and_not_more(run: RunDirectory) -> None:
    scene(run, 1, 3)()
    console = log_console()
    script = Script(*[lambda: None] * 8)  # nine waits of 3 s
    watch(run, console, wait=script.wait, clock=script.clock)
    assert len(text_of(console).splitlines()) == 4  # at 0, 12 and 24 s, and the end


def test_a_terminal_is_redrawn(run: RunDirectory) -> None:
    script = Script(scene(run, 1, 5), scene(run, 6, 20, "finished"))
    console = Console(file=io.StringIO(), width=100, force_terminal=True, _environ={"TERM": "xterm"})
    watch(run, console, wait=script.wait, clock=script.clock)
    text = text_of(console)
    assert "\x1b[2K" in text
    assert "step 5/20" in text
    assert "step 20/20" in text


def test_what_a_look_measures(run: RunDirectory) -> None:
    scene(run, 1, 15)()
    seen = RunEye(run, clock=lambda: T0 + 31).look()
    assert (seen.status, seen.step, seen.epoch, seen.lr, seen.samples_per_s) == ("running", 15, 1.5, 1e-3, 4.0)
    assert seen.loss == pytest.approx(1 / 15)
    assert seen.goal_value == pytest.approx(0.9)
    assert seen.total_epochs == pytest.approx(2)
    assert seen.eta_s == pytest.approx(10)  # five steps of two seconds
    assert "ETA 10 s" in line(seen)


def test_the_pace_is_of_the_newest_segment(run: RunDirectory) -> None:
    write_steps(run, range(1, 15), segment=1)
    write_steps(run, range(10, 13), segment=2, start_s=T0 + 5000)
    write_summary_at(run, T0 + 5006, Summary(goal="val/top1", segment=2, step=9, total_steps=20, epoch=0.9))
    seen = RunEye(run, clock=lambda: T0 + 5010).look()
    assert seen.step == 12
    assert seen.eta_s == pytest.approx(16)


def test_silence_is_said(run: RunDirectory) -> None:
    scene(run, 1, 5)()
    seen = RunEye(run, clock=lambda: T0 + 1000).look()
    assert seen.status == "silent"
    assert "its processes may be gone" in line(seen)


def test_following_shows_the_run_and_stops(run: RunDirectory) -> None:
    console = log_console()
    before = threading.active_count()
    with following(run, console):
        scene(run, 1, 20, "finished")()
    assert threading.active_count() == before
    assert "finished | step 20/20" in text_of(console).splitlines()[-1]


def test_following_goes_on_over_an_earlier_end(make_run: MakeRun) -> None:
    """A failed run that is about to be resumed still says `failed` when the view begins."""
    run = make_run("again", status="failed", error="lost a node", steps=10)
    console, script = log_console(), Script(scene(run, 11, 15))
    seen = watch(run, console, wait=script.wait, clock=script.clock, until_told=True)
    assert (seen.status, seen.step) == ("running", 15)


@pytest.mark.parametrize("trouble", ["summary", "metrics", "console"])
def test_following_never_disturbs_the_training(
    run: RunDirectory, trouble: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene(run, 1, 5)()
    console = log_console()
    if trouble == "summary":
        run.storage.write_bytes("summary.json", b"{")
    elif trouble == "metrics":
        run.storage.write_bytes("metrics/part-9.parquet", b"")
    else:
        monkeypatch.setattr(console, "print", lambda *_, **__: (_ for _ in ()).throw(BrokenPipeError("nobody reads")))
    done = []
    with following(run, console):
        done.append("trained")
    assert done == ["trained"]
    assert [record.levelname for record in caplog.records if "live view" in record.message] == ["WARNING"]


def test_an_error_of_the_training_comes_through(run: RunDirectory) -> None:
    with pytest.raises(ZeroDivisionError), following(run, log_console()):
        _ = 1 / 0


def test_watching_reads_each_part_once(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    real = Storage.read_bytes
    monkeypatch.setattr(Storage, "read_bytes", lambda self, name: (fetched.append(name), real(self, name))[1])
    script = Script(scene(run, 1, 5), scene(run, 6, 10), lambda: None, scene(run, 11, 20, "finished"))
    watch(run, log_console(), wait=script.wait, clock=script.clock)
    parts = [name for name in fetched if name.endswith(".parquet")]
    assert len(parts) == len(set(parts)) == 3


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (3725, "1 h 02 min"), (90000, "1 d 1 h")])
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.123456, "0.1235"), (12345.6, "12,346"), (float("nan"), "nan"), (0.0, "0")]
)
def test_numbers_for_people(value: float | None, text: str) -> None:
    assert number(value) == text
