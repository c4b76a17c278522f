"""What a long run on machines that come and go may expect: a model of losses, saves and restarts, run a few hundred times.

All runs are simulated side by side in arrays: one turn takes each of them to its next save, loss or end. The time is booked in
the ledger's classes, by the ledger's rules: work counts as productive when it is first done and as recomputed when it is done
again. The interval between saves is the one that `resilience.cadence` would choose, from what that run has seen so far.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from longhaul.resilience.accounting import account
from longhaul.resilience.cadence import Cadence
from longhaul.resilience.checkpoint import CheckpointStore
from longhaul.resilience.incidents import incidents
from longhaul.resilience.ledger import CLASSES, TimeClass, read_ledger
from longhaul.resilience.run_directory import RunDirectory

Floats = NDArray[np.float64]
DAY_S = 86_400.0
MONTH_S = 30 * DAY_S
_KINDS = ("interruption", "crash", "hang")


@dataclass(frozen=True)
class Model:
    """What a run is like; the defaults are assumptions, `calibrate` replaces those that a run has measured.

    Attributes:
        stall_s: what a save keeps training waiting.
        save_s: until a save counts; a loss before that goes back to the one before.
        restart_s: from the decision to the first step: processes, libraries, data, checkpoint.
        detect_s: until a lost process is noticed.
        hang_s: until a hang is noticed (`resilience.hang_s`).
        notice_share: interruptions whose notice comes early enough for a save.
        wait_s: for another machine after an interruption, on average (exponential).
        interruptions: share of machines taken away a month.
        crashes: process crashes and machine faults a machine and month.
        hangs: a run and month.
        validation_share: of the time between saves.
        cadence: decides when to save; its `nodes` and `monthly_rate` are what the run believes at first.
    """

    stall_s: float = 2.0
    save_s: float = 60.0
    restart_s: float = 180.0
    detect_s: float = 30.0
    hang_s: float = 600.0
    notice_share: float = 0.8
    wait_s: float = 900.0
    interruptions: float = 0.1
    crashes: float = 0.2
    hangs: float = 0.5
    validation_share: float = 0.01
    cadence: Cadence = field(default_factory=Cadence)

    def rates(self, nodes: int) -> Floats:
        """Interruptions, crashes and hangs a second."""
        taken = -np.log1p(-min(self.interruptions, 0.999)) * nodes
        return np.array([taken, self.crashes * nodes, self.hangs]) / MONTH_S


@dataclass(frozen=True)
class Outcome:
    """What came of the simulated runs.

    Attributes:
        seconds: by class, one value a run.
        losses: how often each run was restarted.
    """

    seconds: dict[TimeClass, Floats]
    losses: NDArray[np.int64]

    @property
    def goodput(self) -> Floats:
        """Productive share of the wall time, one value a run."""
        return self.seconds["productive"] / sum(self.seconds.values())

    def range(self, within: float = 0.9) -> tuple[float, float, float]:
        """The mean goodput and the interval that holds `within` of the runs."""
        low, high = np.quantile(self.goodput, [(1 - within) / 2, (1 + within) / 2])
        return float(np.mean(self.goodput)), float(low), float(high)

    def share(self, name: TimeClass) -> float:
        """A class's mean share of the wall time."""
        return float(np.sum(self.seconds[name]) / sum(np.sum(each) for each in self.seconds.values()))


def intervals(cadence: Cadence, cost_s: Floats, losses: NDArray[np.int64], uptime_s: Floats, prior_s: float) -> Floats:
    """`Cadence.interval_s` for many runs at once, with the `duration_s` of `cadence`.

    Args:
        cadence: its weights and bounds.
        cost_s: of a save, run by run.
        losses: seen, run by run.
        uptime_s: seen, run by run.
        prior_s: mean time between losses, before any is seen.
    """
    mean = (cadence.prior_losses * prior_s + uptime_s) / (cadence.prior_losses + losses)
    share = cost_s / (2 * mean)
    daly = np.sqrt(2 * cost_s * mean) * (1 + np.sqrt(share) / 3 + share / 9) - cost_s
    best = np.where(share >= 1, mean, daly)
    return np.clip(best, max(cadence.least_s, cadence.duration_s), max(cadence.most_s, cadence.duration_s))


