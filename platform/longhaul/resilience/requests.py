"""What somebody asks of a run while it goes: one file in the run directory, looked at every few seconds.

Anyone who can write the storage can ask: a person (`longhaul runs pause`), a console, the scaling policy. The loop answers at
a step boundary, when all ranks agree, by deleting the file; nothing happens inside a signal handler.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from longhaul.resilience.run_directory import RunDirectory

Kind = Literal["pause", "cancel", "save"]
_FILE = "request.json"


class Request(BaseModel):
    """One wish.

    Attributes:
        kind: `pause`: save and end, to be resumed by name; `cancel`: end as it stands; `save`: save, and hold still a moment.
        id: so that an answer never deletes a later request.
        time_s: when, in seconds since 1970.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    id: str
    time_s: float


class StopRequested(Exception):
    """Somebody asks the run to end here; raised on all ranks at the same step."""

    def __init__(self, request: Request) -> None:
        super().__init__(request.kind)
        self.request = request


def ask(run: RunDirectory, kind: Kind) -> Request:
    """Put a request; one that a person has put stands before a mere `save`."""
    standing = asked(run)
    if kind == "save" and standing is not None and standing.kind != "save":
        return standing
    request = Request(kind=kind, id=uuid.uuid4().hex, time_s=time.time())
    run.storage.write_bytes(_FILE, (request.model_dump_json() + "\n").encode())
    return request


def asked(run: RunDirectory) -> Request | None:
    """The request that waits for its answer, if any; an unreadable file asks for nothing."""
    try:
        return Request.model_validate_json(run.storage.read_bytes(_FILE))
    except (FileNotFoundError, ValidationError):
        return None


def answered(run: RunDirectory, request: Request | None = None) -> None:
    """Take away `request`, or whatever stands there."""
    standing = asked(run)
    if request is None or (standing is not None and standing.id == request.id):
        with contextlib.suppress(FileNotFoundError):
            run.storage.delete_file(_FILE)
