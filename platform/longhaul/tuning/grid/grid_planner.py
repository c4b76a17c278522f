"""What to train next in a grid: cheap cells first, and dear ones only where they may still win.

Pure logic without Ray, and without a memory: every answer follows from the cells and how they stand, so that a sweep that was
killed decides the same again.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, Literal

from longhaul.recipe.sweep import PruningSection
from longhaul.tuning.grid.pruning import LEAST_COMMON, Evidence, Measured

FOLD = "data.fold"


@dataclass(frozen=True)
class GridCell:
    """One cell: `key`, recipe fields (`coordinates`), and predicted `cost` in any unit that is the same for all."""

    key: str
    coordinates: Mapping[str, Any]
    cost: float | None = None


@dataclass(frozen=True)
class Standing:
    """How a cell stands.

    Attributes:
        state: as `resilience.sweep_directory.Standing`.
        score: the goal's best on the validation split so far.
        forced: somebody wants it trained whatever pruning says.
    """

    state: Literal["planned", "running", "finished", "stopped", "skipped", "failed"] = "planned"
    score: float | None = None
    forced: bool = False


@dataclass(frozen=True)
class Start:
    """Train this cell."""

    key: str


@dataclass(frozen=True)
class Skip:
    """Leave this cell out; `reason` says why, in one line with its numbers."""

    key: str
    reason: str


@dataclass(frozen=True)
class Wait:
    """What is running decides what comes next."""


@dataclass(frozen=True)
class Done:
    """Every cell has been started or left out."""


Answer = Start | Skip | Wait | Done
Group = tuple[Hashable, int]
"""A model (all coordinates but `along` and the fold) and the place of a value of `along`, cheapest first."""


class GridPlanner:
    """The order of a grid's cells.

    Without pruning: by cost, then as given. With it: one value of `along` after another, cheapest first; at a dear value the
    models that did best at the nearest cheaper one come first, so that the bar is set early. A model is all coordinates but
    `along`; its folds are trained or left out together, and count by the mean of those measured.

    Args:
        cells: all of the grid.
        pruning: what is left out; None for nothing.
        direction: which way the score is better.
    """

    def __init__(self, cells: Sequence[GridCell], pruning: PruningSection | None, direction: Literal["max", "min"]) -> None:
        self._cells, self._pruning, self._direction = cells, pruning, direction

    def next(self, standings: Mapping[str, Standing]) -> Answer:
        """What to do now. After `Start` and `Skip`, ask again with the cell's new standing; after `Wait`, when something ends.

        Args:
            standings: by key; a cell that is not there is planned.
        """
        table = {cell.key: standings.get(cell.key, Standing()) for cell in self._cells}
        planned = [cell for cell in self._cells if table[cell.key].state == "planned"]
        if not planned:
            return Done()
        if self._pruning is None:
            return Start(min(planned, key=_cost).key)
        forced = [cell for cell in planned if table[cell.key].forced]
        if forced:
            return Start(min(forced, key=_cost).key)
        return _Decision(self, self._pruning, table).next()

    @property
    def lower_is_better(self) -> bool:
        """Whether the best score is the lowest."""
        return self._direction == "min"

    @cached_property
    def values(self) -> list[str]:
        """The values of `along` as texts, cheapest first."""
        assert self._pruning is not None
        costs: dict[str, list[float | None]] = {}
        for cell in self._cells:
            costs.setdefault(json.dumps(cell.coordinates[self._pruning.along]), []).append(cell.cost)
        if any(cost is None for group in costs.values() for cost in group):
            numbers = {value: json.loads(value) for value in costs}
            ordered = all(isinstance(number, int | float) for number in numbers.values())
            return sorted(costs, key=lambda value: numbers[value]) if ordered else list(costs)
        return sorted(costs, key=lambda value: fmean(cost for cost in costs[value] if cost is not None))

    @cached_property
    def groups(self) -> dict[Group, list[GridCell]]:
        """The cells of each model at each place along: one, or its folds."""
        assert self._pruning is not None
        groups: dict[Group, list[GridCell]] = {}
        for cell in self._cells:
            along = self._pruning.along
            model = tuple(f"{field}={value!r}" for field, value in cell.coordinates.items() if field not in (along, FOLD))
            groups.setdefault((model, self.values.index(json.dumps(cell.coordinates[along]))), []).append(cell)
        return groups

    def measured(self, cells: Sequence[GridCell], table: Mapping[str, Standing]) -> Measured | None:
        """The mean over those that have ended with a score; None while there is none."""
        sign = -1 if self.lower_is_better else 1
        ended = [table[cell.key] for cell in cells if table[cell.key].state in ("finished", "stopped")]
        scores = [sign * standing.score for standing in ended if standing.score is not None]
        whole = len(ended) == len(cells) and all(standing.state == "finished" for standing in ended)
        return Measured(fmean(scores), whole) if scores else None

    @property
    def names(self) -> list[str]:
        """The values' names in texts, such as `64 px`."""
        assert self._pruning is not None
        unit = " px" if self._pruning.along == "data.resolution" else ""
        return [f"{json.loads(value)}{unit}" for value in self.values]


