"""The busy share of time, by a clock that a test turns."""

from __future__ import annotations

from contextlib import ExitStack

from longhaul.serving.queueing.busy_time import BusyTime


def test_overlapping_work_counts_once_and_asking_begins_anew() -> None:
    now = [0.0]
    busy = BusyTime(lambda: now[0])
    assert busy.take() == 0.0
    with ExitStack() as first:
        first.enter_context(busy.at_work())
        now[0] = 1.0
        with busy.at_work():
            now[0] = 2.0
        now[0] = 3.0
    now[0] = 4.0
    assert busy.take() == 0.75
    now[0] = 5.0
    assert busy.take() == 0.0
    with busy.at_work():
        now[0] = 6.0
        assert busy.take() == 1.0
