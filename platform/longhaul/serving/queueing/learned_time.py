"""How long things take, learned from how long they took."""

from __future__ import annotations

from bisect import bisect_left

_WEIGHT = 0.2  # of the newest value: the last ten or so count
_OUTLIER = 4.0  # times the estimate: a value above counts as this much, so that one hiccup is soon forgotten
_TICK_S = 1e-3  # of the coarsest clock (uvloop's): what takes less is seen as 0 or as this much, which is no outlier
_OLD = 50  # batches: what is known of a size that was not formed among so many does not stand against what is newer


class LearnedTime:
    """A robust moving average of seconds, and a bound that values seldom exceed.

    Mean and mean deviation as TCP learns its timeouts (RFC 6298), with outliers pulled in.
    """

    def __init__(self) -> None:
        self._mean: float | None = None
        self._deviation = 0.0

    @property
    def known(self) -> bool:
        """Whether anything has been learned."""
        return self._mean is not None

    @property
    def seconds(self) -> float:
        """What to expect; 0 before the first value."""
        return self._mean or 0.0

    @property
    def bound_s(self) -> float:
        """What few exceed: the mean and four deviations; 0 before the first value."""
        return self.seconds + 4 * self._deviation

    def add(self, seconds: float) -> None:
        """Learn from one more value."""
        if self._mean is None:
            self._mean, self._deviation = seconds, seconds / 2
            return
        value = min(seconds, _OUTLIER * max(self._mean, _TICK_S))
        self._deviation += _WEIGHT * (abs(value - self._mean) - self._deviation)
        self._mean += _WEIGHT * (value - self._mean)


class BatchTimes:
    """Seconds that an engine takes, by batch size; a size that was not seen lately is reckoned from those that were.

    What is believed of a size decides whether it is formed, so a wrong belief could keep itself from being corrected. Therefore
    no size is held slower than a smaller one repeated; and where a larger batch seems to take less than a smaller one, or more
    for each sample, what was not seen for long is forgotten.
    """

    def __init__(self) -> None:
        self._by_size: dict[int, LearnedTime] = {}
        self._seen: dict[int, int] = {}
        self._batches = 0
        self._reckoned: dict[int, float] = {}
        self._per_sample = LearnedTime()

    @property
    def seconds_per_sample(self) -> float:
        """What a sample has cost lately, in batches as they came; 0 before the first batch."""
        return self._per_sample.seconds

    def add(self, size: int, seconds: float) -> None:
        """Learn from a batch."""
        self._batches += 1
        self._seen[size] = self._batches
        self._by_size.setdefault(size, LearnedTime()).add(seconds)
        self._per_sample.add(seconds / size)
        old = [other for other, seen in self._seen.items() if seen <= self._batches - _OLD]
        for other in old:
            if self._contradict(*sorted((size, other))):
                del self._seen[other], self._by_size[other]
        self._reckoned.clear()

    def seconds(self, size: int) -> float:
        """What to expect of a batch; 0 before the first one of any size.

        Between two known sizes it lies on the line between them, under the smallest it is the smallest's, and above the largest
        it grows in proportion. A batch takes no longer than a smaller one repeated.
        """
        if size not in self._reckoned:
            self._reckoned[size] = self._reckon(size)
        return self._reckoned[size]

    def _contradict(self, small: int, large: int) -> bool:
        of_small, of_large = self._by_size[small].seconds, self._by_size[large].seconds
        return not of_small <= of_large <= of_small * large / small

    def _reckon(self, size: int) -> float:
        if not self._by_size or size <= 0:
            return 0.0
        repeated = [known.seconds * size / smaller for smaller, known in self._by_size.items() if smaller < size]
        return min([self._on_the_line(size), *repeated])

    def _on_the_line(self, size: int) -> float:
        if size in self._by_size:
            return self._by_size[size].seconds
        known = sorted(self._by_size)
        above = bisect_left(known, size)
        if above == 0:
            return self._by_size[known[0]].seconds
        low = known[above - 1]
        at_low = self._by_size[low].seconds
        if above == len(known):
            return at_low * size / low
        high = known[above]
        return at_low + (self._by_size[high].seconds - at_low) * (size - low) / (high - low)
