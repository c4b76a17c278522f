"""Incidents: one page for every restart and rollback, so that nobody has to read logs of a node that is gone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from longhaul.resilience.flight import FlightState
from longhaul.resilience.run_directory import RunDirectory

FailureClass = Literal["preemption", "capacity", "lost", "hang", "memory", "user", "rollback", "driver"]
_FOLDER = "incidents"
_WAITING = ("torch/distributed/", "torch/autograd/graph.py", "deepspeed/comm/")
"""Where a thread stands that waits for other ranks; the backward pass too, whose end is DDP's reduction of gradients."""
_TOP = 8  # frames


class Incident(BaseModel):
    """What happened, to whom first, and what it cost.

    Attributes:
        number: counts from 1.
        segment, attempt: the line of history that it ended.
        what: in one sentence.
        rank, host: of the first to fail, where it is known.
        step: the furthest step that this line had reached.
        resumed: the step from which the run went on, where it is known here; else the run's events tell.
        log: the last lines of that rank.
        stacks: of all its threads, for a hang.
        retried: whether the run went on by itself; if not, `reason` says why.
    """

    model_config = ConfigDict(extra="forbid")

    number: int
    time_s: float
    segment: int
    attempt: str = ""
    kind: FailureClass
    what: str
    rank: int | None = None
    host: str | None = None
    step: int = 0
    resumed: int | None = None
    log: list[str] = []
    stacks: str | None = None
    retried: bool = True
    reason: str | None = None


def record_incident(
    run: RunDirectory,
    kind: FailureClass,
    what: str,
    *,
    segment: int,
    first: FlightState | None = None,
    step: int | None = None,
    resumed: int | None = None,
    reason: str | None = None,
) -> Incident:
    """Write the page.

    Args:
        run: whose.
        kind: the class.
        what: in one sentence.
        segment: the line of history that it ended.
        first: the last words of the rank that failed first.
        step: the furthest that the run had come; left out, what `first` says.
        resumed: the step that the run goes on from, where it is known already.
        reason: why the run ends; None where it goes on.
    """
    incident = Incident(
        number=max((other.number for other in incidents(run)), default=0) + 1,
        time_s=time.time(), segment=segment, attempt=first.attempt if first else "", kind=kind, what=what,
        rank=first.rank if first else None, host=first.host if first else None,
        step=step if step is not None else first.step if first else 0, resumed=resumed,
        log=first.log if first else [], stacks=first.stacks if first else None, retried=reason is None, reason=reason,
    )  # fmt: skip
    run.storage.write_bytes(f"{_FOLDER}/{incident.number:05d}.json", (incident.model_dump_json(indent=1) + "\n").encode())
    return incident


def incidents(run: RunDirectory) -> list[Incident]:
    """All of them, oldest first; unreadable ones are left out."""
    folder = run.storage.child(_FOLDER)
    found = []
    for entry in folder.list():
        with contextlib.suppress(FileNotFoundError, ValidationError):
            found.append(Incident.model_validate_json(folder.read_bytes(entry.name)))
    return sorted(found, key=lambda incident: incident.number)


def first_to_fail(states: Sequence[FlightState], named: Sequence[int] = ()) -> FlightState | None:
    """Who of a group began its end.

    Args:
        states: the last words of each rank.
        named: ranks that are known to have failed, by their exit or their error.

    In a hang every rank stands still, and who ends first is chance; to blame is the one that the others wait for: it is not
    in a collective itself, or has come less far. Otherwise it is the rank named, or the one with the oldest sign of life.
    """
    if any(state.stacks is not None for state in states):
        return max(states, key=lambda state: (not _waits(state), -state.step, state.state_since_ns))
    of_these = [state for state in states if state.rank in named] or states
    return min(of_these, key=lambda state: state.time_ns, default=None)


def _waits(state: FlightState) -> bool:
    """Whether the rank waits for others: by its training thread's stack, or, without one, by what it was at."""
    if state.stacks is None:
        return state.state == "step"
    threads = state.stacks.split("\n\n")
    training = next((thread for thread in threads if "training/loop.py" in thread), "")
    top = training.splitlines()[: _TOP + 1]
    return any(place in line for line in top for place in _WAITING)
