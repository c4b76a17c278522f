"""Pruning on grids whose every result is known: what does it cost, and does it leave the winner out?

    python benchmarks/pruning_replay.py --grids 300                              # made-up grids of several kinds
    python benchmarks/pruning_replay.py --sweep small --storage runs --seeds 5   # a grid that was trained in full

Made-up grids: 13 models x 5 values, cost growing with the value's square; each kind breaks an assumption in its own way. `wrong`
is the share of grids whose true winner was left out: at or below the risk (5 %). `random` grids have no order to learn, so
next to nothing may be left out there.

A real sweep (grid without stopping and pruning, all cells finished) is replayed from its learning curves: `--parallel` cells at a
time in the planner's order, each as fast as its predicted cost, with ASHA as Ray Tune's scheduler decides it. The score of a cell
is the best so far, also of one that is stopped; the winner is the cell with the best score on the validation split. Seeds
shuffle which of the cells that are equal to the planner come first, and how fast each trains (by up to a fifth).
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from longhaul.recipe.sweep import AshaStopping, PruningSection
from longhaul.resilience.sweep_directory import SweepDirectory
from longhaul.tuning.grid.grid_planner import Done, GridCell, GridPlanner, Skip, Standing, Start
from longhaul.tuning.search.stopping import make_scheduler

ALONG = "data.resolution"
Table = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class KnownCell:
    """A cell whose whole learning curve is known: (epoch, goal) in order; `cost` of all of it."""

    cell: GridCell
    curve: Sequence[tuple[float, float]]

    @property
    def cost(self) -> float:
        """Of the whole training."""
        return self.cell.cost or 1.0


@dataclass(frozen=True)
class Outcome:
    """What a replay came to: the best score, the share of the full grid's cost, cells left out with why, how many stopped."""

    best: float
    share: float
    skipped: dict[str, str]
    stopped: int


def replay(
    cells: Sequence[KnownCell],
    pruning: PruningSection | None,
    direction: Literal["max", "min"],
    scheduler: TrialScheduler | None = None,
    *,
    parallel: int = 1,
    speeds: Mapping[str, float] | None = None,
) -> Outcome:
    """Run the grid on the clock of its costs."""
    scheduler, better = scheduler or FIFOScheduler(), max if direction == "max" else min
    planner = GridPlanner([known.cell for known in cells], pruning, direction)
    by_key = {known.cell.key: known for known in cells}
    standings: dict[str, Standing] = {}
    skipped: dict[str, str] = {}
    going: list[tuple[float, str, int]] = []  # when the next validation of which cell comes
    now = spent = 0.0

    def duration(key: str, at: int) -> float:
        curve = by_key[key].curve
        epochs = curve[at][0] - (curve[at - 1][0] if at else 0.0)
        return by_key[key].cost * epochs / curve[-1][0]

    def fill() -> None:
        while len(going) < parallel:
            answer = planner.next(standings)
            if isinstance(answer, Skip):
                standings[answer.key] = Standing("skipped")
                skipped[answer.key] = answer.reason
            elif isinstance(answer, Start):
                standings[answer.key] = Standing("running")
                scheduler.on_trial_add(None, _trial(answer.key))  # type: ignore[arg-type]
                heapq.heappush(going, (now + duration(answer.key, 0) / (speeds or {}).get(answer.key, 1.0), answer.key, 0))
            else:
                assert going or isinstance(answer, Done), "the planner waits while nothing runs"
                return

    fill()
    while going:
        now, key, at = heapq.heappop(going)
        curve = by_key[key].curve
        spent += duration(key, at)
        score = better(value for _, value in curve[: at + 1])
        verdict = TrialScheduler.CONTINUE
        if not isinstance(scheduler, FIFOScheduler):
            result = {"epoch": curve[at][0], "score": score}
            verdict = scheduler.on_trial_result(None, _trial(key), result)  # type: ignore[arg-type]
        if at + 1 == len(curve):
            standings[key] = Standing("finished", score)
        elif verdict == TrialScheduler.STOP:
            standings[key] = Standing("stopped", score)
        else:
            standings[key] = Standing("running", score)
            heapq.heappush(going, (now + duration(key, at + 1) / (speeds or {}).get(key, 1.0), key, at + 1))
        fill()
    scores = [standing.score for standing in standings.values() if standing.score is not None]
    stopped = sum(standing.state == "stopped" for standing in standings.values())
    return Outcome(better(scores), spent / sum(known.cost for known in cells), skipped, stopped)


def _trial(key: str) -> SimpleNamespace:
    return SimpleNamespace(trial_id=key, config={"key": key})


def made_up(truth: Table, costs: Sequence[float]) -> list[KnownCell]:
    """A grid of known scores (models, values), each reached in one epoch."""
    return [
        KnownCell(
            GridCell(f"{model}-{value}", {"model.name": f"m{model}", ALONG: 32 * (value + 1)}, costs[value]),
            [(1.0, float(score))],
        )
        for model, row in enumerate(truth)
        for value, score in enumerate(row)
    ]


def _rising(n: int) -> Table:
    return np.asarray(4 * (1 - np.exp(-np.arange(n) / 1.5)))


