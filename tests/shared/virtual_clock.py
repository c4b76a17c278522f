"""An event loop whose clock jumps to the next timer: hours pass in a moment, and to the microsecond as they should.

Work for threads runs at once on the loop's own thread; the time that it says it takes (`take`) passes before its future is done,
one job after the other for each executor. So a program with threads and timers runs the same way every time.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

Result = TypeVar("Result")


class NothingWillHappen(RuntimeError):
    """All tasks wait, and no timer is set: in real time they would wait for ever."""


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise NothingWillHappen
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualClock(asyncio.SelectorEventLoop):
    """The event loop; its time begins at 0."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        self._taken = 0.0
        self._free: dict[Executor | None, float] = {}
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now

    def take(self, seconds: float) -> None:
        """Called by work for a thread: so long it takes, beyond what other calls have said."""
        self._taken += seconds

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future = self.create_future()
        self._taken = 0.0
        try:
            result, error = func(*args), None
        except Exception as raised:  # noqa: BLE001 - handed on to who waits for the future
            result, error = None, raised
        begun = self.time() if executor is None else max(self.time(), self._free.get(executor, 0.0))
        self._free[executor] = begun + self._taken
        self.call_at(begun + self._taken, _finish, future, result, error)
        return future


def _finish(future: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def run_virtually(main: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run `main()` to its end on a virtual clock."""
    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        return runner.run(main())
