"""The learning rate as a pure function of the step: nothing to save, nothing to get out of step after a resume.

The formulas are those of `torch.optim.lr_scheduler` (the tests compare them step by step); torch's own objects hold state
that would have to be saved, and want torch's own optimizers, which DeepSpeed's are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from longhaul.recipe.duration import Duration
from longhaul.recipe.schedules import (
    CosineSchedule,
    ExponentialSchedule,
    MultiStepSchedule,
    OneCycleSchedule,
    ScheduleSection,
    StepSchedule,
)

_WARMUP_START = 0.01


def build_schedule(
    section: ScheduleSection, *, lr: float, total_steps: int, steps_per_epoch: float, steps: Callable[[Duration], int]
) -> Callable[[int], float]:
    """The learning rate at each step (the first is 0), without what a plateau takes off it.

    Args:
        section: the recipe's schedule.
        lr: the optimizer's rate.
        total_steps: length of the run.
        steps_per_epoch: may be a fraction.
        steps: turns a duration into steps.
    """
    if isinstance(section, OneCycleSchedule):
        cycle = section
        return lambda step: _one_cycle(cycle, step, total_steps)
    shape = _shape(section, total_steps, steps_per_epoch, steps)
    warmup = steps(section.warmup)

    def rate(step: int) -> float:
        rise = _WARMUP_START + (1 - _WARMUP_START) * step / warmup if step < warmup else 1.0
        return lr * rise * shape(max(step - warmup, 0) if isinstance(section, CosineSchedule) else step)

    return rate


def _shape(
    section: ScheduleSection, total_steps: int, steps_per_epoch: float, steps: Callable[[Duration], int]
) -> Callable[[int], float]:
    if isinstance(section, CosineSchedule):
        floor, length = section.floor, max(total_steps - steps(section.warmup), 1)
        return lambda step: floor + (1 - floor) * (1 + math.cos(math.pi * min(step / length, 1.0))) / 2
    if isinstance(section, StepSchedule):
        gamma, every = section.gamma, max(steps(section.every), 1)
        return lambda step: gamma ** (step // every)
    if isinstance(section, MultiStepSchedule):
        milestones, factor = [steps(milestone) for milestone in section.milestones], section.gamma
        return lambda step: factor ** sum(step >= milestone for milestone in milestones)
    if isinstance(section, ExponentialSchedule):
        base = section.gamma
        return lambda step: base ** (step / steps_per_epoch)
    return lambda step: 1.0


def _one_cycle(section: OneCycleSchedule, step: int, total_steps: int) -> float:
    first = section.max_lr / section.start_divisor
    last = first / section.end_divisor
    peak = section.rise * total_steps - 1
    if step <= peak:
        return _cosine_between(first, section.max_lr, step / peak if peak > 0 else 1.0)
    return _cosine_between(section.max_lr, last, min((step - peak) / max(total_steps - 1 - peak, 1e-9), 1.0))


def _cosine_between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
