"""Who gets in: every route but /healthz asks for a valid token, or the server is open because only this machine reaches it.

The middleware finds out who it is; what that token allows, each route says (`needs`). So a new route is never open by mistake.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from longhaul.errors import UserError
from longhaul.serving.http.problems import refuse
from longhaul.serving.http.settings import ApiSettings
from longhaul.serving.http.tokens import Scope as TokenScope
from longhaul.serving.http.tokens import TokenWatch
from longhaul.serving.refusals import Forbidden, NotReady, Refusal, Unauthorised

OPEN_PATH = "/healthz"
_FIX = "Send `Authorization: Bearer TOKEN`, with a token from the server's operator"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """Who asks: the token's name, empty on an open server, and what it allows."""

    name: str
    scopes: frozenset[TokenScope]


class Guard:
    """Knows the tokens.

    Args:
        settings: where they are, or that there are none.

    Raises:
        UserError: the token file cannot be read.
    """

    def __init__(self, settings: ApiSettings) -> None:
        self._watch = TokenWatch(settings.tokens) if settings.tokens else None
        self._open = settings.open_loopback

    @property
    def is_open(self) -> bool:
        """Whether nobody needs a token."""
        return self._watch is None and self._open

    def identify(self, secret: str | None) -> Caller:
        """Who has that token.

        Raises:
            Unauthorised: there is no token, or not a valid one.
            NotReady: the token file cannot be read.
        """
        if self._watch is None:
            if self._open:
                return Caller("", frozenset(TokenScope))
            raise Unauthorised("this server has no token file, so it answers nobody", "Its operator gives it one")
        if secret is None:
            raise Unauthorised("there is no token", _FIX)
        try:
            entry = self._watch.current().find(secret)
        except UserError as error:
            _log.error("%s", error)
            raise NotReady("the server cannot read its token file", "Try again later") from None
        if entry is None:
            raise Unauthorised("the token is not valid", _FIX)
        return Caller(entry.name, frozenset(entry.scopes))


class Gate:
    """ASGI middleware: lets nobody pass that `Guard` does not know. A WebSocket passes; its route asks by itself.

    Args:
        app: what is guarded.
        guard: knows the tokens.
    """

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it with its body unread."""
        if scope["type"] == "http" and scope["path"].removeprefix(scope.get("root_path", "")) != OPEN_PATH:
            try:
                caller = self._guard.identify(bearer_token(Headers(scope=scope)))
            except Refusal as refusal:
                await refuse(scope, refusal)(scope, receive, send)
                return
            scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)


def bearer_token(headers: Headers) -> str | None:
    """The token of an `Authorization: Bearer` header; None without one."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" and token.strip() else None


def allow(caller: Caller, *scopes: TokenScope) -> None:
    """Refuse a caller whose token has none of these scopes.

    Raises:
        Forbidden: so it is.
    """
    if not caller.scopes.intersection(scopes):
        raise Forbidden(f"this needs a token of scope {' or '.join(scopes)}", "Ask the server's operator for one")


def needs(*scopes: TokenScope) -> Callable[[Request], Awaitable[None]]:
    """A route's dependency: one of these scopes."""

    async def check(request: Request) -> None:
        allow(request.state.caller, *scopes)

    return check
