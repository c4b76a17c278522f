"""Two ways to choose the next cells: a grid in its order, less what pruning leaves out; points that a search draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.search import Searcher

from longhaul.errors import UserError
from longhaul.recipe.sweep import PruningSection
from longhaul.resilience.sweep_directory import CellRecord, Refused
from longhaul.tuning.board import Board
from longhaul.tuning.cells.cells import FOLD
from longhaul.tuning.grid.grid_planner import Done, GridCell, GridPlanner, Skip, Standing, Wait
from longhaul.tuning.history import Direction, Ended, Past
from longhaul.tuning.search.search import SweepSearcher
from longhaul.tuning.sweep_plan import SweepPlan

_ATTEMPTS = 50


class GridPlan:
    """The grid's cells, one a trial; see `grid_planner`."""

    def __init__(self, board: Board, pruning: PruningSection | None) -> None:
        self._board = board
        cells = [GridCell(record.key, record.coordinates, record.cost) for record in board.state.cells]
        self._planner = GridPlanner(cells, pruning, board.state.direction)

    def next(self, trial_id: str) -> Sequence[CellRecord] | None:
        """See `trial_source.Planner`; marks what is skipped on the way."""
        begun = [record for record in self._board.state.cells if record.standing == "planned" and record.steps > 0]
        if begun:  # an earlier call began it
            return begun[:1]
        while True:
            standings = {record.key: Standing(record.standing, record.score, record.forced) for record in self._board.state.cells}
            choice = self._planner.next(standings)
            if isinstance(choice, Skip):
                self._board.skipped(self._board[choice.key], choice.reason)
                continue
            if isinstance(choice, Wait):
                return None
            return () if isinstance(choice, Done) else (self._board[choice.key],)

    def heard(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the board has it."""

    def over(self, trial_id: str, result: dict[str, Any] | None, *, failed: bool) -> None:
        """Nothing either."""


class SearchPlan:
    """Points of a space, each a trial of one cell a fold; those of earlier calls that are not done come first."""

    def __init__(self, board: Board, planned: SweepPlan, searcher: SweepSearcher) -> None:
        self._board, self._planned, self._searcher = board, planned, searcher
        waiting = [group for group in points(board.state.cells) if any(record.open for record in group)]
        self._waiting = sorted(waiting, key=lambda group: not any(record.steps for record in group))  # begun ones first
        self._known: dict[str, tuple[str, str]] = {}  # of a trial: what the searcher calls it, and its first cell's key

    def next(self, trial_id: str) -> Sequence[CellRecord] | None:
        """See `trial_source.Planner`."""
        if self._waiting:
            group = self._waiting.pop(0)
            self._known[trial_id] = (group[0].key, group[0].key)
            return group
        for attempt in range(_ATTEMPTS):
            name = trial_id if attempt == 0 else f"{trial_id}-{attempt}"
            drawn = self._searcher.suggest(name)
            if drawn == Searcher.FINISHED:
                return ()
            assert isinstance(drawn, dict)
            try:
                records = [self._board.known(self._planned.enlist(cell)) for cell in self._planned.maker.folded(drawn)]
            except UserError as error:
                place = len(self._searcher.trials) - 1
                self._board.state.refused.append(Refused(coordinates=drawn, reason=str(error), place=place))
                self._board.note(f"{drawn}: makes no recipe: {error}")
                self._searcher.on_trial_complete(name, None, error=True)
                continue
            if any(record.open for record in records):
                self._known[trial_id] = (name, records[0].key)
                return records
            self._searcher.on_trial_complete(name, {"epoch": 0.0, "score": mean_score(records)})  # another sweep has trained it
        return ()

    def heard(self, trial_id: str, result: dict[str, Any]) -> None:
        """The searcher learns from each validation."""
        self._searcher.on_trial_result(self._known[trial_id][0], result)

    def over(self, trial_id: str, result: dict[str, Any] | None, *, failed: bool) -> None:
        """The searcher learns how it ended."""
        name, key = self._known[trial_id]
        group = next(group for group in points(self._board.state.cells) if group[0].key == key)
        ended: Ended = "failed" if failed else ended_of(group)
        self._searcher.on_trial_complete(name, {**(result or {}), "ended": ended}, error=failed)


def points(records: Sequence[CellRecord]) -> list[list[CellRecord]]:
    """Cells by point: those that differ in the fold alone, in the order in which they were drawn."""
    groups: dict[str, list[CellRecord]] = {}
    for record in records:
        point = {path: value for path, value in record.coordinates.items() if path != FOLD}
        groups.setdefault(repr(sorted(point.items())), []).append(record)
    return list(groups.values())


def pasts(groups: Sequence[Sequence[CellRecord]], direction: Direction) -> list[Past]:
    """What searcher and scheduler are told of earlier calls: a trial for each group of cells, with what it reported then."""
    better: Callable[[float, float], float] = max if direction == "max" else min
    found = []
    for group in groups:
        scores: list[tuple[float, float]] = []
        bests: list[float] = []
        before = 0.0
        for record in group:
            best = math.nan
            for epoch, score in record.scores:
                best = score if math.isnan(best) else best if math.isnan(score) else better(best, score)
                scores.append((before + epoch, _mean([*bests, best])))
            if record.scores:
                before, bests = before + record.scores[-1][0], [*bests, best]
        point = {path: value for path, value in group[0].coordinates.items() if len(group) == 1 or path != FOLD}
        found.append(Past(coordinates=point, scores=scores, ended=ended_of(group), key=group[0].key))
    return found


def with_refused(trials: Sequence[Past], refused: Sequence[Refused]) -> list[Past]:
    """What a searcher is told of earlier calls: the trials, and in their places the draws that made no recipe, as failed."""
    known = list(trials)
    for one in refused:
        known.insert(one.place, Past(one.coordinates, [], "failed", f"refused-{one.place}"))
    return known


def ended_of(group: Sequence[CellRecord]) -> Ended:
    """How a trial of these cells stands."""
    standings = {record.standing for record in group}
    for standing in ("failed", "stopped"):
        if standing in standings:
            return standing
    return "finished" if standings == {"finished"} else "running"


def mean_score(records: Sequence[CellRecord]) -> float:
    """The mean of the cells' best scores."""
    return _mean([record.score for record in records if record.score is not None])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
