"""The ensemble under load: who is left out and tried again, what counts as a miss, and what admission is told."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import ValidationError
from still_members import Still, ensemble_of, signal, told, wayward
from virtual_clock import run_virtually

from longhaul.serving.detection.ensemble import EnsembleSettings, Member, SheddingSettings
from longhaul.serving.refusals import UnknownModel


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_value_is_more_than_nothing(value) -> None:
    with pytest.raises(ValidationError, match="values"):
        EnsembleSettings(values={"a": value})


SHEDDING = EnsembleSettings(shedding=SheddingSettings(window_s=10, least_answers=8, wait_s=15))


def test_under_lasting_misses_the_dear_member_is_shed_and_tried_again_when_it_is_well() -> None:
    dear, cheap = Still(delay_s=1.0), Still()
    dear.seconds_per_sample, dear.expected = 0.5, 1.0

    async def scenario() -> None:
        one = ensemble_of(SHEDDING, dear=dear, cheap=cheap)
        for _ in range(8):
            assert told(await one.detect(signal())) == {"dear": "late", "cheap": "on_time"}
        answer = await one.detect(signal())
        assert told(answer) == {"dear": "shed", "cheap": "on_time"}
        assert answer.degraded
        assert {state.name: state.shed for state in one.states()} == {"dear": True, "cheap": False}
        assert one.forecast_s() < 0.1
        await asyncio.sleep(30)
        assert told(await one.detect(signal()))["dear"] == "shed"  # its forecast is still too long
        dear.delay_s, dear.expected = 0.05, 0.05
        assert told(await one.detect(signal()))["dear"] == "on_time"

    run_virtually(scenario)


def test_another_version_of_a_shed_member_is_asked_at_once() -> None:
    dear = Still(delay_s=1.0)
    dear.seconds_per_sample = 0.5

    async def scenario() -> None:
        one = ensemble_of(SHEDDING, dear=dear, cheap=Still())
        for _ in range(9):
            answer = await one.detect(signal())
        assert told(answer)["dear"] == "shed"
        one.replace(Member("dear", "2", ("dear",), Still()))
        assert told(await one.detect(signal()))["dear"] == "on_time"

    run_virtually(scenario)


def test_value_saves_a_dear_member_and_the_settings_say_what_it_is_worth() -> None:
    dear, cheap = Still(delay_s=1.0), Still()
    dear.seconds_per_sample = 0.5

    async def scenario() -> str:
        one = ensemble_of(SHEDDING.model_copy(update={"values": {"dear": 1000.0}}), dear=dear, cheap=cheap)
        for _ in range(9):
            answer = await one.detect(signal())
        return told(answer)["cheap"]

    assert run_virtually(scenario) == "shed"


def test_requests_with_less_time_than_is_promised_shed_nobody() -> None:
    async def scenario() -> dict[str, str]:
        one = ensemble_of(SHEDDING, a=Still(delay_s=0.1), b=Still(delay_s=0.1))
        for _ in range(100):
            await one.detect(signal(), deadline_s=0.05)
            await asyncio.sleep(0.05)
        return told(await one.detect(signal()))

    assert run_virtually(scenario) == {"a": "on_time", "b": "on_time"}


def test_late_tiles_are_nobodys_miss() -> None:
    async def scenario() -> list[bool]:
        one = ensemble_of(SHEDDING, tiles=wayward(take_s=1.0), a=Still(), b=Still())
        for _ in range(20):
            assert set(told(await one.detect(signal())).values()) == {"late"}
        return [state.shed for state in one.states()]

    assert run_virtually(scenario) == [False, False]


def test_a_shed_member_comes_back_only_with_a_request_that_wants_it() -> None:
    dear, cheap = Still(delay_s=1.0), Still()
    dear.seconds_per_sample = 0.5

    async def scenario() -> None:
        one = ensemble_of(SHEDDING, dear=dear, cheap=cheap)
        for _ in range(9):
            await one.detect(signal())
        await asyncio.sleep(100)
        dear.delay_s = 0.01
        await one.detect(signal(), models=["cheap"])
        assert [state.shed for state in one.states()] == [True, False]
        assert told(await one.detect(signal())) == {"dear": "on_time", "cheap": "on_time"}

    run_virtually(scenario)


def test_the_forecast_is_the_soonest_wanted_member_behind_the_front_end_and_0_while_nothing_is_in_work() -> None:
    async def scenario() -> None:
        slow, quick = Still(delay_s=0.1), Still()
        slow.expected, quick.expected = 0.3, 0.1
        one = ensemble_of(tiles=wayward(take_s=0.05), slow=slow, quick=quick)
        assert one.forecast_s() == 0
        await one.detect(signal())
        assert one.forecast_s() == 0
        request = asyncio.create_task(one.detect(signal()))
        await asyncio.sleep(0.1)  # its tiles are made
        assert one.forecast_s() == pytest.approx(0.152)
        assert one.forecast_s(["slow"]) == pytest.approx(0.352)
        assert one.forecast_s({"slow", "quick"}) == pytest.approx(0.152)
        with pytest.raises(UnknownModel):
            one.forecast_s(["nobody"])
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        assert one.forecast_s() == 0

    run_virtually(scenario)


def test_a_request_for_shed_members_alone_is_answered_at_once_and_has_a_forecast() -> None:
    dear = Still(delay_s=1.0)
    dear.seconds_per_sample, dear.expected = 0.5, 1.0

    async def scenario() -> None:
        one = ensemble_of(SHEDDING, dear=dear, cheap=Still(delay_s=0.1))
        for _ in range(9):
            await one.detect(signal())
        request = asyncio.create_task(one.detect(signal()))
        await asyncio.sleep(0.05)
        assert one.forecast_s(["dear"]) == 0
        assert told(await one.detect(signal(), models=["dear"])) == {"dear": "shed"}
        await request

    run_virtually(scenario)


def test_a_member_that_alone_is_too_slow_refuses_nobody_and_is_shed() -> None:
    slow, quick = Still(delay_s=1.0), Still()
    slow.seconds_per_sample, slow.expected = 0.5, 1.0
    forecasts: list[float] = []

    async def scenario() -> list[bool]:
        one = ensemble_of(SHEDDING, slow=slow, quick=quick)
        async with asyncio.TaskGroup() as group:
            for _ in range(60):
                forecasts.append(one.forecast_s())
                group.create_task(one.detect(signal()))
                await asyncio.sleep(0.05)
        return [state.shed for state in one.states()]

    assert run_virtually(scenario) == [True, False]
    assert max(forecasts) < 0.1
