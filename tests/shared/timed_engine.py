"""An engine that takes its time on a virtual clock."""

from __future__ import annotations

import asyncio

import numpy as np
import torch

from longhaul.serving.queueing.batching import Batcher


def samples(*values: float) -> torch.Tensor:
    return torch.stack([torch.full((3, 8, 8), float(value)) for value in values])


class TimedEngine:
    """Takes 10 ms and 10 ms a sample of virtual time; answers each sample's mean."""

    kind = "timed"
    max_batch = 4

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def infer(self, batch: torch.Tensor) -> dict[str, np.ndarray]:
        asyncio.get_running_loop().take(0.01 + 0.01 * len(batch))  # type: ignore[attr-defined]
        mean = batch.mean((1, 2, 3)).numpy()
        self.seen.append(mean.tolist())
        return {"mean": mean}

    def warm_up(self) -> None: ...

    def close(self) -> None: ...


async def taught() -> tuple[TimedEngine, Batcher]:
    """A batcher that knows what batches of each size take."""
    engine = TimedEngine()
    batcher = Batcher(engine)
    for size in range(1, 5):
        await batcher.infer(samples(*range(size)))
    engine.seen.clear()
    return engine, batcher
