"""A rank that needs far longer than the others, look after look, is named once; noise is not."""

from __future__ import annotations

import time

import torch
from torch import nn

from longhaul.training.record.busy import Busy, Stragglers


def test_a_straggler_is_named_after_three_looks_in_a_row_and_once() -> None:
    stragglers = Stragglers()
    assert [stragglers.look([0.1, 0.1, 0.3]) for _ in range(5)] == [[], [], [2], [], []]


def test_one_slow_look_names_nobody_and_starts_the_count_anew() -> None:
    stragglers = Stragglers()
    looks = [[0.1, 0.3], [0.1, 0.3], [0.1, 0.1], [0.1, 0.3], [0.1, 0.3]]
    assert [stragglers.look(look) for look in looks] == [[]] * 5


def test_a_rank_alone_is_no_straggler() -> None:
    stragglers = Stragglers()
    assert [stragglers.look([9.0]) for _ in range(4)] == [[]] * 4


def test_only_a_ranks_own_time_counts() -> None:
    """Reading and going forward; what is between (waiting for others) does not."""

    def slow(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        time.sleep(0.02)
        return torch.zeros(())

    busy = Busy(slow)
    for _ in range(4):
        busy.add(0.01)
        busy.loss(nn.Identity(), {})
        time.sleep(0.05)
    seconds = busy.take()
    assert 0.03 <= seconds < 0.08
    assert busy.take() == 0.0
