"""Errors over HTTP as RFC 9457 problem details (`application/problem+json`), and an id on every answer.

A problem has `type` (a URN that names its kind), `title`, `status`, `detail` (this occurrence, with what to do) and
`instance` (a URN with the request's id, which is also in the server's log). Nothing of the server's inside is told.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longhaul.errors import UserError
from longhaul.serving.refusals import InvalidParameter, Overloaded, Refusal

REQUEST_ID_HEADER = "X-Request-ID"
FAILURE = "The server failed; its log has the reason by this id"
MEDIA_TYPE = "application/problem+json"

_MOST_OF_ID = 128
_IN_URN = "!$&'()*+,;=:@/~"  # beside letters, digits and - . _
_log = logging.getLogger(__name__)


class FieldProblem(BaseModel):
    """One parameter that is not valid: where it is, such as `query.top_k`, and what is wrong."""

    field: str
    problem: str


class Problem(BaseModel):
    """The body of every answer that is an error (RFC 9457)."""

    type: str = Field(examples=["urn:longhaul:problem:unknown-model"])
    title: str = Field(examples=["No such model is served"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["model 'digit': not served. Did you mean 'digits'?"])
    instance: str = Field(examples=["urn:longhaul:request:0b6ff0c2"])
    errors: list[FieldProblem] | None = None
    retry_after_s: float | None = Field(None, examples=[None])


class RequestEnvelope:
    """ASGI middleware: gives each request an id, puts it on the answer, and turns what nobody expected into a plain 500.

    Args:
        app: what is wrapped.
        stamp: whether to write the header; Ray Serve writes it itself (`RequestIdMiddleware`), and it must not come twice.
    """

    def __init__(self, app: ASGIApp, stamp: bool = True) -> None:
        self._app = app
        self._stamp = stamp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] in ("http", "websocket"):
            scope.setdefault("state", {})["request_id"] = request_id = _request_id(scope)
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_stamped(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if self._stamp:
                    message["headers"] = [*message.get("headers", []), (REQUEST_ID_HEADER.lower().encode(), request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_stamped)
        except ClientDisconnect:
            _log.info("request %s: the client left before its body was complete", request_id)
        except Exception:
            _log.exception("request %s: %s %s failed", request_id, scope["method"], scope["path"])
            if started:
                raise  # half an answer is out: only closing the connection tells the client
            answer = _response(failure_of(scope))
            await answer(scope, receive, send_stamped)


def install(app: FastAPI, *, stamp: bool = True) -> None:
    """Make `app` answer all its errors as problems, and put `RequestEnvelope` around it."""
    app.add_middleware(RequestEnvelope, stamp=stamp)
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """A route's `responses` for these statuses: problems."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"model": Problem, "content": content} for status in statuses}


def problem_of(scope: Scope, error: UserError) -> Problem:
    """What a refusal says; of an error that is none, as a bad request."""
    kind = type(error) if isinstance(error, Refusal) else Refusal
    scope["state"]["refusal"] = kind.slug  # for the count of refusals
    problem = _problem(str(scope["state"]["request_id"]), HTTPStatus(kind.status), str(error), slug=kind.slug, title=kind.title)
    return problem.model_copy(update={"retry_after_s": error.retry_after_s}) if isinstance(error, Overloaded) else problem


def failure_of(scope: Scope) -> Problem:
    """What is told where nobody expected it."""
    return _problem(str(scope["state"]["request_id"]), HTTPStatus.INTERNAL_SERVER_ERROR, FAILURE)


def refuse(scope: Scope, error: UserError) -> JSONResponse:
    """The answer that a refusal gives, with its own headers; for middleware, which exception handlers do not reach."""
    answer = _response(problem_of(scope, error))
    if isinstance(error, Refusal):
        answer.headers.update(error.headers())
    return answer


async def _user_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, UserError)
    return refuse(request.scope, error)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = [FieldProblem(field=".".join(map(str, e["loc"])), problem=str(e["msg"])) for e in error.errors()]
    problem = _problem(
        _id_of(request),
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "; ".join(f"{e.field}: {e.problem}" for e in errors),
        slug=InvalidParameter.slug,
        title=InvalidParameter.title,
        errors=errors,
    )
    return _response(problem)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """Unknown routes, wrong methods, and whatever else Starlette refuses by itself."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    detail = error.detail
    if status == HTTPStatus.NOT_FOUND:
        detail = f"{request.method} {request.url.path}: no such route. GET /docs lists them"
    elif status == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.method} {request.url.path}: this route takes other methods. GET /docs lists them"
    answer = _response(_problem(_id_of(request), status, detail))
    answer.headers.update(error.headers or {})
    return answer


def _problem(
    request_id: str,
    status: HTTPStatus,
    detail: str,
    *,
    slug: str = "",
    title: str = "",
    errors: Sequence[FieldProblem] | None = None,
) -> Problem:
    return Problem(
        type=f"urn:longhaul:problem:{slug or status.phrase.lower().replace(' ', '-')}",
        title=title or status.phrase,
        status=status,
        detail=detail,
        instance=f"urn:longhaul:request:{request_id}",
        errors=list(errors) if errors else None,
    )


def _response(problem: Problem) -> JSONResponse:
    content: dict[str, Any] = problem.model_dump(exclude_none=True)
    return JSONResponse(content, status_code=problem.status, media_type=MEDIA_TYPE)


def _id_of(request: Request) -> str:
    return str(request.state.request_id)


def _request_id(scope: Scope) -> str:
    """The client's own id, if it has one, else a new one.

    It goes into the log and into a URN (RFC 8141), so whatever is no letter of a URN is written as `%20` and the like.
    """
    for name, value in scope["headers"]:
        if name == REQUEST_ID_HEADER.lower().encode() and value:
            return quote(value[:_MOST_OF_ID], safe=_IN_URN)
    return uuid.uuid4().hex
