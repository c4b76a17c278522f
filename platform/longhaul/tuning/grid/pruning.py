"""The chance that a cell not trained yet wins its grid, from what is measured: what cost-aware pruning decides by.

A model is a cell's coordinates but `along`; a value is one of `along`. Two looks at a model and a dearer value:

* Rank: the model's normal score (Blom, 1958) among those measured at the cheaper value carries over by Spearman's correlation of
  the models that both values have measured - by the lower bound of its confidence interval (Fisher's z, with the variance
  1.06 / (n - 3) of Fieller, Hartley and Pearson, 1957). Given their normal scores, models are independent Gaussians at the
  dearer value; the chance is that this one comes out above all that were trained there. It needs no scores, ranks alone.
* Trend: how much models gain from the cheaper to the dearer value, as a straight line of their score there, fitted by least
  squares. The chance is that the model's predicted score (Student's t, n - 2 degrees of freedom) lies above the best of the
  whole grid. A gain that shrinks or turns into a loss shows here, and may rule out a value as a whole. A line and not the mean
  gain, because promising models are trained first: what is lucky at the cheaper value gains less, and a line in the
  score is not led astray by choosing models by that score.

The smaller of the two counts; `grid_planner` compares the sum over all that is left out with the risk, which bounds the chance
that the winner is among them however the cells hang together. Assumed: scores scatter about the line alike everywhere; where
nothing is measured at a value yet, the step below stands in: the next one gains no more, scatters at most twice as much, and
keeps ranks as well. That taking the smaller of two chances, again after every result, does no harm, and what happens where an
assumption does not hold, `benchmarks/pruning_replay.py` shows.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special, stats

_CONFIDENCE = 0.9  # one-sided, of the rank correlation's lower bound
_LEAST_SHARE = (
    1e-3  # of the scores' range: the least deviation from a line; scores are counts of right answers, and may fit by chance
)
_STAND_IN = 2.0  # a step that nobody has taken scatters at most so many times as much as the one below it
_NODES = 96  # of the quadrature: the closed form for one rival is met to 1e-6
_LEAST_FOR_RANKS = 4  # Fisher's z has no variance below
LEAST_COMMON = 3
"""Two values with fewer models in common say nothing of each other."""


@dataclass(frozen=True)
class Measured:
    """What training a model at a value has given.

    Attributes:
        score: the goal's best, turned so that more is better.
        whole: trained to its end. One that was stopped early counts by what it had reached: among ranks, as those that are
            stopped are the worse ones; not in the trend, where half a training against a whole one is no gain.
    """

    score: float
    whole: bool = True


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of `count` models between two values (their places along), and its lower bound."""

    cheaper: int
    dearer: int
    found: float
    least: float
    count: int


@dataclass(frozen=True)
class Chance:
    """The chance of a cell to win, at most 1, and the evidence that makes it so small, in words; `None` where there is none."""

    value: float
    evidence: str | None = None


Floats = npt.NDArray[np.float64]
Row = Mapping[int, Measured]
"""What is measured of one model, by the place of the value along."""


