"""The chance that a cell not trained yet wins its grid, from what is measured: what cost-aware pruning decides by.

A model is a cell's coordinates but `along`; a value is one of `along`. Two independent looks at a model and a dearer value:

* Rank: the model's normal score (Blom, 1958) among those measured at the cheaper value carries over by Spearman's correlation of
  the models that both values have measured - by the lower bound of its confidence interval (Fisher's z, with the variance
  1.06 / (n - 3) of Fieller, Hartley and Pearson, 1957). Given their normal scores, models are independent Gaussians at the
  dearer value; the chance is that this one comes out above all that were trained there. It needs no scores, ranks alone.
* Trend: how much models gain from the cheaper to the dearer value, as a straight line of their score there, fitted by least
  squares. The chance is that the model's predicted score (Student's t, n - 2 degrees of freedom) lies above the best of the
  whole grid. A gain that shrinks or turns into a loss shows here, and may rule out a value as a whole. A line and not the mean
  gain, because promising models are trained first: what is lucky at the cheaper value gains less, and a line in the
  score is not led astray by choosing models by that score.

A cell is left out where the smaller chance, doubled for having looked twice, is below the risk. Assumed: models' scores scatter
about the line alike everywhere; where nothing is measured yet, the neighbours below stand in, that is, the next step along
gains no more and keeps ranks no worse than the last one did.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

_CONFIDENCE = 0.9  # one-sided, of the rank correlation's lower bound
_LOOKS = 2
_LEAST_SHARE = (
    1e-3  # of the scores' range: the least deviation from a line; scores are counts of right answers, and may fit by chance
)
_NODES = 96  # of the quadrature: the closed form for one rival is met to 1e-9
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
        self._correlations: dict[tuple[int, int], Correlation | None] = {}
        scores = [measured.score for row in models.values() for measured in row.values()]
        self._best = max(scores, default=-math.inf)

    def chance(self, model: Hashable, at: int) -> Chance:
        """The chance that `model` wins the grid at the value `at`; 1 where nothing can be said."""
        below = [place for place in self._models[model] if place < at]
        if not below:
            return Chance(1.0)
        looks = [self._by_rank(model, max(below), at), self._by_trend(model, max(below), at)]
        best = min(looks, key=lambda look: look.value)
        return Chance(min(_LOOKS * best.value, 1.0), best.evidence)

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
        peers = {name: row[cheaper].score for name, row in self._models.items() if cheaper in row}
        rivals = [name for name in peers if at in self._models[name]]
        steps = self._steps(cheaper, at)
        if not rivals or not steps:
            return Chance(1.0)
        carried = math.prod(max(step.least, 0.0) for step in steps)
        scores = normal_scores(list(peers.values()))
        score = dict(zip(peers, scores, strict=True))
        chance = chance_above_all(score[model], [score[rival] for rival in rivals], carried)
        place = 1 + sum(other > peers[model] for other in peers.values())
        told = ", ".join(f"{self._span(step)} at least {step.least:.2f} (n={step.count})" for step in dict.fromkeys(steps))
        return Chance(chance, f"rank {place} of {len(peers)} at {self._names[cheaper]}, rank correlation {told}")

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
        if not known.whole:
            return Chance(1.0)
        spans = [(cheaper, at)]
        if at == cheaper + 1:  # the step before stands in for a step; nothing does for a leap over values left out
            spans += [(place, place + 1) for place in range(cheaper - 1, -1, -1)]
        for first, second in spans:
            pairs = self._pairs(first, second, whole=True)
            predicted = predict(pairs, known.score) if len(pairs) >= max(self._least_common, LEAST_COMMON) else None
            if predicted is not None:
                mean, deviation, freedom = predicted
                chance = float(stats.t.sf((self._best - mean) / deviation, freedom))
                step = f"{self._names[first]} -> {self._names[second]} (n={len(pairs)})"
                expected = f"{self._sign * mean:.4g} +- {deviation:.2g} expected by the gains {step}"
                return Chance(chance, f"{expected}, best so far {self._sign * self._best:.4g}")
        return Chance(1.0)

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
    agreeing = 1 - 12 / (count * (count * count - 1))
    z = math.atanh(max(min(correlation, agreeing), -agreeing))
    return math.tanh(z - float(stats.norm.ppf(_CONFIDENCE)) * math.sqrt(1.06 / (count - 3)))


def normal_scores(values: Sequence[float]) -> list[float]:
    """Blom's normal scores of values, by their ranks; those that are equal share the mean rank."""
    ranks = stats.rankdata(values)
    return [float(score) for score in stats.norm.ppf((ranks - 0.375) / (len(values) + 0.25))]


def chance_above_all(score: float, rivals: Sequence[float], correlation: float) -> float:
    """P(Z > max Z_j) for independent Gaussians of means `correlation * score` and variance `1 - correlation^2`.

    For one rival that is Phi(correlation (score - rival) / sqrt(2 (1 - correlation^2))).
    """
    spread = math.sqrt(1 - correlation * correlation)
    leads = correlation * (score - np.asarray(rivals, dtype=float)) / spread
    nodes, weights = _quadrature()
    above = stats.norm.cdf(nodes[:, None] + leads[None, :]).prod(axis=1)
    return float((weights * above).sum() / weights.sum())


@functools.cache
def _quadrature() -> tuple[Floats, Floats]:
    """Gauss and Hermite's nodes and weights for the standard normal density."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return nodes, weights


def predict(pairs: Sequence[tuple[float, float]], at: float) -> tuple[float, float, int] | None:
    """A new model's score at the dearer value, by the least-squares line through (cheaper, dearer) scores.

    Returns:
        Mean, standard deviation (of a new observation, the line's own uncertainty included) and degrees of freedom of its Student
        t distribution; None for fewer than three pairs, or where all cheaper scores are equal.
    """
    count = len(pairs)
    x, y = np.asarray(pairs, dtype=float).reshape(-1, 2).T
    if count < LEAST_COMMON or np.ptp(x) == 0:
        return None  # no line
    square = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / square
    left = y - y.mean() - slope * (x - x.mean())
    variance = float((left**2).sum()) / (count - 2)
    variance = max(variance, (_LEAST_SHARE * float(np.ptp(y))) ** 2, sys.float_info.min)
    deviation = math.sqrt(variance * (1 + 1 / count + (at - float(x.mean())) ** 2 / square))
    return float(y.mean()) + slope * (at - float(x.mean())), deviation, count - 2
