"""The deadline on a virtual clock: whatever the engines do, the answer is on time and says what became of each."""

from __future__ import annotations

import asyncio
import math
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest
import torch
from virtual_clock import run_virtually

from longhaul.serving.detection import ensemble as ensemble_module
from longhaul.serving.detection.answers import ChunkAnswer, Status
from longhaul.serving.detection.chunk import SignalChunk
from longhaul.serving.detection.ensemble import LEAST_MARGIN_S, Ensemble, EnsembleSettings, Member, SheddingSettings
from longhaul.serving.queueing.batching import Batcher
from longhaul.signals.front_end import FrontEnd
from longhaul.signals.tile_folder import TileSettings

RATE = 1e6
DEADLINE_S, TOLERANCE_S = 0.4, 0.005
NAMES = ("alpha", "beta", "gamma")
CHUNKS = 10_000
CURRENT: ContextVar[int] = ContextVar("CURRENT")


class ScriptedFrontEnd(FrontEnd):
    """Takes the time that the chunk itself says: the second sample's real part. The first is its number, modulo 251, grey."""

    def to_uint8(self, iq: torch.Tensor) -> torch.Tensor:
        asyncio.get_running_loop().take(float(iq[1].real))  # type: ignore[attr-defined]
        return torch.full((self.tile, self.tile), int(iq[0].real) % 251, dtype=torch.uint8)


TILES = TileSettings(front_end=ScriptedFrontEnd(nfft=16, hop=16, tile=16), chunk_s=64 / RATE)


def chunk(number: int, front_s: float) -> SignalChunk:
    iq = torch.zeros(64, dtype=torch.complex64)
    iq[0], iq[1] = number, front_s
    return SignalChunk(iq, RATE, index=number)


def found(batch: torch.Tensor) -> dict[str, np.ndarray]:
    """One box on each tile, its score by the tile's grey: 0.6 and more."""
    n = len(batch)
    return {
        "boxes": np.tile(np.float32([[[2, 2, 8, 8]]]), (n, 1, 1)),
        "scores": 0.6 + 0.3 * batch.numpy()[:, 0, 0, :1],
        "labels": np.ones((n, 1), np.int32),
    }


class ScriptedRunner:
    """Answers chunk i after delays[i] seconds; fails if `fails[i]`; an infinite delay hangs."""

    seconds_per_sample = 0.01

    def __init__(self, delays: np.ndarray, fails: np.ndarray) -> None:
        self.delays, self.fails = delays, fails

    def expected_s(self, samples: int) -> float:
        return 0.01

    async def infer(self, samples: torch.Tensor, *, deadline: float | None) -> dict[str, np.ndarray]:
        number = CURRENT.get()
        if math.isinf(self.delays[number]):
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(self.delays[number])
        if self.fails[number]:
            raise RuntimeError("out of memory")
        return found(samples)


def settings(**changes: Any) -> EnsembleSettings:
    return EnsembleSettings(deadline_s=DEADLINE_S, shedding=SheddingSettings(enabled=False), **changes)


def scripted(count: int) -> tuple[np.ndarray, dict[str, ScriptedRunner]]:
    """Seconds of the front end, and runners with heavy tails, failures and hangs: about a third of the chunks lose a member."""
    rng = np.random.default_rng(5)
    front = 0.02 + 0.01 * rng.pareto(1.8, count)
    runners = {}
    for name in NAMES:
        delays = 0.02 + 0.05 * rng.pareto(1.3, count)
        delays[rng.random(count) < 0.01] = math.inf
        runners[name] = ScriptedRunner(delays, rng.random(count) < 0.02)
    return front, runners


def expected_statuses(front_s: float, runners: dict[str, ScriptedRunner], number: int, stop: float) -> dict[str, Status]:
    """The oracle: arithmetic on the script, without an event loop."""
    wanted = {}
    for name, runner in runners.items():
        in_time = front_s + runner.delays[number] <= stop
        wanted[name] = Status.LATE if not in_time else Status.FAILED if runner.fails[number] else Status.ON_TIME
    return wanted


def statuses(answer: ChunkAnswer) -> dict[str, Status]:
    return {part.model: part.status for part in answer.models}


async def timed(ensemble: Ensemble, number: int, front_s: float) -> tuple[ChunkAnswer, float]:
    loop = asyncio.get_running_loop()
    CURRENT.set(number)
    begun = loop.time()
    answer = await ensemble.detect(chunk(number, front_s))
    return answer, loop.time() - begun


def members(runners: dict[str, Any]) -> list[Member]:
    return [Member(name, "1", (name,), runner) for name, runner in runners.items()]