class _Decision:
    """One decision under pruning: the grid as it stands now."""

    def __init__(self, planner: GridPlanner, pruning: PruningSection, table: Mapping[str, Standing]) -> None:
        self._groups, self._pruning, self._table = planner.groups, pruning, table
        models: dict[Hashable, dict[int, Measured]] = {model: {} for model, _ in self._groups}
        for (model, place), cells in self._groups.items():
            measured = planner.measured(cells, table)
            if measured is not None:
                models[model][place] = measured
        self._models = models
        self._evidence = Evidence(models, planner.names, pruning.least_common, lower_is_better=planner.lower_is_better)

    def next(self) -> Answer:
        """The answer of `GridPlanner.next`, where something is planned and nothing of that is forced."""
        waiting = {group: self._cells(group, "planned") for group in self._groups if self._cells(group, "planned")}
        place = min(place for _, place in waiting)
        order = [group for group in waiting if group[1] == place]
        order.sort(key=lambda group: self._evidence.promise(*group), reverse=True)  # a stable sort: ties stay as given
        running = [group for group in self._groups if self._cells(group, "running")]
        for group in order:
            key = min(waiting[group], key=_cost).key
            if self._cells(group, "running", "finished", "stopped"):
                return Start(key)  # other folds of it are under way
            reason = self._reason(group, order)
            if reason is not None:
                return Skip(key, reason)
            if not self._is_decided_by(running, group):
                return Start(key)
        return Wait()

    def _reason(self, group: Group, order: Sequence[Group]) -> str | None:
        """Why it is left out; None where it is not.

        The risk is the whole grid's: to the cell's own chance come those of all that is left out already, and of those at
        its value that are less likely still and so would be left out before it. Of the risk, each value of `along` may
        use up a share as large as that of its cost and those below it, so that enough is left where most is to be saved.
        """
        limit = self._pruning.risk * self._share_up_to(group[1])
        own = self._evidence.chance(*group)
        if own.evidence is None or own.value >= limit:
            return None
        rest = [self._evidence.chance(*other).value for other in order if other != group]
        others = sum(chance for chance in rest if chance <= own.value)
        left_out = [other for other in self._groups if other != group and self._cells(other, "skipped")]
        others += sum(self._evidence.chance(*other).value for other in left_out)
        if own.value + others >= limit:
            return None
        together = f", with all others left out {own.value + others:.1%}" if others >= 0.0005 else ""
        return f"{own.evidence}: chance to win {own.value:.1%}{together} < {limit:.1%}"

    def _share_up_to(self, place: int) -> float:
        """The share of the values up to this one in the cost of all that could be left out: all but the cheapest value."""
        costs: dict[int, float] = {}
        for (_, at), cells in self._groups.items():
            costs[at] = costs.get(at, 0.0) + sum(1.0 if cell.cost is None else cell.cost for cell in cells)
        dear = sum(costs[at] for at in costs if at > 0)  # nothing where `along` has one value
        return sum(costs[at] for at in costs if 0 < at <= place) / dear if dear else 0.0

    def _is_decided_by(self, running: Sequence[Group], group: Group) -> bool:
        """Whether what runs now may still leave it out: its own cheaper cell, or as many at its value as make a comparison."""
        model, place = group
        if any(other == model and cheaper < place for other, cheaper in running):
            return True
        at_hand = [other for other, row in self._models.items() if place in row and any(cheaper < place for cheaper in row)]
        coming = {other for other, at in running if at == place and any(cheaper < place for cheaper in self._models[other])}
        least = max(self._pruning.least_common, LEAST_COMMON)
        return place > 0 and len(at_hand) < least <= len(coming.union(at_hand))

    def _cells(self, group: Group, *states: str) -> list[GridCell]:
        return [cell for cell in self._groups[group] if self._table[cell.key].state in states]


def _cost(cell: GridCell) -> float:
    return cell.cost or 0.0
