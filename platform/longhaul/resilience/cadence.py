"""How often to save: Young/Daly's interval, from the measured cost of a save and the observed time between losses.

Too often costs saves, too rarely costs work done twice; with a loss every M seconds on average and C seconds a save, the sum is
least near sqrt(2 C M) (J. Young, 1974), refined by J. Daly, "A higher order estimate of the optimum checkpoint interval for
restart dumps", Future Generation Computer Systems 22 (2006). M is not known on day one: it begins as a prior from the number
of nodes and the monthly interruption rate published for such machines, and what the run sees takes over (the mean of a Gamma
posterior on the rate). The optimum is flat: an M that is wrong by half costs about 3 %.
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
        losses: losses seen.
        uptime_s: time in which they could have been seen.
    """

    nodes: int = 1
    monthly_rate: float = 0.1
    prior_losses: float = 1.0
    least_s: float = 30.0
    most_s: float = 3600.0
    cost_s: float | None = None
    losses: int = 0
    uptime_s: float = 0.0

    def observe_save(self, cost_s: float) -> None:
        """A save has kept training waiting for `cost_s`."""
        self.cost_s = cost_s if self.cost_s is None else self.cost_s + _SMOOTHING * (cost_s - self.cost_s)

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
        """Time from one save to the next."""
        return min(max(daly(self.cost_s or 0.0, self.mean_between_losses_s()), self.least_s), self.most_s)

    def decision(self) -> dict[str, float]:
        """The interval with all that it follows from, for the record."""
        return {
            "interval_s": self.interval_s(),
            "cost_s": self.cost_s or 0.0,
            "mean_between_losses_s": self.mean_between_losses_s(),
            "losses": self.losses,
            "uptime_s": self.uptime_s,
        }


def daly(cost_s: float, mean_between_losses_s: float) -> float:
    """Daly's estimate of the best time from one save to the next, `cost_s` included; equation 37 of the paper."""
    if cost_s >= 2 * mean_between_losses_s:
        return mean_between_losses_s
    share = cost_s / (2 * mean_between_losses_s)
    return math.sqrt(2 * cost_s * mean_between_losses_s) * (1 + math.sqrt(share) / 3 + share / 9)
