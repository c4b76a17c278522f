"""Random states: decided by numbers, and the same again after a trip through a file."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from longhaul.training.checkpoints.randomness import random_state, restore_random_state, seed_everything


def draw() -> tuple[list[float], list[float], list[float]]:
    """Gaussians too: numpy and Python keep the second of each pair for later."""
    return (
        torch.rand(3).tolist(),
        [*np.random.rand(3), np.random.randn()],
        [random.random(), random.gauss(0, 1)],
    )


def test_states_survive_a_file_read_without_running_code(tmp_path: Path) -> None:
    for warm_up in range(4):
        seed_everything(3, 1)
        for _ in range(warm_up):
            draw()
        torch.save(random_state(), tmp_path / "state.pt")
        expected = [draw(), draw()]
        seed_everything(99)
        draw()
        restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
        assert [draw(), draw()] == expected


def test_taking_a_state_changes_nothing() -> None:
    seed_everything(5)
    expected = draw()
    seed_everything(5)
    random_state()
    assert draw() == expected


def test_seeds_differ_by_every_part() -> None:
    drawn = []
    for parts in ((0,), (0, 0), (0, 1), (1, 0), (10,), (1, 0, 0)):
        seed_everything(*parts)
        drawn.append(draw())
    assert len({one[0][0] for one in drawn}) == len({one[1][0] for one in drawn}) == len({one[2][0] for one in drawn}) == 6
    seed_everything(0)
    assert draw() == drawn[0]
