"""What all processes of a drill share: a folder on this machine.

    plan.json               what is going to happen
    armed-3  fired-3  lifted-3      fault 3 may strike, has struck, shall end
    slow                    there while something lasts: a notice, an outage
    notes/<attempt>-<rank>.jsonl    each worker: who it is, then the samples of each forward pass

Every raylet of a drill is on one machine, so plain files do; what matters is that they outlive a SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from longhaul.drill.faults import Fault

_SLOW = "slow"


class Plan(BaseModel):
    """What workers must know beforehand.

    Attributes:
        faults: the schedule.
        pace_s: extra time a step, so that faults hit a run in motion.
        slow_s: the same while something lasts, so that a run of a few minutes is not over by then.
        full_disk: a folder without any space; None where none could be made, files are then limited in size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    faults: tuple[Fault, ...] = ()
    pace_s: float = 0.0
    slow_s: float = 0.0
    full_disk: str | None = None


class Worker(BaseModel):
    """A worker process, in the first line of its notes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempt: int
    rank: int
    world_size: int
    pid: int
    node: str


class Note(BaseModel):
    """One forward pass of training.

    Attributes:
        time_s: when, in seconds since 1970.
        pause_s: the drill's own pause after it.
        turn: how often this process has gone back in the data (a rollback).
        positions, indices: of its samples, in the global order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    time_s: float
    pause_s: float
    turn: int
    positions: list[int]
    indices: list[int]


class Board:
    """The folder.

    Args:
        folder: an absolute path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes = folder / "notes"

    def create(self, plan: Plan) -> None:
        """Make the folder and write the plan."""
        self.notes.mkdir(parents=True)
        (self.folder / "plan.json").write_text(plan.model_dump_json(indent=1))

    def plan(self) -> Plan:
        """The plan."""
        return Plan.model_validate_json((self.folder / "plan.json").read_bytes())

    def set(self, mark: str, fault: Fault) -> bool:
        """Set a mark for a fault; whether this call did it."""
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._mark(mark, fault), os.O_CREAT | os.O_EXCL))
            return True
        return False

    def has(self, mark: str, fault: Fault) -> bool:
        """Whether a mark is set."""
        return self._mark(mark, fault).exists()

    @contextlib.contextmanager
    def slowly(self) -> Iterator[None]:
        """Within the block the run makes few steps."""
        slow = self.folder / _SLOW
        slow.touch()
        try:
            yield
        finally:
            slow.unlink(missing_ok=True)

    @property
    def slow(self) -> bool:
        """Whether something lasts."""
        return (self.folder / _SLOW).exists()

    def _mark(self, mark: str, fault: Fault) -> Path:
        return self.folder / f"{mark}-{fault.number}"
