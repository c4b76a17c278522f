"""The batcher: who waits is taken along, the most urgent first; who left is not; a failure reaches its batch and no other.

Tests with `run_virtually` run on a virtual clock, so their times are exact; the others run the real thread.
"""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timed_engine import TimedEngine, samples, taught
from virtual_clock import run_virtually

from longhaul.serving.queueing.batching import Batcher, DeadlinePassed, EngineFailed
from longhaul.serving.queueing.deadline_queue import DeadlineQueue


async def settle(batcher: Batcher, waiting: int) -> None:
    """Return once so many requests are queued behind the running batch."""
    while len(batcher._queue._waiting) != waiting:
        await asyncio.sleep(0)


async def held(engine, batcher: Batcher) -> asyncio.Task:
    """Start a request whose batch is held back inside the engine."""
    engine.gate.clear()
    first = asyncio.create_task(batcher.infer(samples(0)))
    await asyncio.to_thread(engine.entered.wait)
    return first


def test_each_gets_its_own_row_and_batches_keep_to_the_limit(engine) -> None:
    async def scenario() -> list[float]:
        batcher = Batcher(engine)
        first = await held(engine, batcher)
        rest = [asyncio.create_task(batcher.infer(samples(i))) for i in range(1, 7)]
        await settle(batcher, 6)
        engine.gate.set()
        answers = await asyncio.gather(first, *rest)
        batcher.close()
        return [float(answer["mean"][0]) for answer in answers]

    assert asyncio.run(scenario()) == [0, 1, 2, 3, 4, 5, 6]
    assert engine.seen == [1, 4, 2]


def test_requests_of_several_samples_keep_their_rows_together(engine) -> None:
    async def scenario() -> list[list[float]]:
        batcher = Batcher(engine)
        first = await held(engine, batcher)
        rest = [asyncio.create_task(batcher.infer(samples(*part))) for part in ((1, 2, 3), (4, 5), (6,), range(7, 17))]
        await settle(batcher, 6)  # the last is split: 4, 4 and 2
        engine.gate.set()
        answers = await asyncio.gather(first, *rest)
        batcher.close()
        return [answer["mean"].tolist() for answer in answers]

    assert asyncio.run(scenario()) == [[0], [1, 2, 3], [4, 5], [6], [*range(7, 17)]]
    assert engine.seen[:2] == [1, 4]  # 1, 2, 3 with 6: 4 and 5 would not have gone in whole
    assert sum(engine.seen) == 17


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
        gone, stays = (asyncio.create_task(batcher.infer(samples(i))) for i in (1, 2))
        await settle(batcher, 2)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        engine.gate.set()
        await first
        assert float((await stays)["mean"][0]) == 2
        batcher.close()

    asyncio.run(scenario())
    assert engine.seen == [1, 1]


def test_a_failure_reaches_all_of_its_batch_and_the_next_batch_runs(engine) -> None:
    async def scenario() -> None:
        batcher = Batcher(engine)
        first = await held(engine, batcher)
        rest = [asyncio.create_task(batcher.infer(samples(i))) for i in (1, 2)]
        await settle(batcher, 2)
        engine.failure = ValueError("out of order")
        engine.gate.set()
        for answer in await asyncio.gather(first, *rest, return_exceptions=True):
            assert isinstance(answer, EngineFailed)
            assert isinstance(answer.__cause__, ValueError)
        engine.failure = None
        assert float((await batcher.infer(samples(5)))["mean"][0]) == 5
        batcher.close()

    asyncio.run(scenario())


def test_behind_an_engine_that_hangs_nothing_piles_up(engine) -> None:
    async def scenario() -> int:
        batcher = Batcher(engine)
        first = await held(engine, batcher)
        for _ in range(5):  # each gives up after a while, with a deadline or without
            for deadline in (None, asyncio.get_running_loop().time() + 60):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(batcher.infer(samples(1), deadline=deadline), 0.002)
        kept = len(batcher._queue._waiting)
        engine.gate.set()
        await first
        batcher.close()
        return kept

    assert asyncio.run(scenario()) == 0


@pytest.mark.parametrize("rounds", [3])
def test_a_batcher_outlives_event_loops(engine, rounds) -> None:
    batcher = Batcher(engine)
    for value in range(rounds):
        assert float(asyncio.run(batcher.infer(samples(value)))["mean"][0]) == value
    batcher.close()


