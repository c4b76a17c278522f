"""Who is let in: nobody who would be answered too late, and always somebody while nothing is in work."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
import torch
from grid_detector import CHUNK_SAMPLES, SAMPLE_RATE_HZ

from longhaul.serving.detection.chunk import SignalChunk
from longhaul.serving.http.detectors import Detectors
from longhaul.serving.http.metrics import Metrics
from longhaul.serving.http.settings import ApiSettings
from longhaul.serving.refusals import Overloaded
from longhaul.signals.front_end import FrontEnd


def post(client):
    body = np.full(2 * CHUNK_SAMPLES, 0.1, "<f4").tobytes()
    query = {"datatype": "cf32_le", "sample_rate": SAMPLE_RATE_HZ}
    return client.post("/v1/detect", content=body, params=query, headers={"content-type": "application/octet-stream"})


def test_one_slow_spectrogram_does_not_shut_the_door_for_good(client, monkeypatch) -> None:
    make = FrontEnd.to_uint8

    def slow(self, iq):
        time.sleep(0.6)
        return make(self, iq)

    with monkeypatch.context() as while_it_lasts:
        while_it_lasts.setattr(FrontEnd, "to_uint8", slow)
        first = post(client)
    assert first.status_code == 200
    assert first.json()["degraded"]
    time.sleep(0.3)  # that spectrogram ends
    answers = [post(client) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert not answers[-1].json()["degraded"]


@pytest.fixture
def door(detectors) -> Detectors:
    return Detectors(detectors, ApiSettings(), Metrics("here", frozenset))


async def while_one_is_in_work(door: Detectors, look) -> None:
    """Call `look` while a chunk is on its way."""
    chunk = SignalChunk(torch.zeros(CHUNK_SAMPLES, dtype=torch.complex64), SAMPLE_RATE_HZ)
    request = asyncio.create_task(door.ensemble.detect(chunk))
    await asyncio.sleep(0)
    look()
    await request


def forecasting(monkeypatch, door: Detectors, **seconds: float) -> None:
    """Let members forecast so; the merging margin comes on top."""
    monkeypatch.setattr(door.ensemble, "_forecast_s", lambda member: seconds[member.name])


def test_the_soonest_wanted_member_decides(door, monkeypatch) -> None:
    forecasting(monkeypatch, door, grid=0.9, wide=0.1)

    def look() -> None:
        door.admit(0.4, None)
        door.admit(0.4, frozenset({"wide", "grid"}))
        with pytest.raises(Overloaded) as refused:
            door.admit(0.4, frozenset({"grid"}))
        assert refused.value.retry_after_s == pytest.approx(0.5)
        door.admit(2.0, frozenset({"grid"}))

    asyncio.run(while_one_is_in_work(door, look))
    door.admit(0.4, frozenset({"grid"}))  # nothing is in work


def test_an_answer_too_close_to_the_deadline_leaves_no_room_for_the_others(door, monkeypatch) -> None:
    forecasting(monkeypatch, door, grid=0.35, wide=0.36)

    def look() -> None:
        with pytest.raises(Overloaded, match=r"0\.35 s") as refused:
            door.admit(0.4)
        assert refused.value.retry_after_s == pytest.approx(0.1)
        door.admit(0.5)

    asyncio.run(while_one_is_in_work(door, look))
