"""Patience against torch's ReduceLROnPlateau, and what a resume needs of it."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch

from longhaul.training.patience import Patience
from longhaul.training.progress import Progress


@pytest.mark.parametrize("direction", ["max", "min"])
@pytest.mark.parametrize("patience", [1, 2, 5])
@pytest.mark.parametrize("min_delta", [0.0, 0.3])
def test_it_runs_out_when_torchs_plateau_lowers_the_rate(
    direction: Literal["max", "min"], patience: int, min_delta: float
) -> None:
    """torch falls at the miss after `patience`, ours at the `patience`-th: one apart."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode=direction, factor=0.99, patience=patience - 1, threshold=min_delta, threshold_mode="abs", eps=0.0
    )
    ours = Patience(patience=patience, direction=direction, min_delta=min_delta)
    draws, falls, rate = np.random.default_rng(patience), 0, 1.0
    for step in range(300):
        value = float(draws.integers(0, 40)) / 4 + (step if direction == "max" else -step) / 40
        torchs.step(value)
        fell = optimizer.param_groups[0]["lr"] < rate
        rate = optimizer.param_groups[0]["lr"]
        assert ours.update(value) == fell
        falls += fell
    assert 3 < falls < 290


def test_it_counts_misses_in_a_row() -> None:
    patience = Patience(patience=2, direction="max", min_delta=0.1)
    assert [patience.update(v) for v in (0.5, 0.55, 0.61, 0.65, 0.7)] == [False, False, False, False, True]
    assert (patience.best, patience.misses) == (0.61, 0)


@pytest.mark.parametrize("direction", ["max", "min"])
def test_nan_is_a_miss_and_never_the_best(direction: Literal["max", "min"]) -> None:
    patience = Patience(patience=2, direction=direction)
    assert not patience.update(math.nan)
    assert patience.best is None
    assert not patience.update(1.0)
    assert patience.update(math.nan) is False
    assert patience.update(math.nan) is True
    assert patience.best == 1.0


def test_it_goes_on_from_a_checkpoint() -> None:
    """As part of `Progress`, through JSON, in the middle of its count."""
    values = [0.1, 0.3, 0.2, 0.2, 0.25, 0.4, 0.1, 0.1, 0.1]
    straight = Patience(patience=3, direction="max")
    expected = [straight.update(value) for value in values]
    resumed, got = Progress(early=Patience(patience=3, direction="max")), []
    for value in values:
        resumed = Progress.model_validate_json(resumed.model_dump_json())
        assert resumed.early is not None
        got.append(resumed.early.update(value))
    assert got == expected
    assert True in expected