def test_the_earliest_deadline_goes_first() -> None:
    async def scenario() -> list[list[float]]:
        engine, batcher = await taught()
        now = asyncio.get_running_loop().time()
        requests = [batcher.infer(samples(0, 0, 0, 0))]
        requests += [batcher.infer(samples(*[value] * 3), deadline=now + due) for value, due in ((1, 9), (2, 3), (3, 6))]
        await asyncio.gather(*requests)
        return engine.seen

    assert run_virtually(scenario) == [[0, 0, 0, 0], [2, 2, 2], [3, 3, 3], [1, 1, 1]]  # without one: as if due in a second


def test_gathering_breaks_no_deadline_that_the_smaller_batch_keeps() -> None:
    async def scenario() -> tuple[list[list[float]], list[bool]]:
        engine, batcher = await taught()
        loop = asyncio.get_running_loop()
        now = loop.time()
        blocker = asyncio.create_task(batcher.infer(samples(0)))  # 20 ms
        await asyncio.sleep(0.001)
        # behind it, 1 alone would be done after 40 ms, with one other after 50, with two after 60
        dues = {1: 0.055, 2: 0.2, 3: 0.2, 4: 0.2}
        tasks = [asyncio.create_task(batcher.infer(samples(value), deadline=now + due)) for value, due in dues.items()]
        kept = []
        for task, due in zip(tasks, dues.values(), strict=True):
            await task
            kept.append(loop.time() <= now + due)
        await blocker
        return engine.seen, kept

    seen, kept = run_virtually(scenario)
    assert seen == [[0], [1, 2], [3, 4]]
    assert all(kept)


def test_what_would_be_late_anyway_makes_nobody_else_late() -> None:
    async def scenario() -> tuple[list[object], list[list[float]]]:
        engine, batcher = await taught()
        now = asyncio.get_running_loop().time()
        blocker = asyncio.create_task(batcher.infer(samples(0)))  # 20 ms; what takes 20 more is done at 40
        await asyncio.sleep(0.001)
        lost = batcher.infer(samples(1), deadline=now + 0.035)
        kept = batcher.infer(samples(2), deadline=now + 0.041)
        results = await asyncio.gather(lost, kept, return_exceptions=True)
        await blocker
        return results, engine.seen

    (lost, kept), seen = run_virtually(scenario)
    assert isinstance(lost, DeadlinePassed)
    assert kept["mean"].tolist() == [2]
    assert seen == [[0], [2]]


def test_what_has_not_begun_at_its_deadline_is_told_so_then_and_never_runs(engine) -> None:
    async def scenario() -> None:
        batcher = Batcher(engine)
        first = await held(engine, batcher)
        try:
            deadline = asyncio.get_running_loop().time() + 0.02
            with pytest.raises(DeadlinePassed):  # the engine still hangs
                await asyncio.wait_for(batcher.infer(samples(1), deadline=deadline), 5)
        finally:
            engine.gate.set()
        await first
        await batcher.infer(samples(2))
        batcher.close()

    asyncio.run(scenario())
    assert engine.seen == [1, 1]


def test_what_runs_at_its_deadline_ends_late() -> None:
    async def scenario() -> float:
        _, batcher = await taught()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await batcher.infer(samples(1), deadline=begun + 0.001)
        return loop.time() - begun

    assert run_virtually(scenario) == pytest.approx(0.02)


@pytest.mark.parametrize(("urgent_ones", "size"), [(6, 1), (40, 3)])
def test_a_request_without_a_deadline_is_not_starved_by_urgent_ones(urgent_ones, size) -> None:
    async def scenario() -> float:
        _, batcher = await taught()
        loop = asyncio.get_running_loop()

        async def urgent() -> None:
            for _ in range(1000):
                await asyncio.gather(batcher.infer(samples(1, 1), deadline=loop.time() + 0.3), return_exceptions=True)

        crowd = [asyncio.create_task(urgent()) for _ in range(urgent_ones)]
        await asyncio.sleep(0.1)
        begun = loop.time()
        await batcher.infer(samples(*[2] * size))  # 3 and 2 do not fit together; 2 and 2 do, and more a second
        took = loop.time() - begun
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        return took

    assert run_virtually(scenario) < 1.2


def test_the_forecast_is_what_then_happens() -> None:
    async def scenario() -> list[tuple[float, float]]:
        _, batcher = await taught()
        loop = asyncio.get_running_loop()
        pairs = []
        for waiting in (0, 1, 5):
            crowd = [asyncio.create_task(batcher.infer(samples(i))) for i in range(waiting)]
            await asyncio.sleep(0.005)
            expected, begun = batcher.expected_s(1), loop.time()
            await batcher.infer(samples(9))
            pairs.append((expected, loop.time() - begun))
            await asyncio.gather(*crowd)
        return pairs

    for expected, took in run_virtually(scenario):
        assert expected == pytest.approx(took, rel=0.05)


