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
_COLLECTIVE = ("torch/distributed/", "torch/autograd/graph.py", "deepspeed/comm/")
"""Files at the top of a stack that waits for other ranks; a backward pass ends with DDP's reduction of gradients."""
_TOP = 8  # frames


class Incident(BaseModel):
    """What happened, to whom first, and what it cost.

    Attributes:
        number: counts from 1.
        segment, attempt: the line of history that it ended.
        what: in one sentence.
        rank, host: of the first to fail, where it is known.
        step: the furthest step that the run had reached.
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
    log: list[str] = []
    stacks: str | None = None
    retried: bool = True
    reason: str | None = None


def record_incident(
    run: RunDirectory, kind: FailureClass, what: str, *, segment: int, first: FlightState | None, retried: bool,
    step: int | None = None, reason: str | None = None,
) -> Incident:  # fmt: skip
    """Write the page.

    Args:
        run: whose.
        kind: the class.
        what: in one sentence.
        segment: the line of history that it ended.
        first: the last words of the rank that failed first.
        retried: whether the run goes on.
        step: the furthest that the run had come; left out, what `first` says.
        reason: why the run does not go on.
    """
    step = step if step is not None else first.step if first else 0
    incident = Incident(
        number=max((other.number for other in incidents(run)), default=0) + 1,
        time_s=time.time(), segment=segment, attempt=first.attempt if first else "", kind=kind, what=what, step=step,
        rank=first.rank if first else None, host=first.host if first else None,
        log=first.log if first else [], stacks=first.stacks if first else None, retried=retried, reason=reason,
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


def first_to_fail(states: Sequence[FlightState]) -> FlightState | None:
    """Who of a group began its end.

    In a hang every rank stands still, and whose watchdog fires first is chance. To blame is the one that the others wait for
    in a collective: it does not wait in one itself, or is not in a step, or has come less far, or came last. Where nobody
    hung, it is the one with the oldest sign of life.
    """
    if any(state.stacks is not None for state in states):
        return max(states, key=_blame)
    return min(states, key=lambda state: state.time_ns, default=None)


def _blame(state: FlightState) -> tuple[bool, bool, int, bool, int]:
    """Larger for a rank that is rather to blame for a hang."""
    return not _waits(state), state.state != "step", -state.step, state.stacks is not None, state.state_since_ns


def _waits(state: FlightState) -> bool:
    """Whether a rank waits for others: as the stack of its training thread says; without one, by what it was at."""
    threads = (state.stacks or "").split("\n\n")
    training = next((thread for thread in threads if "training/loop.py" in thread), None)
    if training is None:
        return state.state == "step"
    return any(place in line for line in training.splitlines()[: _TOP + 1] for place in _COLLECTIVE)
