"""A run while it goes, seen through its run directory alone: bars on a terminal, plain lines in a job's log.

Two ways in:

    longhaul runs watch RUN             `watch`: from any machine, until the run ends
    with following(run, console):       `following`: beside the driver's own work, in a thread that never disturbs it
        trainer.fit()
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from longhaul.insight.runs import Status, goal_metric, latest_rows, status_of
from longhaul.resilience.run_directory import RunDirectory, Summary

logger = logging.getLogger(__name__)

Wait = Callable[[float], bool]
"""Waits so many seconds; True when it was told to stop waiting for good (`threading.Event.wait`)."""
_POLL_S = 1.0
_LINE_EVERY_S = 10.0
_RATE_POINTS = 50  # logged losses over which the speed is taken: long enough to hold a validation, short enough to follow
_JOIN_S = 10.0
STYLES: dict[Status, str] = {
    "pending": "dim",
    "running": "cyan",
    "silent": "yellow",
    "finished": "green",
    "stopped": "yellow",
    "paused": "yellow",
    "cancelled": "yellow",
    "failed": "red",
    "damaged": "red",
}


@dataclass(frozen=True)
class Glimpse:
    """What is known of a run at one moment; None where it has not measured it yet.

    Attributes:
        total_epochs: the planned length in epochs.
        goal, goal_value, best: the metric that decides, its newest value, its best one.
        eta_s: seconds to the last step at the speed of late, validations and saves included.
        quiet_s: seconds since the last sign of life.
    """

    name: str
    status: Status
    step: int
    total_steps: int
    epoch: float
    total_epochs: float | None
    loss: float | None
    lr: float | None
    samples_per_s: float | None
    goal: str
    goal_value: float | None
    best: float | None
    eta_s: float | None
    quiet_s: float
    error: str | None

    @property
    def ended(self) -> bool:
        """Whether the run says that it is over."""
        return self.status in ("finished", "stopped", "paused", "cancelled", "failed")


class RunEye:
    """Looks at one run again and again, fetching only what is new.

    Args:
        run: the run; it may not have begun.
        clock: seconds since 1970.
    """

    def __init__(self, run: RunDirectory, clock: Callable[[], float] = time.time) -> None:
        self._run = run
        self._reader = run.metric_reader()
        self._clock = clock
        self._table: pa.Table | None = None
        self._latest: dict[str, dict[str, float]] = {}
        self._seconds_per_step: float | None = None

    def look(self) -> Glimpse:
        """How the run stands now.

        Raises:
            IntegrityError: its summary or a metric part is damaged.
        """
        summary = self._run.summary()
        table = self._reader.read()
        if table is not self._table:
            self._table, self._latest, self._seconds_per_step = table, latest_rows(table), _seconds_per_step(table)
        rows = list(self._latest.values())
        newest = max(rows, key=lambda row: (row["segment"], row["step"]), default=None)
        step, epoch = summary.step, summary.epoch
        if newest is not None and (newest["segment"], newest["step"]) > (summary.segment, step):
            step, epoch = int(newest["step"]), newest["epoch"]
        sign_s = max([summary.updated_s, *(row["time_s"] for row in rows)])
        goal, left, now = goal_metric(summary), max(summary.total_steps - step, 0), self._clock()
        pace = self._seconds_per_step
        return Glimpse(
            name=self._run.name,
            status=status_of(summary, sign_s, now),
            step=step,
            total_steps=summary.total_steps,
            epoch=epoch,
            total_epochs=_total_epochs(summary, step, epoch),
            loss=self._value("train/loss"),
            lr=self._value("train/lr"),
            samples_per_s=self._value("train/samples_per_s"),
            goal=goal,
            goal_value=self._value(goal),
            best=summary.best,
            eta_s=pace * left if pace is not None and summary.status == "running" and summary.total_steps else None,
            quiet_s=max(now - sign_s, 0.0) if sign_s else 0.0,
            error=summary.error,
        )

    def _value(self, name: str) -> float | None:
        return self._latest[name]["value"] if name in self._latest else None


def watch(
    run: RunDirectory,
    console: Console,
    *,
    wait: Wait | None = None,
    clock: Callable[[], float] = time.time,
    until_told: bool = False,
) -> Glimpse:
    """Show a run until it ends; returns the last look at it.

    On a terminal the view is redrawn in place; elsewhere (a job's log, a pipe) a line is printed every 10 seconds, at each
    new epoch, at each change of status, and at the end.

    Args:
        run: the run; it may not have begun.
        console: where to show it.
        wait: waits between two looks; returning True ends the view after one more look.
        clock: seconds since 1970.
        until_told: go on when the run says that it has ended (it may be about to be resumed); only `wait` ends the view.

    Raises:
        IntegrityError: its summary or a metric part is damaged.
    """
    wait = wait or _sleep
    eye = RunEye(run, clock)
    show: Callable[[Glimpse, bool], None]
    with contextlib.ExitStack() as stack:
        if console.is_terminal and not console.is_dumb_terminal:
            live = stack.enter_context(Live(console=console, auto_refresh=False, transient=False))
            show = lambda seen, last: live.update(panel(seen), refresh=True)  # noqa: E731 - the two views side by side
        else:
            show = _Lines(console, clock)
        told = False
        while True:
            seen = eye.look()
            last = told or (seen.ended and not until_told)
            show(seen, last)
            if last:
                return seen
            told = wait(_POLL_S)


@contextlib.contextmanager
def following(run: RunDirectory, console: Console) -> Iterator[None]:
    """Show a run on `console` while the body runs, from a thread of its own.

    Whatever goes wrong with the view (storage away, a closed pipe, damaged metrics) ends the view with one warning in the
    log; it never raises into the body.
    """
    stop = threading.Event()

    def view() -> None:
        try:
            watch(run, console, wait=stop.wait, until_told=True)
        except Exception as error:  # noqa: BLE001 - a view must never end a training
            logger.warning("the live view of run %s ended: %s", run.name, error)

    thread = threading.Thread(target=view, name=f"view of {run.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_JOIN_S)  # a daemon: storage that hangs does not hold up the driver's end


def panel(seen: Glimpse) -> RenderableType:
    """The view for a terminal: a bar for the run, a bar for the present epoch, a line of numbers."""
    style = STYLES[seen.status]
    head = Text.assemble((seen.name, "bold"), "  ", (seen.status, style))
    if seen.status == "silent":
        head.append(f" for {duration_text(seen.quiet_s)}: its processes may be gone", "yellow")
    elif seen.status == "failed" and seen.error:
        head.append(f": {seen.error}", "red")
    bars = Table.grid(padding=(0, 2))
    bars.add_row("run", _bar(seen.step, seen.total_steps), f"step {_of(seen.step, seen.total_steps)}", _eta_text(seen))
    done, count = _epoch_progress(seen)
    bars.add_row("epoch", _bar(done, 1.0), f"epoch {count}", f"{done:.0%}")
    return Group(head, bars, Text(" · ".join(_numbers(seen)) or "nothing measured yet", style="dim" if not seen.step else ""))


def line(seen: Glimpse) -> str:
    """The view for a log: everything on one line."""
    status: list[str] = [] if seen.status == "running" else [seen.status]
    if seen.status == "silent":
        status = [f"silent for {duration_text(seen.quiet_s)}: its processes may be gone"]
    error = [seen.error] if seen.error and seen.status == "failed" else []
    eta = [_eta_text(seen)] if seen.eta_s is not None else []
    steps = [f"step {_of(seen.step, seen.total_steps)}", f"epoch {_epoch_progress(seen)[1]}"]
    return f"{seen.name}: " + " | ".join([*status, *error, *steps, *_numbers(seen), *eta])


def number(value: float | None, digits: int = 4) -> str:
    """A number for people: significant `digits`, thousands as they are, `-` for None."""
    if value is None:
        return "-"
    if math.isfinite(value) and abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def duration_text(seconds: float) -> str:
    """A length of time for people: `42 s`, `3 min 05 s`, `2 h 10 min`, `12 d 3 h`."""
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"


class _Lines:
    """Prints a line when one is due."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console = console
        self._clock = clock
        self._printed_s = -math.inf
        self._shown: tuple[Status, int] | None = None

    def __call__(self, seen: Glimpse, last: bool) -> None:
        now, key = self._clock(), (seen.status, int(seen.epoch + 1e-6))
        if last or key != self._shown or now - self._printed_s >= _LINE_EVERY_S:
            self._printed_s, self._shown = now, key
            self._console.print(line(seen), highlight=False, markup=False, soft_wrap=True)


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _seconds_per_step(metrics: pa.Table) -> float | None:
    """The pace of the newest segment over its last logged losses, by the workers' own clock."""
    losses = metrics.filter(pc.equal(metrics.column("name"), "train/loss"))
    if not len(losses):
        return None
    rows = losses.slice(max(len(losses) - _RATE_POINTS, 0)).to_pylist()
    rows = [row for row in rows if row["segment"] == rows[-1]["segment"]]
    steps, seconds = rows[-1]["step"] - rows[0]["step"], rows[-1]["time_s"] - rows[0]["time_s"]
    return seconds / steps if steps > 0 and seconds > 0 else None


def _total_epochs(summary: Summary, step: int, epoch: float) -> float | None:
    return summary.total_steps * epoch / step if step and epoch else None


def _epoch_progress(seen: Glimpse) -> tuple[float, str]:
    """How much of the present epoch is done (0 to 1), and which it is, such as `3/10`; the end of one belongs to it."""
    present = max(math.ceil(seen.epoch - 1e-6), 1)
    total = 0
    if seen.total_epochs and seen.total_steps:  # the last step may reach a little over the end
        total = max(math.ceil(seen.total_epochs * (1 - 1 / seen.total_steps) - 1e-6), 1)
        present = min(present, total)
    done = min(max(seen.epoch - (present - 1), 0.0), 1.0)
    return done, _of(present, total)


def _bar(done: float, total: float) -> ProgressBar:
    return ProgressBar(total=total or 1.0, completed=min(done, total), width=40)


def _of(done: int, total: int) -> str:
    return f"{done:,}/{total:,}" if total else f"{done:,}"


def _eta_text(seen: Glimpse) -> str:
    return f"ETA {duration_text(seen.eta_s)}" if seen.eta_s is not None else ""


def _numbers(seen: Glimpse) -> list[str]:
    goal = f"{seen.goal} {number(seen.goal_value)}" + (f" (best {number(seen.best)})" if seen.best is not None else "")
    parts = {
        f"loss {number(seen.loss)}": seen.loss,
        f"lr {number(seen.lr, 3)}": seen.lr,
        f"{number(seen.samples_per_s, 3)} samples/s": seen.samples_per_s,
        goal: seen.goal_value,
    }
    return [text for text, value in parts.items() if value is not None]
