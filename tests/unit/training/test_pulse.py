"""When all ranks look, and what they then know alike; a notice asks for saves in time."""

from __future__ import annotations

import itertools

import pytest
import torch

from longhaul.resilience.notices import Notice
from longhaul.training import pulse as module
from longhaul.training.pulse import News, Pulse
from longhaul.training.ranks import Ranks
from longhaul.training.record.busy import Busy

ALONE = Ranks(0, 1, torch.device("cpu"))


class Clock:
    """Stands for `time`: moves only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def beat(pulse: Pulse, step: int, *, save: bool = False, cost_s: float = 2.0) -> News:
    return pulse.beat(step, ("none", ""), Busy(lambda model, batch: torch.zeros(())), None, save=save, cost_s=cost_s)


def test_looks_are_about_so_many_seconds_apart_whatever_a_step_takes(clock: Clock) -> None:
    pulse, looked = Pulse(ALONE, every_s=2.0), []
    for step in range(1, 2001):
        clock.now += 0.01 if step < 1000 else 0.2
        if pulse.due(step):
            beat(pulse, step)
            looked.append(clock.now)
    gaps = [after - before for before, after in itertools.pairwise(looked)]
    assert looked[0] == pytest.approx(1000.01)
    assert all(gap == pytest.approx(2.0, rel=0.15) for gap in gaps[2:4])
    assert all(gap == pytest.approx(2.0, rel=0.15) for gap in gaps[-3:])
    assert max(gaps) < 45  # the one look that was planned at a hundredth of a second a step


def test_a_notice_asks_for_a_save_at_once_and_one_before_the_deadline(clock: Clock) -> None:
    pulse = Pulse(ALONE, every_s=1.0, notice=lambda: Notice(deadline_s=1120.0, ranks=(1,)))
    saves = []
    for step in range(1, 140):
        news = beat(pulse, step, cost_s=2.0 + 0.1 * len(saves))  # each save has taken a little longer
        if news.save:
            assert news.urgent
            saves.append(clock.now)
        clock.now += 1.0
    assert saves == [1000.0, 1111.0]  # 120 s after the notice, less two saves of about 2 s and 5 s


def test_without_a_notice_the_cadence_decides_and_nothing_is_urgent(clock: Clock) -> None:
    pulse = Pulse(ALONE, every_s=1.0, notice=lambda: None)
    assert (beat(pulse, 1).save, beat(pulse, 2, save=True).save, beat(pulse, 3, save=True).urgent) == (False, True, False)


def test_a_second_notice_is_answered_as_the_first(clock: Clock) -> None:
    notices = [Notice(1120.0, (0,)), None, Notice(1500.0, (1,))]
    pulse = Pulse(ALONE, every_s=1.0, notice=lambda: notices.pop(0))
    saves = []
    for step in range(3):
        saves.append(beat(pulse, step).save)
        clock.now += 1.0
    assert saves == [True, False, True]


def test_after_a_rollback_the_looks_go_on_at_once(clock: Clock) -> None:
    pulse = Pulse(ALONE, every_s=2.0)
    for step in range(1, 1001):
        clock.now += 0.01
        if pulse.due(step):
            beat(pulse, step)
    assert pulse.due(400)  # not only once the replay is where it was
    beat(pulse, 400)
    assert not pulse.due(400)