def simulate(model: Model, *, nodes: int, days: float, runs: int, seed: int = 0) -> Outcome:
    """Let `runs` runs of `days` on `nodes` machines happen."""
    rates = model.rates(nodes)
    prior_s = model.cadence.model_copy(update={"nodes": nodes}).mean_between_losses_s()
    return Simulation(model, rates, prior_s, days * DAY_S, runs, np.random.default_rng(seed)).run()


class Simulation:
    """Runs side by side; `run` once.

    Args:
        model: what they are like.
        rates: of each kind of loss, a second.
        prior_s: mean time between losses, as the runs believe at first.
        wall_s: how long they last.
        runs: how many.
        random: all chance comes from here.
        gaps: time between losses, a row a run, if it is not to be drawn here.
    """

    def __init__(
        self, model: Model, rates: Floats, prior_s: float, wall_s: float, runs: int, random: np.random.Generator,
        gaps: Floats | None = None,
    ) -> None:  # fmt: skip
        self.model, self.rates, self.prior_s, self.wall_s, self.random, self.gaps = model, rates, prior_s, wall_s, random, gaps
        self.seconds: dict[TimeClass, Floats] = {name: np.zeros(runs) for name in CLASSES}
        self.losses = np.zeros(runs, np.int64)
        self._now = np.zeros(runs)
        self._position, self._furthest = np.zeros(runs), np.zeros(runs)  # useful work done, in seconds of it
        self._since_save = np.full(runs, np.inf)  # time since the newest save began
        self._saved, self._saved_before = np.zeros((3, runs)), np.zeros((3, runs))  # position, uptime, losses seen
        self._uptime, self._seen = np.zeros(runs), np.zeros(runs)
        self._cost = np.zeros(runs)
        self._left = self._gap(np.arange(runs))  # until the next loss

    def run(self) -> Outcome:
        """Take all runs to their end."""
        while True:
            alive = np.flatnonzero(self._now < self.wall_s)
            if not len(alive):
                return Outcome(self.seconds, self.losses)
            self._turn(alive)

    def _turn(self, who: NDArray[np.int64]) -> None:
        model = self.model
        cadence = model.cadence.model_copy(update={"duration_s": model.save_s})
        cost, seen, uptime = self._cost[who], self._seen[who].astype(np.int64), self._uptime[who]
        work = intervals(cadence, cost, seen, uptime, self.prior_s)
        work = intervals(cadence, cost, seen, uptime + work, self.prior_s)  # it looks again and again while time passes
        until_end = self.wall_s - self._now[who]
        until = np.minimum(self._left[who], until_end)
        saves = work + model.stall_s <= until
        worked = np.minimum(work, until)
        stalled = np.where(saves, model.stall_s, np.minimum(until - worked, model.stall_s))
        self._work(who, worked, stalled)
        self._save(who[saves])
        self._lose(who[~saves & (self._left[who] <= 0) & (until_end > until)])

    def _work(self, who: NDArray[np.int64], worked: Floats, stalled: Floats) -> None:
        useful = worked * (1 - self.model.validation_share)
        new = np.maximum(self._position[who] + useful - self._furthest[who], 0)
        self.seconds["productive"][who] += new
        self.seconds["recomputed"][who] += useful - new
        self.seconds["validation"][who] += worked - useful
        self.seconds["checkpoint"][who] += stalled
        self._position[who] += useful
        self._furthest[who] = np.maximum(self._furthest[who], self._position[who])
        passed = worked + stalled
        self._now[who] += passed
        self._uptime[who] += passed
        self._since_save[who] += passed
        self._left[who] -= passed
        self._now[who[self.wall_s - self._now[who] < 1e-6]] = self.wall_s
        self._left[who[self._left[who] < 1e-6]] = 0.0

    def _save(self, who: NDArray[np.int64]) -> None:
        self._cost[who] = self.model.stall_s
        self._saved_before[:, who] = self._saved[:, who]
        self._saved[:, who] = self._position[who], self._uptime[who], self._seen[who]
        self._since_save[who] = 0.0

    def _lose(self, who: NDArray[np.int64]) -> None:
        if not len(who):
            return
        model = self.model
        kind = self.random.choice(len(_KINDS), size=len(who), p=self.rates / self.rates.sum())
        noticed = (kind == 0) & (self.random.random(len(who)) < model.notice_share)
        waits = np.where(kind == 0, self.random.exponential(1.0, len(who)) * model.wait_s, 0.0)
        self._pass(who, "checkpoint", np.where(noticed, model.stall_s + model.save_s, 0.0))
        self._save(who[noticed])
        self._since_save[who[noticed]] = np.inf
        self._pass(who, "hung", np.select([noticed, kind == 2], [0.0, model.hang_s], model.detect_s))
        self._pass(who, "waiting", waits)
        self._pass(who, "startup", np.full(len(who), model.restart_s))
        back = np.where(self._since_save[who] < model.save_s, self._saved_before[:, who], self._saved[:, who])
        self._saved[:, who] = back
        self._position[who], self._uptime[who], self._seen[who] = back[0], back[1], back[2] + 1
        self._since_save[who] = np.inf
        self.losses[who] += 1
        self._left[who] = self._gap(who)

    def _pass(self, who: NDArray[np.int64], name: TimeClass, seconds: Floats) -> None:
        spent = np.minimum(seconds, self.wall_s - self._now[who])
        self.seconds[name][who] += spent
        self._now[who] += spent

    def _gap(self, who: NDArray[np.int64]) -> Floats:
        if self.gaps is not None:
            return np.asarray(self.gaps[who, self.losses[who]], np.float64)
        return self.random.exponential(1.0, len(who)) / max(float(self.rates.sum()), 1e-30)


