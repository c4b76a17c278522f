"""Concurrent requests to one engine, gathered into batches without waiting for anybody and without breaking deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from longhaul.engines.inference import Array, InferenceEngine
from longhaul.serving.queueing.deadline_queue import DeadlinePassed, DeadlineQueue

__all__ = ["Batcher", "DeadlinePassed", "EngineFailed", "Outputs"]

Outputs = dict[str, Array]


class EngineFailed(RuntimeError):
    """The engine raised while it ran a batch, or it is closed; the cause is attached. All requests of that batch fail with it."""


class Batcher:
    """Runs one engine on a thread of its own, so that the event loop stays free; `DeadlineQueue` says who goes when.

    The work of a batch that has begun cannot be taken back: a late engine's result is dropped when it comes, and until then its
    tensors stay in memory.

    Args:
        engine: loaded and warmed up.
    """

    def __init__(self, engine: InferenceEngine) -> None:
        self._engine = engine
        self._queue = DeadlineQueue(self._run, engine.max_batch, "engine")

    async def infer(self, samples: Tensor, *, deadline: float | None = None) -> Outputs:
        """Samples (n, *shape), n >= 1 -> each output by name, (n, *shape).

        More samples than the engine takes at once go in several batches.

        Args:
            samples: the tiles of one chunk, say; they stay together in a batch.
            deadline: in the running event loop's time. By then the batch must have begun; if it ends later, so does this.

        Raises:
            EngineFailed: the engine raised, or is closed.
            DeadlinePassed: the batch had not begun at the deadline.
        """
        try:
            if len(samples) <= self._engine.max_batch:
                return await self._queue.run(samples, len(samples), deadline=deadline)
            return await self._in_parts(samples, deadline)
        except DeadlinePassed:
            raise
        except Exception as error:  # whatever it was, to who asked it is the engine that failed
            raise EngineFailed(f"the {self._engine.kind} engine failed") from error

    def expected_s(self, samples: int) -> float:
        """When an answer to that many new samples would be there, in seconds from now; call it on the event loop."""
        return self._queue.expected_s(samples)

    @property
    def seconds_per_sample(self) -> float:
        """What a sample costs on the engine, learned; 0 before the first batch. A batch that hangs counts while it does."""
        try:
            overdue = self._queue.overdue_s()
        except RuntimeError:  # not on the event loop: what is learned must do
            overdue = 0.0
        return self._queue.times.seconds_per_sample + overdue

    def close(self, wait_s: float = 10.0) -> bool:
        """Fail what waits and end the thread after the batch that it runs; from any thread.

        Returns:
            Whether that batch ended within `wait_s`.
        """
        return self._queue.close(wait_s)

    async def _in_parts(self, samples: Tensor, deadline: float | None) -> Outputs:
        parts = samples.split(self._engine.max_batch)
        tasks = [asyncio.ensure_future(self._queue.run(part, len(part), deadline=deadline)) for part in parts]
        try:
            outputs = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()  # once one has failed, nobody wants the others
        return {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}

    def _run(self, parts: Sequence[Tensor]) -> list[Outputs]:
        """On the engine's thread: one batch, and what belongs to each part of it."""
        outputs = self._engine.infer(torch.cat(list(parts)) if len(parts) > 1 else parts[0])
        samples = sum(map(len, parts))
        if wrong := {name: len(values) for name, values in outputs.items() if len(values) != samples}:
            raise ValueError(f"the engine answered to {samples} samples with other numbers of rows: {wrong}")
        ends = np.cumsum([len(part) for part in parts])[:-1]
        rows = {name: np.split(values, ends) for name, values in outputs.items()}
        return [{name: split[number] for name, split in rows.items()} for number in range(len(parts))]
