"""The batcher: who waits is taken along, who left is not, and a failure reaches everyone in its batch."""

from __future__ import annotations

import asyncio

import pytest
import torch

from longhaul.serving.batching import Batcher, EngineFailed


def sample(value: float) -> torch.Tensor:
    return torch.full((3, 8, 8), value)


async def settle(batcher: Batcher, waiting: int) -> None:
    """Return once `waiting` samples are queued behind the running batch."""
    while len(batcher._waiting) != waiting:
        await asyncio.sleep(0)


async def held(engine, batcher: Batcher) -> asyncio.Task:
    """Start a request whose batch is held back inside the engine."""
    engine.gate.clear()
    first = asyncio.create_task(batcher.infer(sample(0)))
    await asyncio.to_thread(engine.entered.wait)
    return first


def test_each_gets_its_own_row_and_batches_keep_to_the_limit(engine) -> None:
    async def scenario() -> list[float]:
        batcher = Batcher(engine)
        first = await held(engine, batcher)
        rest = [asyncio.create_task(batcher.infer(sample(i))) for i in range(1, 7)]
        await settle(batcher, 6)
        engine.gate.set()
        answers = await asyncio.gather(first, *rest)
        batcher.close()
        return [float(answer["mean"]) for answer in answers]

    assert asyncio.run(scenario()) == [0, 1, 2, 3, 4, 5, 6]
    assert engine.seen == [1, 4, 2]


def test_the_event_loop_stays_free_while_the_engine_runs(engine) -> None:
    async def scenario() -> bool:
        batcher = Batcher(engine)
        request = await held(engine, batcher)  # returns only if the loop runs on beside the engine
        busy = not request.done()
        engine.gate.set()
        await request
        batcher.close()
        return busy

    assert asyncio.run(scenario())


def test_a_cancelled_request_is_left_out(engine) -> None:
    async def scenario() -> None:
        batcher = Batcher(engine)
        first = await held(engine, batcher)
        gone, stays = (asyncio.create_task(batcher.infer(sample(i))) for i in (1, 2))
        await settle(batcher, 2)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        engine.gate.set()
        await first
        assert float((await stays)["mean"]) == 2
        batcher.close()

    asyncio.run(scenario())
    assert engine.seen == [1, 1]


def test_a_failure_reaches_all_of_its_batch_and_the_next_batch_runs(engine) -> None:
    async def scenario() -> None:
        batcher = Batcher(engine)
        first = await held(engine, batcher)
        rest = [asyncio.create_task(batcher.infer(sample(i))) for i in (1, 2)]
        await settle(batcher, 2)
        engine.failure = ValueError("out of order")
        engine.gate.set()
        for answer in await asyncio.gather(first, *rest, return_exceptions=True):
            assert isinstance(answer, EngineFailed)
            assert isinstance(answer.__cause__, ValueError)
        engine.failure = None
        assert float((await batcher.infer(sample(5)))["mean"]) == 5
        batcher.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("rounds", [3])
def test_a_batcher_outlives_event_loops(engine, rounds) -> None:
    batcher = Batcher(engine)
    for value in range(rounds):
        assert float(asyncio.run(batcher.infer(sample(value)))["mean"]) == value
    batcher.close()