def test_a_hanging_engine_looks_dearer_the_longer_it_hangs_and_so_does_its_forecast() -> None:
    async def scenario() -> list[tuple[float, float]]:
        engine, batcher = await taught()
        engine.infer = lambda batch: asyncio.get_running_loop().take(1000.0) or {"mean": batch}  # type: ignore[attr-defined]
        hanging = asyncio.create_task(batcher.infer(samples(0)))
        seen = []
        for _ in range(3):
            await asyncio.sleep(1)
            seen.append((batcher.seconds_per_sample, batcher.expected_s(1)))
        hanging.cancel()
        return seen

    costs, forecasts = zip(*run_virtually(scenario), strict=True)
    assert costs[0] > 0.9
    assert costs[0] < costs[1] < costs[2]
    assert forecasts[0] < forecasts[1] < forecasts[2]


def test_closing_fails_what_waits_and_what_comes_after_and_may_be_repeated(engine) -> None:
    async def scenario() -> None:
        batcher = Batcher(engine)
        first = await held(engine, batcher)
        waits = asyncio.create_task(batcher.infer(samples(1)))
        await settle(batcher, 1)
        for _ in range(2):  # the batch hangs, also the second time
            assert not await asyncio.to_thread(batcher.close, 0.01)
        with pytest.raises(EngineFailed):
            await asyncio.wait_for(waits, 5)
        engine.gate.set()
        assert (await first)["mean"].tolist() == [0]
        with pytest.raises(EngineFailed):
            await batcher.infer(samples(2))
        for _ in range(2):
            assert batcher.close()

    asyncio.run(scenario())
    assert engine.seen == [1]


def test_closing_from_many_threads_under_load_leaves_nobody_waiting(engine) -> None:
    async def scenario() -> list[object]:
        batcher = Batcher(engine)
        requests = [asyncio.create_task(batcher.infer(samples(i))) for i in range(200)]
        await asyncio.sleep(0)
        closers = [threading.Thread(target=batcher.close) for _ in range(4)]
        for closer in closers:
            closer.start()
        results = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), 20)
        for closer in closers:
            closer.join()
        return results

    for number, result in enumerate(asyncio.run(scenario())):
        assert isinstance(result, EngineFailed) or result["mean"].tolist() == [number]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0, 0.2), st.floats(0.001, 0.5), st.booleans()), max_size=25))
def test_whatever_comes_each_request_is_answered_with_its_own_or_told_that_it_is_too_late(script) -> None:
    engine = TimedEngine()

    async def one(batcher: Batcher, number: int, size: int, wait: float, due: float, patient: bool) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(wait)
        deadline = None if patient else loop.time() + due
        try:
            answer = await batcher.infer(samples(*[number] * size), deadline=deadline)
        except DeadlinePassed:
            assert deadline is not None
            assert loop.time() >= deadline - 1e-9
        else:
            assert answer["mean"].tolist() == [number] * size

    async def scenario() -> None:
        batcher = Batcher(engine)
        async with asyncio.TaskGroup() as group:
            for number, (size, wait, due, patient) in enumerate(script):
                group.create_task(one(batcher, number, size, wait, due, patient))

    run_virtually(scenario)
    assert all(1 <= len(batch) <= engine.max_batch for batch in engine.seen)


@pytest.mark.parametrize("rows", [1, 3])
def test_an_engine_with_too_many_rows_or_too_few_has_failed_for_all_of_the_batch(engine, rows) -> None:
    infer = engine.infer

    async def scenario() -> list[object]:
        batcher = Batcher(engine)
        first = await held(engine, batcher)
        rest = [asyncio.create_task(batcher.infer(samples(i))) for i in (1, 2)]
        await settle(batcher, 2)
        engine.infer = lambda batch: {name: np.resize(values, rows) for name, values in infer(batch).items()}
        engine.gate.set()
        await first
        results = await asyncio.gather(*rest, return_exceptions=True)
        batcher.close()
        return results

    for result in asyncio.run(scenario()):
        assert isinstance(result, EngineFailed)
        assert f"'mean': {rows}" in str(result.__cause__)


def test_what_the_thread_does_first_is_not_learned() -> None:
    async def scenario() -> float:
        queue = DeadlineQueue(lambda jobs: jobs, 1, "queue")
        queue.start(lambda: time.sleep(0.2)).result()
        assert await queue.run(1) == 1
        queue.close()
        return queue.times.seconds(1)

    assert asyncio.run(scenario()) < 0.2
