"""Incidents: one page for every restart and rollback, so that nobody has to read logs of a node that is gone."""

from __future__ import annotations

import contextlib
import time
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from longhaul.resilience.flight import FlightState
from longhaul.resilience.run_directory import RunDirectory

FailureClass = Literal["preemption", "capacity", "lost", "hang", "memory", "user", "rollback", "driver"]
_FOLDER = "incidents"


class Incident(BaseModel):
    """What happened, to whom first, and what it cost.

    Attributes:
        number: counts from 1.
        segment: the line of history that it ended.
        what: in one sentence.
        rank, host: of the first to fail, where it is known.
        step: the furthest step that the run had reached.
        log: the last lines of that rank.
        stacks: of all its threads, for a hang.
        retried: whether the run went on by itself.
    """

    model_config = ConfigDict(extra="forbid")

    number: int
    time_s: float
    segment: int
    kind: FailureClass
    what: str
    rank: int | None = None
    host: str | None = None
    step: int = 0
    log: list[str] = []
    stacks: str | None = None
    retried: bool = True


def record_incident(
    run: RunDirectory, kind: FailureClass, what: str, *, segment: int, first: FlightState | None, retried: bool
) -> Incident:
    """Write the page; `first` are the last words of the rank that failed first."""
    incident = Incident(
        number=max((other.number for other in incidents(run)), default=0) + 1,
        time_s=time.time(), segment=segment, kind=kind, what=what, retried=retried,
        rank=first.rank if first else None, host=first.host if first else None, step=first.step if first else 0,
        log=first.log if first else [], stacks=first.stacks if first else None,
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


def first_to_fail(states: list[FlightState]) -> FlightState | None:
    """Who of a group began its end: one with stacks that did not wait for others, else the one with the oldest sign of life.

    In a hang every rank stands still; the one to blame is the one that the others wait for in the step's collective, so one
    that is not in a step, or entered it last.
    """
    if not states:
        return None
    hung = [state for state in states if state.stacks is not None]
    if hung:
        return max(hung, key=lambda state: (state.state != "step", -state.step, state.state_since_ns))
    return min(states, key=lambda state: state.time_ns)