def test_ten_thousand_answers_are_on_time_and_every_status_is_right() -> None:
    front, runners = scripted(CHUNKS)
    seen = dict.fromkeys(Status, 0)
    whole = 0

    async def scenario() -> None:
        nonlocal whole
        ensemble = Ensemble(members(runners), TILES, settings())
        for number in range(CHUNKS):
            answer, took = await timed(ensemble, number, front[number])
            assert took <= DEADLINE_S + TOLERANCE_S
            assert answer.seconds == pytest.approx(took, abs=1e-9)
            wanted = expected_statuses(front[number], runners, number, DEADLINE_S - LEAST_MARGIN_S)
            assert statuses(answer) == wanted, (number, front[number])
            on_time = {name for name, status in wanted.items() if status is Status.ON_TIME}
            assert answer.degraded == (len(on_time) < len(NAMES))
            assert {d.model for d in answer.detections} | {c.model for d in answer.detections for c in d.also} == on_time
            if len(on_time) == len(NAMES):
                whole += 1
                assert took <= 1.05 * max(runner.delays[number] for runner in runners.values()) + front[number]
            for status in wanted.values():
                seen[status] += 1
            await asyncio.sleep(front[number])  # a front end that was late is done with it before the next one
        ensemble.close()

    run_virtually(scenario)
    assert whole > CHUNKS / 2  # the script has plenty of each kind
    assert min(seen[status] for status in (Status.ON_TIME, Status.LATE, Status.FAILED)) > 100


def test_merging_that_takes_its_time_is_done_by_the_deadline_or_given_up(monkeypatch) -> None:
    count = 1500
    front, runners = scripted(count)
    merging = np.minimum(0.004 + 0.002 * np.random.default_rng(6).pareto(1.5, count), 0.5)
    combine = ensemble_module.combine
    given_up = 0

    def slow(replies, *arguments, each):
        asyncio.get_running_loop().take(merging[CURRENT.get()])  # type: ignore[attr-defined]
        return combine(replies, *arguments, each=each)

    async def scenario() -> None:
        nonlocal given_up
        ensemble = Ensemble(members(runners), TILES, settings())
        for number in range(count):
            answer, took = await timed(ensemble, number, front[number])
            assert took <= DEADLINE_S + TOLERANCE_S
            # what was clearly in time is in, what was clearly late is not; the margin that is learned lies between
            least = expected_statuses(front[number], runners, number, 0.75 * DEADLINE_S)
            most = expected_statuses(front[number], runners, number, DEADLINE_S)
            for name, status in statuses(answer).items():
                detail = next(part.detail for part in answer.models if part.model == name)
                if detail is not None and "merged" in detail:
                    given_up += 1
                    assert status is Status.LATE
                    assert merging[number] > LEAST_MARGIN_S
                else:
                    assert status in (least[name], most[name])
            await asyncio.sleep(1 + front[number])
        ensemble.close()

    monkeypatch.setattr(ensemble_module, "combine", slow)
    run_virtually(scenario)
    assert 0 < given_up < count / 20


class ScriptedEngine:
    """An engine whose batches take so long, plus a tail now and then; keeps the greys that it saw."""

    kind = "scripted"
    max_batch = 8

    def __init__(self, base_s: float, each_s: float, seed: int) -> None:
        self.base_s, self.each_s = base_s, each_s
        self.rng = np.random.default_rng(seed)
        self.sizes: list[int] = []

    def infer(self, batch: torch.Tensor) -> dict[str, np.ndarray]:
        slow = self.rng.random() < 0.03
        asyncio.get_running_loop().take((self.base_s + self.each_s * len(batch)) * (6 if slow else 1))  # type: ignore[attr-defined]
        self.sizes.append(len(batch))
        if self.rng.random() < 0.02:
            raise RuntimeError("device lost")
        return found(batch)

    def warm_up(self) -> None: ...

    def close(self) -> None: ...


def test_through_the_real_batcher_at_twice_the_capacity_each_answer_is_on_time_and_its_own() -> None:
    count = 1500
    engines = {
        "quick": ScriptedEngine(0.01, 0.002, 1),
        "steady": ScriptedEngine(0.03, 0.004, 2),
        "heavy": ScriptedEngine(0.1, 0.05, 3),
    }
    kept = dict.fromkeys(engines, 0)

    async def one(ensemble: Ensemble, number: int) -> None:
        answer, took = await timed(ensemble, number, 0.005)
        assert took <= DEADLINE_S + TOLERANCE_S
        assert answer.index == number
        for part in answer.models:
            kept[part.model] += part.status is Status.ON_TIME
            assert (part.seconds is None) == (part.status is not Status.ON_TIME)
        grey = number % 251 / 255
        assert all(d.score == pytest.approx(0.6 + 0.3 * grey, abs=1e-6) for d in answer.detections)

    async def scenario() -> None:
        batchers = {name: Batcher(engine) for name, engine in engines.items()}
        ensemble = Ensemble(members(batchers), TILES, settings())
        rng = np.random.default_rng(4)
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(one(ensemble, number))
                await asyncio.sleep(rng.exponential(0.0302))  # "heavy" keeps up with half of it: 16 a second
        await asyncio.sleep(10)
        for batcher in batchers.values():
            batcher.close()
        ensemble.close()

    run_virtually(scenario)
    assert max(engines["heavy"].sizes) > 1
    assert kept["quick"] > 0.9 * count
    assert kept["steady"] > 0.75 * count
    assert kept["heavy"] > 0.22 * count  # in batches that stay as large as the deadlines allow