class Evidence:
    """What is measured of a grid.

    Args:
        models: one row a model.
        names: the values' names for texts, cheapest first, such as `["32 px", "64 px"]`.
        least_common: so many models must be measured at both of two values before they are compared.
        lower_is_better: the scores were turned round; texts turn them back.
    """

    def __init__(
        self, models: Mapping[Hashable, Row], names: Sequence[str], least_common: int, *, lower_is_better: bool = False
    ) -> None:
        self._models, self._names, self._least_common = models, names, least_common
        self._sign = -1 if lower_is_better else 1
        self._fitted: dict[tuple[int, int], Line | None] = {}
        self._scores: dict[int, dict[Hashable, float]] = {}
        self._correlations: dict[tuple[int, int], Correlation | None] = {}
        scores = [measured.score for row in models.values() for measured in row.values()]
        self._best = max(scores, default=-math.inf)

    def chance(self, model: Hashable, at: int) -> Chance:
        """The chance that `model` wins the grid at the value `at`; 1 where nothing can be said."""
        below = [place for place in self._models[model] if place < at]
        if not below:
            return Chance(1.0)
        looks = [self._by_rank(model, max(below), at), self._by_trend(model, max(below), at)]
        return min(looks, key=lambda look: look.value)

    def promise(self, model: Hashable, before: int) -> tuple[int, float]:
        """What models are sorted by at a dear value: the score at the nearest cheaper value, nearer values first."""
        below = [place for place in self._models[model] if place < before]
        return (max(below), self._models[model][max(below)].score) if below else (-1, -math.inf)

    def correlation(self, cheaper: int, dearer: int) -> Correlation | None:
        """Between two values; None where too few models are measured at both."""
        if (cheaper, dearer) not in self._correlations:
            self._correlations[cheaper, dearer] = self._correlate(cheaper, dearer)
        return self._correlations[cheaper, dearer]

    def _correlate(self, cheaper: int, dearer: int) -> Correlation | None:
        pairs = self._pairs(cheaper, dearer, whole=False)
        if len(pairs) < max(self._least_common, _LEAST_FOR_RANKS):
            return None
        first, second = zip(*pairs, strict=True)
        if len(set(first)) == 1 or len(set(second)) == 1:
            return None
        found = float(stats.spearmanr(first, second).statistic)
        return Correlation(cheaper, dearer, found, lower_bound(found, len(pairs)), len(pairs))

    def _by_rank(self, model: Hashable, cheaper: int, at: int) -> Chance:
        """Against those trained at `at` whose ranks at `cheaper` are known."""
        rivals = [name for name, row in self._models.items() if cheaper in row and at in row]
        steps = self._steps(cheaper, at)
        if not rivals or any(step.least <= 0 for step in steps) or not steps:
            return Chance(1.0)  # that order carries over at all is not established
        score = self._normal_scores(cheaper)
        # A weak correlation favours who was bad before, a strong one who was good: the larger chance counts.
        carried = (math.prod(step.least for step in steps), math.prod(_short_of_one(step.found, step.count) for step in steps))
        chance = max(chance_above_all(score[model], [score[rival] for rival in rivals], one) for one in carried)
        place = 1 + sum(other > score[model] for other in score.values())
        told = ", ".join(f"{self._span(step)} at least {step.least:.2f} (n={step.count})" for step in dict.fromkeys(steps))
        return Chance(chance, f"rank {place} of {len(score)} at {self._names[cheaper]}, rank correlation {told}")

    def _normal_scores(self, place: int) -> dict[Hashable, float]:
        """Of all models measured at a value."""
        if place not in self._scores:
            scores = {model: row[place].score for model, row in self._models.items() if place in row}
            self._scores[place] = dict(zip(scores, normal_scores(list(scores.values())), strict=True))
        return self._scores[place]

    def _steps(self, cheaper: int, dearer: int) -> list[Correlation]:
        """The correlation between two values; else of the steps between, each of its own or the nearest below it; [] if none."""
        direct = self.correlation(cheaper, dearer)
        if direct is not None:
            return [direct]
        steps = []
        for place in range(cheaper, dearer):
            tried = (self.correlation(lower, lower + 1) for lower in range(place, -1, -1))
            step = next((found for found in tried if found is not None), None)
            if step is None:
                return []
            steps.append(step)
        return steps

    def _by_trend(self, model: Hashable, cheaper: int, at: int) -> Chance:
        """Against the best of the whole grid."""
        known = self._models[model][cheaper]
        lines = self._lines(cheaper, at)
        if not known.whole or not lines:
            return Chance(1.0)
        mean, deviation = known.score, 0.0
        for _, line, factor in lines:  # what is not sure about one step comes out of the next one times its slope
            mean, own = line.at(mean)
            deviation = math.hypot(line.slope * deviation, factor * own)
        freedom = min(line.count for _, line, _ in lines) - 2
        chance = float(special.stdtr(freedom, (mean - self._best) / deviation))
        steps = ", ".join(f"{self._names[a]} -> {self._names[b]} (n={line.count})" for (a, b), line, _ in dict.fromkeys(lines))
        expected = f"{self._sign * mean:.4g} +- {deviation:.2g} expected by the gains {steps}"
        return Chance(chance, f"{expected}, best so far {self._sign * self._best:.4g}")

    def _lines(self, cheaper: int, at: int) -> list[tuple[tuple[int, int], Line, float]]:
        """The line between two values; else those of the steps between, each its own or the nearest below it; [] if none.

        Each with the two places that it was fitted to, and by how much its deviation is to be multiplied.
        """
        direct = self._line(cheaper, at)
        if direct is not None:
            return [((cheaper, at), direct, 1.0)]
        lines = []
        for place in range(cheaper, at):
            tried = ((lower, self._line(lower, lower + 1)) for lower in range(place, -1, -1))
            found = next(((lower, line) for lower, line in tried if line is not None), None)
            if found is None:
                return []
            lines.append(((found[0], found[0] + 1), found[1], 1.0 if found[0] == place else _STAND_IN))
        return lines

    def _line(self, cheaper: int, dearer: int) -> Line | None:
        if (cheaper, dearer) not in self._fitted:
            pairs = self._pairs(cheaper, dearer, whole=True)
            self._fitted[cheaper, dearer] = fit(pairs) if len(pairs) >= self._least_common else None
        return self._fitted[cheaper, dearer]

    def _pairs(self, cheaper: int, dearer: int, *, whole: bool) -> list[tuple[float, float]]:
        rows = [row for row in self._models.values() if cheaper in row and dearer in row]
        rows = [row for row in rows if not whole or (row[cheaper].whole and row[dearer].whole)]
        return [(row[cheaper].score, row[dearer].score) for row in rows]

    def _span(self, step: Correlation) -> str:
        return f"{self._names[step.cheaper]} -> {self._names[step.dearer]}"


