"""The schedule of a drill is decided by its seed, has every kind in it, and puts each where the run can be compared."""

from __future__ import annotations

import pytest

from longhaul.data.order import SampleOrder
from longhaul.drill.faults import KINDS, Fault, schedule, steps_for
from longhaul.errors import UserError

ORDER = SampleOrder(1149, "digits", 7)


def _schedule(seed: int, count: int, steps: int | None = None) -> list[Fault]:
    return schedule(seed, count, KINDS, ORDER, steps=steps or steps_for(count), batch=64, ranks=2)


def test_the_same_seed_gives_the_same_schedule() -> None:
    assert _schedule(1, 20) == _schedule(1, 20)
    assert _schedule(1, 20) != _schedule(2, 20)


@pytest.mark.parametrize("seed", range(10))
def test_with_as_many_faults_as_kinds_every_kind_occurs(seed: int) -> None:
    assert {fault.kind for fault in _schedule(seed, len(KINDS))} == set(KINDS)
    assert {fault.kind for fault in _schedule(seed, 20)} == set(KINDS)


@pytest.mark.parametrize("seed", range(10))
def test_faults_come_one_after_another_with_room_to_recover_behind_the_last(seed: int) -> None:
    faults = _schedule(seed, 20)
    steps = [fault.step for fault in faults]
    assert steps == sorted(set(steps))
    assert [fault.number for fault in faults] == list(range(1, 21))
    assert steps[0] >= 5
    assert steps[-1] + 10 <= steps_for(20)
    assert {fault.rank for fault in faults} == {0, 1}


@pytest.mark.parametrize("seed", range(10))
def test_the_poisoned_sample_comes_in_its_step_and_in_none_before(seed: int) -> None:
    poisoned = next(fault for fault in _schedule(seed, 20) if fault.kind == "poisoned-sample")
    seen = [ORDER.take(step * 64, 64).indices.tolist() for step in range(poisoned.step + 1)]
    assert poisoned.sample in seen[-1]
    assert all(poisoned.sample not in batch for batch in seen[:-1])


def test_what_can_happen_only_once_is_not_drawn_again() -> None:
    kinds = [fault.kind for fault in _schedule(1, 200)]
    assert kinds.count("poisoned-sample") == kinds.count("out-of-memory") == 1
    assert kinds[-1] == "out-of-memory"


def test_more_faults_than_the_run_has_room_for_are_refused() -> None:
    with pytest.raises(UserError, match=r"20 faults do not fit into 100 steps.*training.steps=135"):
        _schedule(1, 20, steps=100)
    assert len(_schedule(1, 20, steps=135)) == 20
