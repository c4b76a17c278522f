"""Reading a request's body within bounds: what declares too much is refused unread, what sends too much is cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.types import Message, Receive

from longhaul.serving.refusals import BodyTooLarge, Refusal, SlowBody, UnsupportedContentType

Spool = SpooledTemporaryFile[bytes]
_LEAST_BYTES_PER_S = 16_384  # a body that drips would keep its place in the server for ever
_BLOCK = 1 << 20  # written at a time: fewer steps onto a thread


@dataclass(frozen=True)
class BodyLimits:
    """Bounds on one body.

    Attributes:
        size: bytes.
        memory: a longer body waits on disk.
        idle_s: the longest pause between two parts of it.
        refusal: what a body that is too large raises.
        fix: what its sender should do.
    """

    size: int
    memory: int
    idle_s: float
    refusal: type[Refusal] = BodyTooLarge
    fix: str = "Send less at a time, or a reference to a file that the server can read"


def media_type(request: Request) -> str:
    """The content type without its parameters, in small letters; empty if there is none."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


async def read_body(request: Request, limits: BodyLimits) -> Spool:
    """The whole body; the caller closes it. Its position is the start.

    Raises:
        Refusal: too large, too slow, or with a content encoding.
        ClientDisconnect: the client left.
    """
    body: Spool = SpooledTemporaryFile(max_size=limits.memory)  # noqa: SIM115 - the caller's
    try:
        written = 0
        waiting = bytearray()  # for the disk
        async for block in Request(request.scope, bounded(request, limits)).stream():
            if written + len(waiting) + len(block) <= limits.memory:
                written += body.write(block)
                continue
            waiting += block
            if len(waiting) >= _BLOCK:
                await asyncio.to_thread(body.write, waiting)
                written += len(waiting)
                waiting = bytearray()
        if waiting:
            await asyncio.to_thread(body.write, waiting)
        body.seek(0)
    except BaseException:
        body.close()
        raise
    return body


@asynccontextmanager
async def read_form(request: Request, limits: BodyLimits, *, text_bytes: int) -> AsyncIterator[FormData]:
    """The fields of a form; files above a megabyte wait on disk and are gone at the end.

    Args:
        request: with a multipart body.
        limits: of the body as a whole.
        text_bytes: of a field that is not sent as a file.

    Raises:
        Refusal: as for `read_body`.
        HTTPException: it is no form.
    """
    bound = Request(request.scope, bounded(request, limits))
    async with bound.form(max_files=4, max_fields=8, max_part_size=text_bytes) as form:
        yield form


async def field_bytes(form: FormData, name: str, limit: int, refusal: type[Refusal] = BodyTooLarge) -> bytes | None:
    """One field of a form, whether it came as a file or as text; None if there is none.

    Raises:
        refusal: it is longer than `limit` bytes.
    """
    field = form.get(name)
    if field is None:
        return None
    content = await field.read(limit + 1) if isinstance(field, UploadFile) else field.encode()
    if len(content) > limit:
        raise refusal(f"the field {name!r} has more than {limit:,} bytes", "Send less")
    return content


def bounded(request: Request, limits: BodyLimits) -> Receive:
    """The request's `receive`, which raises once the body breaks a bound.

    Raises:
        Refusal: already at this call, where the headers alone break one.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedContentType(f"content encoding {encoding!r}: not taken", "Send the body as it is")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limits.size:
        raise limits.refusal(f"the body has {int(declared[:20]):,} bytes, the limit is {limits.size:,}", limits.fix)
    received, waited = 0, 0.0
    clock = asyncio.get_running_loop().time

    async def receive() -> Message:
        nonlocal received, waited
        began = clock()
        try:
            async with asyncio.timeout(limits.idle_s):  # wait_for would make a task for each block
                message = await request.receive()
        except TimeoutError:
            raise SlowBody(f"no more of the body came for {limits.idle_s:g} s", "Send it in one go") from None
        received += len(message.get("body", b""))
        waited += clock() - began
        if waited > limits.idle_s + received / _LEAST_BYTES_PER_S:
            raise SlowBody(f"{received:,} bytes in {waited:.3g} s are too slow", "Send it in one go")
        if received > limits.size:
            raise limits.refusal(f"the body has more than {limits.size:,} bytes", limits.fix)
        return message

    return receive