def lower_bound(correlation: float, count: int) -> float:
    """One-sided lower bound of a rank correlation of `count` pairs; -1 for fewer than four.

    An order that agrees in full counts as one in which two neighbours are swapped: Fisher's z of 1 is infinite, and four
    pairs agree by chance one time in 24.
    """
    if count < _LEAST_FOR_RANKS:
        return -1.0
    z = math.atanh(_short_of_one(correlation, count))
    return math.tanh(z - float(special.ndtri(_CONFIDENCE)) * math.sqrt(1.06 / (count - 3)))


def _short_of_one(correlation: float, count: int) -> float:
    agreeing = 1 - 12 / (count * (count * count - 1))
    return max(min(correlation, agreeing), -agreeing)


def normal_scores(values: Sequence[float]) -> list[float]:
    """Blom's normal scores of values, by their ranks; those that are equal share the mean rank."""
    ranks = stats.rankdata(values)
    return [float(score) for score in special.ndtri((ranks - 0.375) / (len(values) + 0.25))]


def chance_above_all(score: float, rivals: Sequence[float], correlation: float) -> float:
    """P(Z > max Z_j) for independent Gaussians of means `correlation * score` and variance `1 - correlation^2`.

    For one rival that is Phi(correlation (score - rival) / sqrt(2 (1 - correlation^2))).
    """
    spread = math.sqrt(1 - correlation * correlation)
    leads = correlation * (score - np.asarray(rivals, dtype=float)) / spread
    nodes, weights = _quadrature()
    above = special.ndtr(nodes[:, None] + leads[None, :]).prod(axis=1)
    return float((weights * above).sum() / weights.sum())


@functools.cache
def _quadrature() -> tuple[Floats, Floats]:
    """Gauss and Hermite's nodes and weights for the standard normal density."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return nodes, weights


@dataclass(frozen=True)
class Line:
    """Least squares through `count` pairs (x, y).

    Attributes:
        slope: of the line, which goes through the means.
        mean_x, mean_y: of the pairs.
        square: sum of squared distances of x from its mean.
        variance: of y about the line.
    """

    slope: float
    mean_x: float
    mean_y: float
    square: float
    variance: float
    count: int

    def at(self, x: float) -> tuple[float, float]:
        """A new pair's y at x: mean, and standard deviation with the line's own uncertainty (Student's t, count - 2)."""
        off = x - self.mean_x
        return self.mean_y + self.slope * off, math.sqrt(self.variance * (1 + 1 / self.count + off * off / self.square))


def fit(pairs: Sequence[tuple[float, float]]) -> Line | None:
    """The line through pairs; None for fewer than three, or where all x are equal."""
    x, y = np.asarray(pairs, dtype=float).reshape(-1, 2).T
    if len(pairs) < LEAST_COMMON or np.ptp(x) == 0:
        return None
    off_x, off_y = x - x.mean(), y - y.mean()
    square = float((off_x**2).sum())
    slope = float((off_x * off_y).sum()) / square
    variance = float(((off_y - slope * off_x) ** 2).sum()) / (len(pairs) - 2)
    variance = max(variance, (_LEAST_SHARE * float(np.ptp(y))) ** 2, sys.float_info.min)
    return Line(slope, float(x.mean()), float(y.mean()), square, variance, len(pairs))