Make = Callable[[np.random.Generator, Table, int], Table]
KINDS: dict[str, Make] = {
    # Name: of (generator, models' qualities (M, 1), values) the scores (M, values).
    "rising": lambda g, q, n: q + _rising(n) * g.uniform(0.8, 1.2, q.shape) + g.normal(0, 0.5, (len(q), n)),
    "noisy": lambda g, q, n: q + _rising(n) + g.normal(0, 2, (len(q), n)),
    "peak": lambda g, q, n: q - 1.5 * (np.arange(n) - g.uniform(0, n - 1)) ** 2 / n + g.normal(0, 0.6, (len(q), n)),
    "falling": lambda g, q, n: q - np.arange(n) * g.uniform(0.5, 1.5, q.shape) + g.normal(0, 0.5, (len(q), n)),
    "crossing": lambda g, q, n: q + g.normal(0, 1, q.shape) * np.arange(n) + g.normal(0, 0.5, (len(q), n)),
    "faster": lambda g, q, n: q + g.uniform(0, 2, q.shape) * np.arange(n) ** 1.5 + g.normal(0, 0.5, (len(q), n)),
    "ceiling": lambda g, q, n: 100 - np.exp(1 - (q + _rising(n)) / 3) + g.normal(0, 0.3, (len(q), n)),
    "random": lambda g, q, n: g.normal(0, 1, (len(q), n)),
}


def calibration(grids: int, risk: float, models: int, values: int) -> None:
    """Print, for each kind of grid: share of the cost, of wrong skips, of cells left out."""
    costs = [float((value + 1) ** 2) for value in range(values)]
    print(f"{models} x {values}, risk {risk:.0%}, {grids} grids a kind\nkind      cost   wrong  skipped  regret")
    for kind, make in KINDS.items():
        generator = np.random.default_rng(1)
        shares, wrong, left_out, regrets = [], 0, [], []
        for _ in range(grids):
            truth = make(generator, generator.normal(0, 3, (models, 1)), values)
            outcome = replay(made_up(truth, costs), PruningSection(along=ALONG, risk=risk), "max")
            model, value = np.unravel_index(truth.argmax(), truth.shape)
            wrong += f"{model}-{value}" in outcome.skipped
            shares.append(outcome.share)
            left_out.append(len(outcome.skipped) / truth.size)
            regrets.append(truth.max() - outcome.best)
        cost, skipped, regret = np.mean(shares), np.mean(left_out), np.mean(regrets)
        print(f"{kind:9s} {cost:5.1%} {wrong / grids:6.1%} {skipped:7.1%} {regret:8.3f}", flush=True)


def known_cells(storage: str, name: str) -> tuple[list[KnownCell], Literal["max", "min"]]:
    """A finished sweep's cells with their curves."""
    state = SweepDirectory.open(storage, name).state()
    unfinished = [record.label for record in state.cells if record.standing != "finished"]
    if unfinished:
        raise SystemExit(f"sweep {name}: not trained in full ({', '.join(unfinished[:3])} ...)")
    cells = [
        KnownCell(GridCell(record.key, record.coordinates, record.cost), sorted(dict(record.scores).items()))
        for record in state.cells
    ]
    return cells, state.direction


def real(storage: str, name: str, arguments: argparse.Namespace) -> None:
    """Print what ASHA, pruning and both find in a sweep, for each seed."""
    cells, direction = known_cells(storage, name)
    epochs = max(known.curve[-1][0] for known in cells)
    asha = AshaStopping(kind="asha", least_epochs=arguments.least_epochs, reduction=arguments.reduction)
    pruning = PruningSection(along=arguments.along, risk=arguments.risk)
    full = replay(cells, None, direction).best
    print(f"{name}: {len(cells)} cells, best {full:.4f} by the full grid")
    print("seed  rule          cost    short of it  stopped  left out")
    for seed in range(arguments.seeds):
        generator = random.Random(seed)
        shuffled = generator.sample(cells, len(cells))
        speeds = {known.cell.key: generator.uniform(0.8, 1.2) for known in cells}
        for rule, section, stops in (("pruning", pruning, False), ("asha", None, True), ("asha+pruning", pruning, True)):
            scheduler = make_scheduler(asha, direction, epochs, []) if stops else None
            outcome = replay(shuffled, section, direction, scheduler, parallel=arguments.parallel, speeds=speeds)
            lost, left_out = abs(full - outcome.best), len(outcome.skipped)
            print(f"{seed:<5d} {rule:13s} {outcome.share:6.1%} {lost:11.4f} {outcome.stopped:9d} {left_out:8d}", flush=True)
            if seed == 0:
                for key, reason in outcome.skipped.items():
                    print(f"      {key}: {reason}")


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grids", type=int, default=300, help="made-up grids a kind")
    parser.add_argument("--models", type=int, default=13)
    parser.add_argument("--values", type=int, default=5)
    parser.add_argument("--risk", type=float, default=0.05)
    parser.add_argument("--sweep", help="a sweep that was trained in full, in place of made-up grids")
    parser.add_argument("--storage", default="runs", help="where it lies")
    parser.add_argument("--along", default=ALONG)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--parallel", type=int, default=2, help="cells at a time")
    parser.add_argument("--least-epochs", type=float, default=1.0, help="ASHA's first rung")
    parser.add_argument("--reduction", type=float, default=3.0, help="ASHA's")
    arguments = parser.parse_args()
    if arguments.sweep:
        real(arguments.storage, arguments.sweep, arguments)
    else:
        calibration(arguments.grids, arguments.risk, arguments.models, arguments.values)


if __name__ == "__main__":
    main()
