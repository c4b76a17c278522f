"""How often to save: Young/Daly's interval, from the measured cost of a save and the observed time between losses.

Too often costs saves, too rarely costs work done twice; with a loss every M seconds on average and C seconds a save, the sum is
least near sqrt(2 C M) (J. Young, 1974), refined by J. Daly, "A higher order estimate of the optimum checkpoint interval for
restart dumps", Future Generation Computer Systems 22 (2006). M is not known on day one: it begins as a prior from the number
of nodes and the monthly interruption rate published for such machines, and what the run sees takes over (the mean of a Gamma
posterior on the rate, which is what the expected cost is linear in). The optimum is flat: an M that is wrong by half costs
about 3 %. `benchmarks/cadence.py` holds it against the best fixed interval in hindsight.
"""

from __future__ import annotations

import math

from pydantic import BaseModel

_MONTH_S = 30 * 86_400.0
_SMOOTHING = 0.3


class Cadence(BaseModel):
    """What is known, and the interval that follows; it travels in every checkpoint.

    Attributes:
        nodes: how many machines can be lost.
        monthly_rate: share of machines interrupted a month, to begin with.
        prior_losses: how many observed losses the prior weighs as much as.
        least_s, most_s: bounds of the interval.
        cost_s: what a save costs training, smoothed; None before the first.
        duration_s: how long a save takes until it counts, smoothed; the next is not begun before.
        losses: losses seen.
        uptime_s: time in which they could have been seen.
    """

    nodes: int = 1
    monthly_rate: float = 0.1
    prior_losses: float = 1.0
    least_s: float = 30.0
    most_s: float = 3600.0
    cost_s: float | None = None
    duration_s: float = 0.0
    losses: int = 0
    uptime_s: float = 0.0

    def observe_save(self, cost_s: float, duration_s: float = 0.0) -> None:
        """A save has kept training waiting for `cost_s`, and counted `duration_s` after its beginning."""
        first = self.cost_s is None
        self.cost_s = cost_s if self.cost_s is None else self.cost_s + _SMOOTHING * (cost_s - self.cost_s)
        self.duration_s = duration_s if first else self.duration_s + _SMOOTHING * (duration_s - self.duration_s)

    def observe_uptime(self, seconds: float) -> None:
        """The run has gone on for `seconds` more."""
        self.uptime_s += seconds

    def observe_loss(self) -> None:
        """Work since the last save was lost."""
        self.losses += 1

    def mean_between_losses_s(self) -> float:
        """The expected time between losses, given the prior and what was seen."""
        prior_s = _MONTH_S / (-math.log1p(-min(self.monthly_rate, 0.999)) * max(self.nodes, 1))
        return (self.prior_losses * prior_s + self.uptime_s) / (self.prior_losses + self.losses)

    def interval_s(self) -> float:
        """Time to train from the end of one save's stall to the beginning of the next."""
        best_s = daly(self.cost_s or 0.0, self.mean_between_losses_s())
        return min(max(best_s, self.least_s, self.duration_s), max(self.most_s, self.duration_s))

    def decision(self) -> dict[str, float]:
        """The interval with all that it follows from, for the record."""
        return {
            "interval_s": self.interval_s(),
            "cost_s": self.cost_s or 0.0,
            "duration_s": self.duration_s,
            "mean_between_losses_s": self.mean_between_losses_s(),
            "losses": self.losses,
            "uptime_s": self.uptime_s,
        }


def daly(cost_s: float, mean_between_losses_s: float) -> float:
    """Daly's estimate of the best time to work between two saves, without the save; equation 37 of the paper."""
    if cost_s >= 2 * mean_between_losses_s:
        return mean_between_losses_s
    share = cost_s / (2 * mean_between_losses_s)
    return math.sqrt(2 * cost_s * mean_between_losses_s) * (1 + math.sqrt(share) / 3 + share / 9) - cost_s
