"""Work for one thread, the most urgent first: what piles up while the thread is busy goes in batches, within the deadlines.

While a batch runs, jobs pile up; the next batch takes what has come, up to the limit. So a lone job never waits for company, and
under load the batches grow by themselves. (`ray.serve.batch` adds a fixed wait, knows no deadlines and needs Serve.)

All times are the running event loop's (`loop.time()`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

from longhaul.serving.queueing.learned_time import BatchTimes

Job = TypeVar("Job")
Result = TypeVar("Result")

PATIENCE_S = 1.0
"""A job without a deadline takes its turn as if it were due so long after it came, and is never given up."""
_SHORT_S = 1e-9  # for what is not known yet
_SAME_RATE = 0.999  # two batches whose rates differ by less are as good as one another: the larger goes
_log = logging.getLogger(__name__)


class DeadlinePassed(RuntimeError):
    """The deadline came before the work had begun; it was not begun."""


class QueueClosed(RuntimeError):
    """The queue takes no work any more."""


@dataclass(order=True)
class _Waiting(Generic[Job, Result]):
    """A job in the queue; they are ordered by how urgent they are."""

    due: float
    number: int
    deadline: float | None = field(compare=False)
    size: int = field(compare=False)
    job: Job = field(compare=False)
    answer: asyncio.Future[Result] = field(compare=False)

    def hopeless(self, now: float, seconds: float) -> bool:
        """Whether it would be late even if it ran at once and alone."""
        return self.deadline is not None and now + seconds > self.deadline


class DeadlineQueue(Generic[Job, Result]):
    """Runs `work` on a thread of its own.

    Of what waits, the earliest deadline goes first. Jobs are added to a batch as long as it keeps the deadlines of those in it,
    by what batches of that size have taken so far. A job that would be late in any case goes only when nothing else waits: else,
    under overload, each would begin just before its deadline and none would keep it.

    Where not all that waits can be in time, the batch with the most work a second goes, which may pass over the most urgent: one
    that has just the time to run alone would forbid company, the next one likewise, and batches would stay small for ever.

    Args:
        work: jobs -> a result each; called on the thread, with sizes of `largest` at most in sum.
        largest: the most that one batch takes.
        name: of the thread.
        prepare: called on the thread before the first job.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Job]], Sequence[Result]],
        largest: int,
        name: str,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._work = work
        self._largest = largest
        self._name = name
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name, initializer=prepare)
        self._waiting: list[_Waiting[Job, Result]] = []
        self._numbers = count()
        self._worker: asyncio.Task[None] | None = None
        self._running: tuple[float, int] | None = None
        self._closed = False
        self._last: Future[None] | None = None
        self.times = BatchTimes()

    async def run(self, job: Job, size: int = 1, *, deadline: float | None = None) -> Result:
        """Wait for a job's result; cancelling this takes the job out of the queue unless it has begun.

        Args:
            job: what `work` takes.
            size: how much of a batch it fills.
            deadline: in the event loop's time; a job that has begun by then ends, and gives its result late.

        Raises:
            DeadlinePassed: it had not begun at its deadline.
            QueueClosed: `close` came before it had begun.
            Exception: what `work` raised.
        """
        loop = asyncio.get_running_loop()
        if self._closed:
            raise QueueClosed(f"{self._name}: closed")
        due = loop.time() + PATIENCE_S if deadline is None else deadline
        answer: asyncio.Future[Result] = loop.create_future()
        entry = _Waiting(due, next(self._numbers), deadline, size, job, answer)
        self._waiting.append(entry)
        alarm = None if deadline is None else loop.call_at(deadline, self._expire, entry)
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._drain())
        try:
            return await answer
        finally:
            if alarm is not None:
                alarm.cancel()
            if entry in self._waiting:  # who asked has left: behind a thread that hangs, such jobs would pile up
                self._waiting.remove(entry)

    def start(self, warm_up: Callable[[], None] | None = None) -> Future[None]:
        """Begin the thread, and run `warm_up` on it before jobs that come later; its time is not learned. From any thread.

        Returns:
            Done when that is done.
        """
        return self._thread.submit(warm_up or _nothing)

    def expected_s(self, size: int) -> float:
        """When a new job of this size would be done, in seconds from now; call it on the event loop."""
        now = asyncio.get_running_loop().time()
        waiting = sum(entry.size for entry in self._waiting if not entry.answer.done() and not self._late(entry, now))
        full, rest = divmod(waiting + size, self._largest)
        return self._remaining(now) + full * self.times.seconds(self._largest) + self.times.seconds(rest)

    def overdue_s(self) -> float:
        """How long the running batch has been taking beyond what was expected; 0 if nothing runs. Call it on the event loop."""
        if self._running is None:
            return 0.0
        begun, size = self._running
        return max(0.0, asyncio.get_running_loop().time() - begun - self.times.seconds(size))

    def close(self, wait_s: float = 10.0) -> bool:
        """Take no more work, fail what waits, and end the thread after the batch that it runs; from any thread.

        Args:
            wait_s: how long to wait for that batch.

        Returns:
            Whether the thread has ended.
        """
        self._closed = True
        for entry in list(self._waiting):
            loop = entry.answer.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_fail, entry.answer, QueueClosed("closed while the work waited"))
        with contextlib.suppress(RuntimeError):  # closed before: that has left what to wait for
            self._last = self._thread.submit(_nothing)
        self._thread.shutdown(wait=False)
        try:
            if self._last is not None:
                self._last.result(wait_s)
        except StillRunning:
            _log.warning("%s: still busy %g s after it was closed", self._name, wait_s)
            return False
        return True

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._take(loop.time()):
            size = sum(entry.size for entry in batch)
            begun = loop.time()
            self._running = begun, size
            try:
                results = await loop.run_in_executor(self._thread, self._work, [entry.job for entry in batch])
            except Exception as error:  # noqa: BLE001 - whatever it was, those who wait must hear of it
                for entry in batch:
                    _fail(entry.answer, error)
                continue
            finally:
                self._running = None
            self.times.add(size, loop.time() - begun)
            for entry, result in zip(batch, results, strict=True):
                if not entry.answer.done():  # who asked may have left
                    entry.answer.set_result(result)

    def _take(self, now: float) -> list[_Waiting[Job, Result]]:
        """The next batch, taken out of the queue; what is cancelled or past its deadline goes out too."""
        for entry in self._waiting:
            if entry.deadline is not None and entry.deadline <= now:
                _fail(entry.answer, DeadlinePassed("not begun at the deadline"))
        alive = sorted(entry for entry in self._waiting if not entry.answer.done())
        in_time = [entry for entry in alive if not self._late(entry, now)]
        batch = self._gather(in_time or alive, now)
        chosen = {entry.number for entry in batch}
        self._waiting = [entry for entry in alive if entry.number not in chosen]
        return batch

    def _gather(self, candidates: list[_Waiting[Job, Result]], now: float) -> list[_Waiting[Job, Result]]:
        """The next batch of `candidates`, which are sorted by urgency."""
        first = self._from(candidates, now)
        if self._rest_follows(candidates, first, now):
            return first
        best, most = first, self._rate(_size(first))
        rates = {size: self._rate(size) for size in range(1, self._largest + 1)}
        ideal = max(size for size, rate in rates.items() if rate >= _SAME_RATE * max(rates.values()))
        for start in range(1, len(candidates)):
            if _size(best) == ideal or candidates[start - 1].deadline is None:
                break  # nothing does more; and a patient one whose turn has come is not passed over
            batch = self._from(candidates[start:], now)
            rate = self._rate(_size(batch))
            larger = _size(batch) > _size(best)
            if rate * _SAME_RATE > most or (larger and rate > most * _SAME_RATE):
                best, most = batch, max(rate, most)
        return best

    def _from(self, candidates: Sequence[_Waiting[Job, Result]], now: float) -> list[_Waiting[Job, Result]]:
        """The most urgent one, and what fits in with it."""
        batch: list[_Waiting[Job, Result]] = []
        size, due = 0, float("inf")
        for entry in candidates:
            if batch and (size == self._largest or now + self.times.seconds(size + 1) > due):
                break  # not even the smallest
            together = size + entry.size
            earliest = due if entry.deadline is None or self._late(entry, now) else min(due, entry.deadline)
            if batch and (together > self._largest or now + self.times.seconds(together) > earliest):
                continue
            batch.append(entry)
            size, due = together, earliest
        return batch

    def _rest_follows(
        self, candidates: Sequence[_Waiting[Job, Result]], first: Sequence[_Waiting[Job, Result]], now: float
    ) -> bool:
        """Whether all others are in time if they go in batches as they come after the first one."""
        chosen = {entry.number for entry in first}
        rest = [entry for entry in candidates if entry.number not in chosen]
        after = now + self.times.seconds(_size(first))
        while rest:
            batch = rest[: _fitting(rest, self._largest)]
            after += self.times.seconds(_size(batch))
            if any(entry.deadline is not None and entry.deadline < after for entry in batch):
                return False
            rest = rest[len(batch) :]
        return True

    def _rate(self, size: int) -> float:
        return size / max(self.times.seconds(size), _SHORT_S)

    def _late(self, entry: _Waiting[Job, Result], now: float) -> bool:
        return entry.hopeless(now, self.times.seconds(entry.size))

    def _remaining(self, now: float) -> float:
        """Until the running batch ends; once it is overdue by some time, as much again is expected."""
        if self._running is None:
            return 0.0
        begun, size = self._running
        return abs(begun + self.times.seconds(size) - now)

    def _expire(self, entry: _Waiting[Job, Result]) -> None:
        if entry in self._waiting:
            self._waiting.remove(entry)
            _fail(entry.answer, DeadlinePassed("not begun at the deadline"))


def _size(batch: Sequence[_Waiting[Job, Result]]) -> int:
    return sum(entry.size for entry in batch)


def _fitting(entries: Sequence[_Waiting[Job, Result]], largest: int) -> int:
    """How many of them, in order, one batch takes; one at least."""
    number, size = 0, 0
    for entry in entries:
        size += entry.size
        if number and size > largest:
            break
        number += 1
    return number


def _nothing() -> None: ...


def _fail(answer: asyncio.Future[Result], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
