"""Memory that all requests and streams of a replica share: who wants more than is left, waits in turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from longhaul.serving.refusals import BodyTooLarge, Overloaded

DECODED_BYTES = 8
"""Of a sample as detectors take it: complex64."""


class Budget:
    """A number of bytes to be shared.

    Args:
        size: of all together, in bytes.
        what: it is for, in messages.
    """

    def __init__(self, size: int, what: str) -> None:
        self._size = size
        self._what = what
        self._used = 0
        self._turn = asyncio.Lock()  # a large one is not overtaken for ever by small ones
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def room(self, size: int, patience_s: float) -> AsyncIterator[None]:
        """Room for `size` bytes, while they are needed.

        Raises:
            Overloaded: there was none for so long.
            BodyTooLarge: there is never so much.
        """
        if size > self._size:
            raise BodyTooLarge(f"a chunk takes {size:,} bytes as {self._what}, the limit is {self._size:,}", "Send a lower rate")
        try:
            async with asyncio.timeout(patience_s), self._turn:
                while self._used + size > self._size:
                    self._freed.clear()
                    await self._freed.wait()
                self._used += size
        except TimeoutError:
            raise Overloaded(f"there was no memory for {self._what} for {patience_s:.3g} s", "Try again later") from None
        try:
            yield
        finally:
            self._used -= size
            self._freed.set()
