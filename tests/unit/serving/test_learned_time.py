"""How long things take, learned: hiccups are forgotten, changes are not, and no wrong belief keeps itself alive."""

from __future__ import annotations

import numpy as np
import pytest

from longhaul.serving.queueing.learned_time import BatchTimes, LearnedTime


def test_a_coarse_clock_is_seen_through() -> None:
    times, now, rng = LearnedTime(), 0.0, np.random.default_rng(0)
    for _ in range(500):  # 0.2 ms each, by a clock of whole milliseconds
        now += rng.uniform(0.00005, 0.00015)
        end = now + 0.0002
        times.add((int(end * 1e3) - int(now * 1e3)) / 1e3)
        now = end
    assert 0.0001 < times.bound_s < 0.004
    for _ in range(20):
        times.add(0.02)
    assert times.bound_s > 0.02


def test_one_hiccup_does_not_spoil_what_was_learned_and_a_lasting_change_is_learned() -> None:
    times = LearnedTime()
    for _ in range(30):
        times.add(0.01)
    assert times.bound_s < 0.011
    times.add(10.0)
    assert times.seconds < 0.02
    for _ in range(40):
        times.add(0.5)
    assert times.seconds == pytest.approx(0.5, rel=0.01)


def test_sizes_that_were_not_seen_lie_between_those_that_were() -> None:
    times = BatchTimes()
    assert times.seconds(4) == 0
    times.add(2, 0.2)
    times.add(6, 0.4)
    assert [round(times.seconds(size), 9) for size in (1, 2, 4, 6, 12)] == [0.2, 0.2, 0.3, 0.4, 0.8]


def test_no_size_takes_longer_than_a_smaller_one_repeated() -> None:
    times = BatchTimes()
    times.add(1, 0.05)
    times.add(4, 1.0)
    assert [round(times.seconds(size), 9) for size in (1, 2, 4, 8)] == [0.05, 0.1, 0.2, 0.4]


def test_what_was_not_seen_for_long_does_not_stand_against_what_is_newer() -> None:
    times = BatchTimes()
    times.add(1, 0.05)
    times.add(8, 0.09)
    for _ in range(100):
        times.add(1, 0.05)
    assert times.seconds(8) == pytest.approx(0.09)  # nothing speaks against it
    for _ in range(100):
        times.add(1, 0.5)  # the engine is slower now: 8 do not take less
    assert times.seconds(8) == pytest.approx(4.0)
    for _ in range(100):
        times.add(8, 0.09)  # and quick again
    assert times.seconds(1) == pytest.approx(0.09)
