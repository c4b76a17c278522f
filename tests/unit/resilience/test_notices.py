"""When to save for a notice: at once, and once more close to the deadline where there is time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.train.v2._internal.constants import DEFAULT_PREEMPTION_DEADLINE_S

from longhaul.resilience.notices import saves_before

NOW = 1_000_000.0


@pytest.mark.parametrize(
    ("left_s", "cost_s", "expected"),
    [
        (120.0, 10.0, (NOW, NOW + 95.0)),  # 120 - (2 x 10 + 5)
        (30.0, 3.0, (NOW, NOW + 19.0)),
        (120.0, 0.0, (NOW, NOW + 115.0)),
        (120.0, 40.0, (NOW,)),  # the late one would begin at 35 s, before the first has ended
        (30.0, 9.0, (NOW,)),
        (0.0, 1.0, (NOW,)),  # no notice at all: try
        (-5.0, 1.0, (NOW,)),
    ],
)
def test_saves_at_the_notice_and_close_to_the_deadline(left_s: float, cost_s: float, expected: tuple[float, ...]) -> None:
    assert saves_before(NOW + left_s, NOW, cost_s) == expected


def test_without_a_deadline_it_is_as_long_as_ray_train_waits() -> None:
    assert saves_before(None, NOW, 10.0) == (NOW, NOW + DEFAULT_PREEMPTION_DEADLINE_S - 25.0)


@given(st.floats(-100, 10_000), st.floats(0, 1000))
def test_the_late_save_begins_after_the_first_and_ends_before_the_deadline(left_s: float, cost_s: float) -> None:
    first, *late = saves_before(NOW + left_s, NOW, cost_s)
    assert first == NOW
    for moment in late:
        assert moment > first + cost_s
        assert moment + 2 * cost_s <= NOW + left_s - 4.9
