"""Learning rates against `torch.optim.lr_scheduler`, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch.optim import lr_scheduler

from longhaul.recipe.duration import Duration
from longhaul.recipe.schedules import ScheduleSection
from longhaul.training.schedule import build_schedule

LR = 0.3
TOTAL = 90
PER_EPOCH = 12.5
SECTION: TypeAdapter[ScheduleSection] = TypeAdapter(ScheduleSection)


def steps(duration: Duration) -> int:
    """400 samples in batches of 32: 12.5 steps an epoch."""
    return duration.steps(global_batch=32, epoch_samples=400)


def ours(section: dict[str, Any], total: int = TOTAL) -> list[float]:
    """The rates of all steps."""
    rate = build_schedule(SECTION.validate_python(section), lr=LR, total_steps=total, steps_per_epoch=PER_EPOCH, steps=steps)
    return [rate(step) for step in range(total)]


def torchs(build: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], total: int = TOTAL) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = build(optimizer)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


CASES: dict[str, tuple[dict[str, Any], Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]]] = {
    "constant": ({"name": "constant"}, lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
    "cosine": ({"name": "cosine"}, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=TOTAL)),
    "cosine to a floor": (
        {"name": "cosine", "floor": 0.05},
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=TOTAL, eta_min=LR * 0.05),
    ),
    "step": (
        {"name": "step", "every": "2 epochs", "gamma": 0.5},
        lambda o: lr_scheduler.StepLR(o, step_size=25, gamma=0.5),
    ),
    "multistep": (
        {"name": "multistep", "milestones": ["10 steps", "2 epochs", "1280 samples"], "gamma": 0.2},
        lambda o: lr_scheduler.MultiStepLR(o, milestones=[10, 25, 40], gamma=0.2),
    ),
    "exponential": (
        {"name": "exponential", "gamma": 0.7},
        lambda o: lr_scheduler.ExponentialLR(o, gamma=0.7 ** (1 / PER_EPOCH)),
    ),
    "onecycle": (
        {"name": "onecycle", "max_lr": 0.9},
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.9, total_steps=TOTAL + 1, cycle_momentum=False),
    ),
}


@pytest.mark.parametrize("name", [name for name in CASES if name != "onecycle"])
def test_rates_are_torchs(name: str) -> None:
    section, build = CASES[name]
    assert ours(section) == pytest.approx(torchs(build), rel=1e-9)


@pytest.mark.parametrize(("total", "rise"), [(90, 0.1), (90, 0.3), (91, 0.5), (7, 0.3), (7, 0.5), (3, 0.5)])
def test_one_cycle_is_torchs(total: int, rise: float) -> None:
    """torch's raises when it is stepped past its end, so its last step is left out."""
    section = {"name": "onecycle", "max_lr": 0.9, "rise": rise, "start_divisor": 20.0, "end_divisor": 500.0}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.9, total_steps=total, pct_start=rise, div_factor=20, final_div_factor=500, cycle_momentum=False
    )
    rates = []
    for step in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < total - 1:
            scheduler.step()
    assert ours(section, total) == pytest.approx(rates, rel=1e-9)


@pytest.mark.parametrize("total", [1, 2, 3])
def test_very_short_runs_have_a_rate(total: int) -> None:
    for section, _ in CASES.values():
        rates = ours(section, total)
        assert all(math.isfinite(rate) and rate >= 0 for rate in rates)


@pytest.mark.parametrize("name", [name for name in CASES if name != "onecycle"])
def test_warm_up_rises_in_a_line_to_the_full_rate(name: str) -> None:
    section, _ = CASES[name]
    plain, warm = ours(section), ours({**section, "warmup": "8 steps"})
    assert warm[0] == pytest.approx(0.01 * LR)
    assert warm[4] == pytest.approx((0.01 + 0.99 * 0.5) * plain[0 if "cosine" in name else 4])
    assert sorted(set(warm[:9])) == warm[:9]
    if "cosine" in name:  # its half wave begins behind the warm-up and still ends with the run
        assert warm[8] == LR
        length = TOTAL - 8
        floor = section.get("floor", 0.0)
        expected = [LR * (floor + (1 - floor) * (1 + math.cos(math.pi * step / length)) / 2) for step in range(length)]
        assert warm[8:] == pytest.approx(expected)
    else:
        assert warm[8:] == plain[8:]


def test_plateau_and_its_warm_up_leave_the_falls_to_the_loop() -> None:
    assert ours({"name": "plateau", "warmup": "2 steps"})[2:] == [LR] * (TOTAL - 2)


def test_a_rate_depends_on_the_step_alone() -> None:
    """Nothing to save: asked backwards it is the same."""
    for section, _ in CASES.values():
        parsed = SECTION.validate_python(section)
        rate = build_schedule(
            parsed,
            lr=LR,
            total_steps=TOTAL,
            steps_per_epoch=PER_EPOCH,
            steps=steps,
        )
        assert [rate(step) for step in reversed(range(TOTAL))] == list(reversed(ours(section)))
