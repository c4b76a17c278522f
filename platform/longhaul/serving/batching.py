"""Concurrent requests to one engine, gathered into batches without waiting for anybody.

While a batch runs, samples pile up; the next batch takes what has come, up to the engine's limit. So a lone request never
waits for company, and under load the batches grow by themselves. (`ray.serve.batch` adds a fixed wait and needs Serve.)
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from longhaul.engines.inference import Array, InferenceEngine

Outputs = dict[str, Array]


class EngineFailed(RuntimeError):
    """The engine raised while it ran a batch; the cause is attached. All requests of that batch fail with it."""


class Batcher:
    """Runs one engine on a thread of its own, so that the event loop stays free.

    Args:
        engine: loaded and warmed up.
    """

    def __init__(self, engine: InferenceEngine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._waiting: deque[tuple[Tensor, asyncio.Future[Outputs]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def infer(self, sample: Tensor) -> Outputs:
        """One sample without a batch dimension -> each output by name, without a batch dimension.

        Raises:
            EngineFailed: the engine raised.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Outputs] = loop.create_future()
        self._waiting.append((sample, answer))
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._drain())
        return await answer

    def close(self) -> None:
        """End the thread after the batch that it runs."""
        self._thread.shutdown(wait=True)

    async def _drain(self) -> None:
        while batch := self._take():
            samples = torch.stack([sample for sample, _ in batch])
            try:
                outputs = await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.infer, samples)
            except Exception as error:  # noqa: BLE001 - whatever it was, those who wait must hear of it
                for _, answer in batch:
                    if not answer.done():
                        failure = EngineFailed(f"the {self._engine.kind} engine failed")
                        failure.__cause__ = error
                        answer.set_exception(failure)
                continue
            for row, (_, answer) in enumerate(batch):
                if not answer.done():  # a client that left has cancelled it
                    answer.set_result({name: values[row] for name, values in outputs.items()})

    def _take(self) -> list[tuple[Tensor, asyncio.Future[Outputs]]]:
        batch: list[tuple[Tensor, asyncio.Future[Outputs]]] = []
        while self._waiting and len(batch) < self._engine.max_batch:
            entry = self._waiting.popleft()
            if not entry[1].done():
                batch.append(entry)
        return batch
