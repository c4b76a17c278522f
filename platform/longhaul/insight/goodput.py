"""Where a run's time went, and what each of its incidents cost; from its ledger, incidents and events."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from longhaul.errors import UserError
from longhaul.insight.runs import run_row
from longhaul.resilience.accounting import Account, account
from longhaul.resilience.incidents import Incident, incidents
from longhaul.resilience.ledger import TimeClass, read_ledger
from longhaul.resilience.run_directory import RunDirectory

LOST: tuple[TimeClass, ...] = ("hung", "startup", "waiting", "recomputed")
"""The classes of time that an incident costs."""
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "V100": 125e12,
    "T4": 65e12,
}
"""Dense fp16 or bf16 operations a second, from NVIDIA's data sheets; the first name that a device's holds counts."""
_BACK = ("resumed", "rollback", "started")


@dataclass(frozen=True)
class IncidentCost:
    """An incident and its price.

    Attributes:
        steps_lost: the step it happened at, less the one that the run went on from; None where it has not gone on.
        seconds_lost: from the last sign of rank 0 before it until its step was reached again, or the next incident came, or
            the ledger ends: the time that was `hung`, `startup`, `waiting` or `recomputed`.
        over: whether its step was reached again.
    """

    incident: Incident
    steps_lost: int | None
    seconds_lost: float
    over: bool


def run_account(run: RunDirectory, *, now_s: float | None = None) -> Account:
    """A run's time by class; up to now, where it goes on."""
    now = time.time() if now_s is None else now_s
    goes = run_row(run, now_s=now).status == "running"
    return account(read_ledger(run), until_ns=int(now * 1e9) if goes else None)


def utilisation(run: RunDirectory, spent: Account) -> tuple[float, float | None] | None:
    """What the model's own operations came to in productive time; None where they could not be counted.

    Returns:
        (operations a second of all workers, their share of what the devices could do at most: MFU, or None on a device whose
        peak is not known here)
    """
    summary = run.summary()
    if summary.flops_per_sample is None or spent.samples_per_s is None:
        return None
    done = summary.flops_per_sample * spent.samples_per_s
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in summary.device), None)
    return done, None if peak is None or not summary.workers else done / (peak * summary.workers)


def incident_costs(run: RunDirectory, *, now_s: float | None = None) -> list[IncidentCost]:
    """The run's incidents with what each has cost, oldest first."""
    found = incidents(run)
    if not found:
        return []
    spent = run_account(run, now_s=now_s)
    spans = [row for row in read_ledger(run).to_pylist() if row["source"] == "worker"]
    back = sorted((row for row in run.events().to_pylist() if row["kind"] in _BACK), key=lambda row: row["time_s"])
    ends = [incident.time_s for incident in found[1:]] + [float("inf")]
    return [_cost(incident, end, spent, spans, back) for incident, end in zip(found, ends, strict=True)]


def _cost(
    incident: Incident, next_s: float, spent: Account, spans: list[dict[str, Any]], back: list[dict[str, Any]]
) -> IncidentCost:
    """Args: `next_s`, when the next incident came; `back`, the events by which the run went on, oldest first."""
    at = int(incident.time_s * 1e9)
    since = max((row["end_ns"] for row in spans if row["end_ns"] <= at), default=at)
    furthest = max([1, incident.step, *(row["step"] for row in spans if row["end_ns"] <= since)])
    reached = [row["end_ns"] for row in spans if row["segment"] > incident.segment and row["step"] >= furthest]
    until = min([*(end for end in reached if end > at), next_s * 1e9])
    lost = 0
    for interval in spent.intervals:
        if since <= interval.start_ns and interval.end_ns <= until:
            lost += sum(interval.shares.get(name, 0) for name in LOST)
        elif interval.start_ns < until < interval.end_ns and interval.start_ns >= since:  # a gap that holds the next incident
            whole = sum(interval.shares.get(name, 0) for name in LOST)
            lost += int(whole * (until - interval.start_ns) / (interval.end_ns - interval.start_ns))
    went_on = next((row["step"] for row in back if row["time_s"] >= incident.time_s), None)
    steps = None if went_on is None else max(incident.step - went_on, 0)
    return IncidentCost(incident, steps, lost / 1e9, over=any(end > at for end in reached))


def incident_cost(run: RunDirectory, number: int) -> IncidentCost:
    """One incident.

    Raises:
        UserError: the run has none of that number.
    """
    costs = {cost.incident.number: cost for cost in incident_costs(run)}
    if number not in costs:
        there = f"It has {min(costs)} to {max(costs)}" if costs else "It has none"
        raise UserError(f"run {run.name}: no incident {number}", f"{there}; see `longhaul runs incidents {run.uri}`")
    return costs[number]
