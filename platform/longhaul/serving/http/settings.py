"""What whoever runs the server decides of its HTTP interface: who may ask, what may be asked for, and how much of it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

_MEBIBYTE = 1 << 20


class Limits(BaseModel):
    """Bounds on what one request, or one message of a stream, may bring.

    Attributes:
        body_bytes: of a request's body to detect on.
        memory_bytes: a longer body waits on disk and not in memory.
        samples: of one request.
        decoded_bytes: of all chunks that are looked at on this replica at the same time, 8 a sample; others wait.
        stream_bytes: of all chunks that streams on this replica receive at the same time, as they are sent.
        tiles: that one request's signal gives, each model runs on all of them.
        metadata_bytes: of SigMF metadata.
        archive_members: files in a SigMF archive.
        least_rate_hz, most_rate_hz: sample rates that are believed.
        message_bytes: of one WebSocket message.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    body_bytes: int = Field(256 * _MEBIBYTE, gt=0)
    memory_bytes: int = Field(16 * _MEBIBYTE, ge=0)
    samples: int = Field(128_000_000, gt=0)
    decoded_bytes: int = Field(1024 * _MEBIBYTE, gt=0)
    stream_bytes: int = Field(1024 * _MEBIBYTE, gt=0)
    tiles: int = Field(256, gt=0)
    metadata_bytes: int = Field(8 * _MEBIBYTE, gt=0)
    archive_members: int = Field(16, gt=1)
    least_rate_hz: float = Field(1e3, gt=0)
    most_rate_hz: float = Field(1e10, gt=0)
    message_bytes: int = Field(8 * _MEBIBYTE, gt=0)


class StreamSettings(BaseModel):
    """How long a stream may be silent, and how many there may be.

    Attributes:
        first_message_s: until its first message.
        idle_s: between messages, while the server waits for one.
        most: streams at a time, of this replica.
        strangers: sockets at a time that have not said yet whose they are; one more, and the oldest is closed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_message_s: float = Field(10.0, gt=0)
    idle_s: float = Field(60.0, gt=0)
    most: int = Field(16, gt=0)
    strangers: int = Field(32, gt=0)


class ApiSettings(BaseModel):
    """The HTTP interface.

    Attributes:
        tokens: the token file (`longhaul token new`); with one, every route but /healthz and /docs asks for a token.
        open_loopback: answer without tokens who addresses the server as this machine. Only for an address that nobody else can
            reach; without it and without `tokens` everything but /healthz and /docs is refused.
        roots: where references may point: folders, and `s3://bucket/prefix`.
        least_deadline_s: the shortest deadline that a request may ask for: one that an idle server could keep.
        max_deadline_s: the longest one.
        body_idle_s: the longest pause in the middle of a body.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: Path | None = None
    open_loopback: bool = False
    roots: tuple[str, ...] = ()
    limits: Limits = Limits()
    least_deadline_s: float = Field(0.01, gt=0)
    max_deadline_s: float = Field(60.0, gt=0)
    body_idle_s: float = Field(30.0, gt=0)
    streams: StreamSettings = StreamSettings()

    @field_validator("roots")
    @classmethod
    def _roots_are_places(cls, roots: tuple[str, ...]) -> tuple[str, ...]:
        for root in roots:
            remote = root.startswith("s3://")
            if remote and not root.removeprefix("s3://").strip("/"):
                raise ValueError(f"root {root!r} names no bucket")
            if not remote and ("://" in root or not Path(root).is_absolute()):
                raise ValueError(f"root {root!r} is neither an absolute path nor s3://bucket/prefix")
        return roots
