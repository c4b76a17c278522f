"""Who gets in: every route but a few asks for a valid token, or the server is open because only this machine reaches it.

The middleware finds out who it is; what that token allows, each route says (`needs`). So a new route is never open by mistake.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from longhaul.errors import UserError
from longhaul.serving.http.origin import check_local
from longhaul.serving.http.problems import problem_of, refuse
from longhaul.serving.http.settings import ApiSettings
from longhaul.serving.http.tokens import Scope as TokenScope
from longhaul.serving.http.tokens import TokenWatch
from longhaul.serving.refusals import Forbidden, NotReady, Refusal, Unauthorised

OPEN_PATHS = frozenset({"/healthz", "/docs", "/openapi.json"})
"""They tell nothing that is secret, and a browser has no token to open a page with."""
_POLICY = 1008
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
    """ASGI middleware: lets nobody pass that `Guard` does not know. A WebSocket passes; its route asks for the token by itself.

    On an open server it lets nobody pass that comes from elsewhere (`origin.check_local`).

    Args:
        app: what is guarded.
        guard: knows the tokens.
    """

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it with its body unread."""
        try:
            self._check(scope)
        except Refusal as refusal:
            if scope["type"] == "http":
                await refuse(scope, refusal)(scope, receive, send)
            else:
                await WebSocketClose(_POLICY, problem_of(scope, refusal).title)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        if scope["type"] not in ("http", "websocket"):
            return
        headers = Headers(scope=scope)
        if self._guard.is_open:
            check_local(headers)
        if scope["type"] == "http" and scope["path"].removeprefix(scope.get("root_path", "")) not in OPEN_PATHS:
            scope.setdefault("state", {})["caller"] = self._guard.identify(bearer_token(headers))


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
