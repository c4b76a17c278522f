"""How asking a server can fail, in words: it refuses, it is busy, nobody is there."""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
from websockets.exceptions import ConnectionClosed

from longhaul.errors import LonghaulError, UserError

_BUSY = (429, 503)
_LOST = (500, 502, 503)  # in a proxy's words, without a problem: its replica is gone
_LEAST_WAIT_S = 0.1


class Refused(LonghaulError):
    """The server answered with a problem (RFC 9457), or something that is none.

    Attributes:
        status: the HTTP status, or the WebSocket's close code.
        title: what kind of problem it is.
        detail: this occurrence, with what to do.
        kind: the last part of the problem's type, such as `unknown-model`; empty where the answer has none.
        retry_after_s: how long the server wants to be left alone, where it says so.
    """

    exit_code = 1

    def __init__(self, status: int, title: str, detail: str = "", kind: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(f"the server refused ({status}): {title}{': ' + detail if detail else ''}")
        self.status = status
        self.title = title
        self.detail = detail
        self.kind = kind
        self.retry_after_s = retry_after_s


class Unreachable(UserError):
    """Nobody answers at the address, or the answer breaks off."""


@contextlib.contextmanager
def ending_told(url: str) -> Iterator[None]:
    """The ways in which a WebSocket may end, in words."""
    try:
        yield
    except TimeoutError:
        raise Unreachable(f"{url}: the stream fell silent", "Ask again; the server's log says more") from None
    except ConnectionClosed as error:
        if error.rcvd is None:
            raise Unreachable(f"{url}: the connection broke off in the stream", "Ask again; the server's log says more") from None
        raise Refused(error.rcvd.code, error.rcvd.reason or "the stream was ended") from None


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> Refused:
    """A problem, or the plain text of a proxy or of Ray Serve."""
    after = headers.get("Retry-After", "")
    retry_after_s = float(after) if re.fullmatch(r"\d+(\.\d+)?", after) else None
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"title": body[:200].decode(errors="replace").strip() or httpx.codes.get_reason_phrase(status)}
    return from_problem(status, problem, retry_after_s)


def from_problem(status: int, problem: Mapping[str, Any], retry_after_s: float | None) -> Refused:
    """A problem's fields as an exception; the header `Retry-After` counts before the problem's own word."""
    said = problem.get("retry_after_s")
    if retry_after_s is None and isinstance(said, (int, float)) and math.isfinite(said) and said >= 0:
        retry_after_s = float(said)
    kind = str(problem.get("type", "")).rpartition(":")[2]
    return Refused(status, str(problem.get("title", "")), str(problem.get("detail", "")), kind, retry_after_s)


class Attempts:
    """How often one request is sent: while a busy server asks for patience, and once more where its connection broke.

    A replica that dies takes what it has in work with it, and no proxy can hide that. Detection changes nothing, so the
    same may be asked again.

    Args:
        patience_s: how long in all a busy server is asked again.
    """

    def __init__(self, patience_s: float) -> None:
        self._until = time.monotonic() + patience_s
        self._broken = False

    def refused(self, refused: Refused) -> None:
        """Wait for as long as a busy server wants, or a moment where a proxy lost its replica; raises where that is of no use."""
        if refused.status in _BUSY and refused.retry_after_s is not None:
            wait_s = max(refused.retry_after_s, _LEAST_WAIT_S)
            if time.monotonic() + wait_s > self._until:
                raise refused from None
            time.sleep(wait_s)
        elif refused.status in _LOST and not refused.kind:
            self.broke(refused)
        else:
            raise refused from None

    def broke(self, error: LonghaulError) -> None:
        """Wait a moment before the one repetition after a connection that broke; raises the error the second time."""
        if self._broken:
            raise error from None
        self._broken = True
        time.sleep(_LEAST_WAIT_S)


def unreachable(url: str, error: Exception) -> Unreachable:
    """Nobody could be spoken to."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return Unreachable(f"{url}: nobody answers ({reason})", "Start it with `longhaul serve`, or give its address")


def not_ours(url: str, reason: str) -> Unreachable:
    """Something answers, and it is no Longhaul server."""
    return Unreachable(f"{url}: answered with something else than a Longhaul server does ({reason})", "Give a server's address")
