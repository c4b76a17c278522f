"""Memory that requests share: who wants more than is left waits, in turn, and is not kept waiting for ever."""

from __future__ import annotations

import asyncio
import io
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from grid_detector import CHUNK_SAMPLES
from http_signals import assert_problem, detect, tone

from longhaul.serving.http.intake.budget import DECODED_BYTES, Budget
from longhaul.serving.http.intake.iq import IqDescription, bare_samples
from longhaul.serving.http.settings import Limits
from longhaul.serving.refusals import BodyTooLarge, Overloaded


def test_who_wants_more_than_is_left_waits_in_turn() -> None:
    async def scene() -> list[str]:
        budget, came, leave = Budget(10, "tests"), [], asyncio.Event()

        async def guest(name: str, size: int) -> None:
            async with budget.room(size, 60):
                came.append(name)
                await leave.wait()

        guests = [asyncio.create_task(guest(name, size)) for name, size in (("a", 6), ("b", 8), ("c", 1))]
        for _ in range(10):
            await asyncio.sleep(0)
        assert came == ["a"]  # c would fit, and b would wait for ever behind its like
        leave.set()
        await asyncio.gather(*guests)
        return came

    assert asyncio.run(scene()) == ["a", "b", "c"]


def test_who_waits_too_long_is_refused_and_leaves_nothing_taken() -> None:
    async def scene() -> None:
        budget = Budget(10, "tests")
        async with budget.room(6, 60):
            with pytest.raises(Overloaded, match="no memory for tests"):
                async with budget.room(5, 0.01):
                    raise AssertionError("there was no room")
        with pytest.raises(ZeroDivisionError):
            async with budget.room(10, 60):
                raise ZeroDivisionError
        async with budget.room(10, 60):
            pass

    asyncio.run(scene())


def test_more_than_there_ever_is_is_refused_at_once() -> None:
    async def scene() -> None:
        async with Budget(10, "tests").room(11, 60):
            pass

    with pytest.raises(BodyTooLarge, match="11 bytes as tests, the limit is 10"):
        asyncio.run(scene())


def test_requests_share_the_room_for_decoded_samples(serve, detectors, monkeypatch) -> None:
    client = serve(limits={"decoded_bytes": DECODED_BYTES * CHUNK_SAMPLES * 3 // 2})
    detect_really, now, most = detectors.ensemble.detect, 0, 0

    async def counted(chunk, **options):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return await detect_really(chunk, **options)

    monkeypatch.setattr(detectors.ensemble, "detect", counted)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda seed: detect(client, tone(2, seed), deadline_ms=20_000), range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert most == 1


def test_a_chunk_without_room_is_refused(serve) -> None:
    client = serve(limits={"decoded_bytes": 1000, "stream_bytes": 1000})
    assert_problem(detect(client, tone()), 413, "body-too-large", "80,000 bytes as decoded samples")
    with client.websocket_connect("/v1/stream") as socket:
        socket.send_text('{"sample_rate_hz": 1e6, "datatype": "ci8"}')
        assert "20,000 bytes as a stream's chunk" in socket.receive_json()["problem"]["detail"]


@pytest.mark.parametrize("datatype", ["ci8", "cu8", "ci16_be", "cf64_le"])
def test_reading_takes_the_memory_of_the_decoded_samples_and_no_more(datatype) -> None:
    size = {"ci8": 2, "cu8": 2, "ci16_be": 4, "cf64_le": 16}[datatype]
    samples = 2_000_000
    body = io.BytesIO(bytes(samples * size))
    signal = bare_samples(body, IqDescription(datatype, 1e6, None), Limits())
    tracemalloc.start()
    try:
        read = signal.read(0, samples)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read.nbytes == DECODED_BYTES * samples
    assert peak < 1.6 * read.nbytes