def calibrate(run: RunDirectory, model: Model | None = None) -> Model:
    """The model with what `run` has measured in place of assumptions, as far as it has: its ledger, events and checkpoints."""
    model = model or Model()
    spent = {name: ns / 1e9 for name, ns in account(read_ledger(run)).classes.items()}
    events = run.events().to_pylist()
    starts = sum(event["kind"] in ("started", "resumed") for event in events)
    saves = {
        (detail := json.loads(event["detail"]))["checkpoint"]: (event["time_s"], detail)
        for event in events
        if event["kind"] == "checkpoint"
    }
    stalls = [float(detail["stall_s"]) for _, detail in saves.values() if "stall_s" in detail]
    times = [saves[entry.name][0] - entry.created_s for entry in CheckpointStore(run).entries() if entry.name in saves]
    ends = [incident for incident in incidents(run) if incident.kind not in ("rollback", "driver")]
    hang_s = run.recipe().resilience.hang_s
    model = replace(model, hang_s=hang_s)
    if starts:
        model = replace(model, restart_s=spent["startup"] / starts)
    if unheard := sum(incident.kind in ("lost", "memory", "preemption") for incident in ends):
        hangs = sum(incident.kind == "hang" for incident in ends)
        detect_s = max(spent["hung"] - hangs * hang_s, 0.0) / unheard
        model = replace(model, detect_s=detect_s, wait_s=spent["waiting"] / unheard)
    if stalls:
        model = replace(model, stall_s=statistics.median(stalls))
    if times:
        model = replace(model, save_s=max(statistics.median(times), 0.0))
    if steady := spent["productive"] + spent["recomputed"] + spent["validation"]:
        model = replace(model, validation_share=spent["validation"] / steady)
    return model
