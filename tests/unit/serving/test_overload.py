"""More than an engine can do: batches stay as large as the deadlines allow, and what happened before is soon forgotten."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch
from timed_engine import TimedEngine, samples, taught
from virtual_clock import run_virtually

from longhaul.serving.queueing.batching import Batcher, DeadlinePassed


class BigEngine(TimedEngine):
    """Takes 50 ms and 5 ms a sample: 8 together 89 a second, alone 18; once, a batch of `least` takes `stall_s`."""

    max_batch = 8

    def __init__(self) -> None:
        super().__init__()
        self.stall_s, self.least = 0.0, 1

    def infer(self, batch: torch.Tensor) -> dict[str, np.ndarray]:
        stalls = self.stall_s > 0 and len(batch) >= self.least
        asyncio.get_running_loop().take(self.stall_s if stalls else 0.05 + 0.005 * len(batch))  # type: ignore[attr-defined]
        self.stall_s = 0.0 if stalls else self.stall_s
        return {"mean": batch.mean((1, 2, 3)).numpy()}


async def kept(engine: BigEngine, rate: float, seconds: float, *, teach: bool, stall_s: float = 0.0, burst: int = 0) -> float:
    """Of requests with 400 ms at a steady rate, the share that is in time, after something happened in the first fifth."""
    batcher, loop = Batcher(engine), asyncio.get_running_loop()
    for size in range(1, 9) if teach else (1,):
        await batcher.infer(samples(*range(size)))
    in_time: list[bool] = []

    async def one(counts: bool) -> None:
        due = loop.time() + 0.4
        try:
            await batcher.infer(samples(0), deadline=due)
        except DeadlinePassed:
            ok = False
        else:
            ok = loop.time() <= due
        if counts:
            in_time.append(ok)

    async with asyncio.TaskGroup() as group:
        for number in range(count := int(rate * seconds)):
            if number == count // 5:
                engine.stall_s = stall_s or engine.stall_s
                for _ in range(burst):
                    group.create_task(one(False))
            group.create_task(one(number > count / 2))
            await asyncio.sleep(1 / rate)
    return sum(in_time) / len(in_time)


@pytest.mark.parametrize(
    ("rate", "event", "share"), [(75, {"stall_s": 1.0}, 1), (75, {"burst": 200}, 1), (100, {}, 0.85), (180, {}, 0.45)]
)
def test_batches_stay_large_under_overload_and_grow_again_after_one(rate, event, share) -> None:
    assert run_virtually(lambda: kept(BigEngine(), rate, 20, teach=True, **event)) >= share


def test_a_hiccup_at_the_first_sight_of_a_size_does_not_end_that_size() -> None:
    engine = BigEngine()
    engine.stall_s, engine.least = 1.0, 2
    assert run_virtually(lambda: kept(engine, 60, 20, teach=False)) == 1


def test_what_cannot_all_be_in_time_goes_in_the_batch_with_the_most_a_second_and_who_is_passed_over_is_told() -> None:
    async def scenario() -> list[object]:
        engine, batcher = await taught()  # 4 together take 50 ms
        now = asyncio.get_running_loop().time()
        blocker = asyncio.create_task(batcher.infer(samples(0)))  # 20 ms
        await asyncio.sleep(0.001)
        dues = {1: 0.045, 2: 0.075, 3: 0.075, 4: 0.075, 5: 0.075}  # 1 alone would keep it, and then the others would not
        results = await asyncio.gather(
            *(batcher.infer(samples(value), deadline=now + due) for value, due in dues.items()), return_exceptions=True
        )
        await blocker
        assert engine.seen == [[0], [2, 3, 4, 5]]
        return results

    passed_over, *others = run_virtually(scenario)
    assert isinstance(passed_over, DeadlinePassed)
    assert [float(other["mean"][0]) for other in others] == [2, 3, 4, 5]
