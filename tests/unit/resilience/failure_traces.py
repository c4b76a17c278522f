"""Failure traces lived through with the cadence and with fixed intervals: a second simulation, written apart from the planner's.

Lost is what is not training that counts: stalls, and work done twice. A save counts some time after its stall; a loss goes
back to the newest that counts, and forgets what the cadence learnt since, as in a run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from longhaul.resilience.cadence import Cadence

Array = NDArray[np.float64]
HOUR_S, DAY_S = 3600.0, 86_400.0
RUN_S = 30 * DAY_S
_NOISE = 0.2  # standard deviation of the logarithm of a save's stall


@dataclass(frozen=True)
class Environment:
    """Where a run lives.

    Attributes:
        mean_s: mean time between losses.
        stall_s: what a save costs training.
        counts_s: how long after its stall a save counts.
        shape: of the Weibull distribution of the gaps; 1 is memoryless, below 1 losses come in bursts.
    """

    mean_s: float
    stall_s: float
    counts_s: float = 10.0
    shape: float = 1.0


@dataclass
class Cadences:
    """Many `Cadence`s at once, in arrays; the names are those of `Cadence`."""

    prior_s: float
    count: int
    one: Cadence = field(default_factory=Cadence)

    def __post_init__(self) -> None:
        self.cost_s = np.full(self.count, np.nan)
        self.losses = np.zeros(self.count)
        self.uptime_s = np.zeros(self.count)

    def observe_save(self, cost_s: Array, where: NDArray[np.bool_]) -> None:
        """Saves of those `where`."""
        smoothed = np.where(np.isnan(self.cost_s), cost_s, self.cost_s + 0.3 * (cost_s - self.cost_s))
        self.cost_s = np.where(where, smoothed, self.cost_s)

    def interval_s(self) -> Array:
        """Of each."""
        weight = self.one.prior_losses
        mean = (weight * self.prior_s + self.uptime_s) / (weight + self.losses)
        cost = np.nan_to_num(self.cost_s)
        share = cost / (2 * mean)
        best = np.where(
            cost >= 2 * mean, mean, np.sqrt(2 * cost * mean) * (1 + np.sqrt(share) / 3 + share / 9) - cost
        )  # fmt: skip
        return np.asarray(np.clip(best, self.one.least_s, self.one.most_s))

    def copy(self) -> tuple[Array, Array, Array]:
        """What a checkpoint keeps of it."""
        return self.cost_s, self.losses, self.uptime_s


def gaps(random: np.random.Generator, environment: Environment, shape: tuple[int, ...]) -> Array:
    """Times from a start to the next loss."""
    if environment.shape == 1.0:
        return random.exponential(environment.mean_s, shape)
    scale = environment.mean_s / math.gamma(1 + 1 / environment.shape)
    return np.asarray(scale * random.weibull(environment.shape, shape))


def traces(environment: Environment, count: int, length_s: float, seed: int) -> Array:
    """Gaps between losses, `(count, losses)`; each row covers more than `length_s`."""
    random = np.random.default_rng(seed)
    most = length_s / environment.mean_s
    table = gaps(random, environment, (count, int(most + 8 * np.sqrt(most) + 12)))
    while table.sum(axis=1).min() < length_s:
        table = np.concatenate([table, gaps(random, environment, table.shape)], axis=1)
    return table


def lost_fixed(environment: Environment, table: Array, length_s: float, interval_s: float) -> float:
    """Seconds lost in all traces together with one fixed interval; in closed form, as every cycle is the same."""
    ends = np.minimum(np.cumsum(table, axis=1), length_s)
    uptimes = np.diff(ends, axis=1, prepend=0.0)  # restarts take no time, for both
    failed = np.cumsum(table, axis=1) < length_s
    cycle = interval_s + environment.stall_s
    counting = np.maximum(np.floor((uptimes - environment.counts_s) / cycle), 0.0)
    lost = np.where(failed, uptimes - counting * interval_s, 0.0).sum()
    last = np.where(failed, 0.0, uptimes)
    stalls = np.floor(last / cycle) * environment.stall_s + np.maximum(last % cycle - interval_s, 0.0)
    return float(lost + stalls.sum())


def best_fixed(environment: Environment, table: Array, length_s: float) -> tuple[float, float]:
    """The best fixed interval for these traces, and what it loses: a coarse search, then a fine one around its best."""
    grid = np.geomspace(max(10.0, environment.counts_s), 86_400.0, 40)
    for _ in range(2):
        lost = [lost_fixed(environment, table, length_s, interval) for interval in grid]
        best = int(np.argmin(lost))
        found = float(grid[best]), lost[best]
        grid = np.geomspace(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)], 20)
    return found


def lost_adaptive(environment: Environment, table: Array, length_s: float, cadences: Cadences, seed: int) -> float:
    """Seconds lost in all traces together under the self-tuning cadence, one cycle of every trace at a time."""
    random, count = np.random.default_rng(seed), len(table)
    at, work, column = np.zeros(count), np.zeros(count), np.zeros(count, dtype=int)
    rows = np.arange(count)
    fails_in = table[rows, column]
    cadences.observe_save(np.full(count, environment.stall_s), np.full(count, True))  # the one at step 0
    pending = counted = (work, *cadences.copy())
    while (at < length_s).any():
        interval = cadences.interval_s()
        stall = environment.stall_s * random.lognormal(-(_NOISE**2) / 2, _NOISE, count)
        left = length_s - at
        length = np.minimum(interval + stall, left)
        fails = (fails_in < length) & (left > 0)
        goes_on = ~fails & (interval + stall <= left) & (left > 0)
        work_then = work + np.minimum(interval, left)
        # A save under way when the loss comes does not count; the one before it does.
        back = [np.where(fails_in < environment.counts_s, old, new) for old, new in zip(counted, pending, strict=True)]
        saved = (work_then, *cadences.copy())
        elapsed = np.where(fails, fails_in, length)
        at = at + elapsed
        cadences.observe_save(stall, goes_on)
        cadences.uptime_s = cadences.uptime_s + elapsed
        work = np.where(fails, back[0], np.where(left > 0, work_then, work))
        cadences.cost_s = np.where(fails, back[1], cadences.cost_s)
        cadences.losses = np.where(fails, back[2] + 1, cadences.losses)
        cadences.uptime_s = np.where(fails, back[3], cadences.uptime_s)
        counted = tuple(np.where(fails, b, np.where(goes_on, p, c)) for b, p, c in zip(back, pending, counted, strict=True))
        pending = tuple(np.where(fails, b, np.where(goes_on, s, p)) for b, s, p in zip(back, saved, pending, strict=True))
        column = column + fails
        fails_in = np.where(fails, table[rows, np.minimum(column, table.shape[1] - 1)], fails_in - elapsed)
    return float((length_s - work).sum())


def ratio(environment: Environment, prior: float, count: int, days: float, seed: int = 0) -> tuple[float, float, float]:
    """Lost under the cadence over lost under the best fixed interval; both as shares of the time follow.

    Args:
        environment: where.
        prior: the prior's mean time between losses, in units of the true one.
        count: of traces.
        days: length of a run.
        seed: of the traces.
    """
    length_s = days * DAY_S
    table = traces(environment, count, length_s, seed)
    _, best = best_fixed(environment, table, length_s)
    lost = lost_adaptive(environment, table, length_s, Cadences(prior * environment.mean_s, count), seed + 1)
    return lost / best, lost / (length_s * count), best / (length_s * count)
