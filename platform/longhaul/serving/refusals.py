"""What a client can get wrong, each with its HTTP status; `serving.http.problems` turns them into problem+json."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection
from typing import ClassVar

from longhaul.errors import UserError


class Refusal(UserError):
    """A request that cannot be answered.

    Attributes:
        status: the HTTP status.
        slug: the last part of the problem's type.
        title: what this kind of problem is; the same for every occurrence.
    """

    status: ClassVar[int] = 400
    slug: ClassVar[str] = "bad-request"
    title: ClassVar[str] = "The request cannot be answered"

    def headers(self) -> dict[str, str]:
        """What the answer's headers say beside the problem."""
        return {}


class BrokenImage(Refusal):
    """The body is empty, or no image that can be decoded."""

    slug = "broken-image"
    title = "The body is not a readable image"


class ImageTooLarge(Refusal):
    """The body has too many bytes, or the picture too many pixels."""

    status = 413
    slug = "image-too-large"
    title = "The image is too large"


class UnsupportedContentType(Refusal):
    """The body is neither an image nor a form that holds one."""

    status = 415
    slug = "unsupported-content-type"
    title = "The content type is not supported"


class UnknownModel(Refusal):
    """No model of that name, or not in that version."""

    status = 404
    slug = "unknown-model"
    title = "No such model is served"

    @classmethod
    def among(cls, name: str, served: Collection[str]) -> UnknownModel:
        """That name is none of these; tells the nearest."""
        near = difflib.get_close_matches(name, served, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        return cls(f"model {name!r}: not served", f"{hint}Served: {', '.join(served) or 'none'}")


class InvalidParameter(Refusal):
    """A parameter is out of the range that this model has."""

    status = 422
    slug = "invalid-parameter"
    title = "A parameter is not valid"


class NotReady(Refusal):
    """A model is not loaded, or its last health check failed."""

    status = 503
    slug = "not-ready"
    title = "The server is not ready"


class Unauthorised(Refusal):
    """No token, or none that is valid."""

    status = 401
    slug = "unauthorised"
    title = "A valid token is needed"

    def headers(self) -> dict[str, str]:
        """How to come with one (RFC 6750)."""
        return {"WWW-Authenticate": 'Bearer realm="longhaul"'}


class Forbidden(Refusal):
    """The token is valid, and not for this."""

    status = 403
    slug = "forbidden"
    title = "The token does not allow this"


class ForeignSite(Refusal):
    """The server is open because only this machine reaches it, and the request is another site's."""

    status = 403
    slug = "foreign-site"
    title = "The server answers this machine only"


class BodyTooLarge(Refusal):
    """The body has more bytes, or the signal more samples or tiles, than one request may bring."""

    status = 413
    slug = "body-too-large"
    title = "The request brings too much"


class BrokenSignal(Refusal):
    """Samples, metadata or an archive that cannot be used as they are."""

    slug = "broken-signal"
    title = "The signal cannot be used"


class BadReference(Refusal):
    """A reference to a place outside the allowed roots, or to one inside where there is no recording."""

    slug = "bad-reference"
    title = "The reference cannot be followed"


class WrongTask(Refusal):
    """The model is served, and for something else."""

    status = 409
    slug = "wrong-task"
    title = "The model is for another task"


class NoDetector(Refusal):
    """Detection is asked for where no detector is served."""

    status = 404
    slug = "no-detector"
    title = "No detector is served"


class Overloaded(Refusal):
    """An answer in time cannot be expected now.

    Args:
        problem: what there is too much of.
        fix: what to do.
        retry_after_s: when it may be worth another try, in seconds.
    """

    status = 503
    slug = "overloaded"
    title = "The server is busy"

    def __init__(self, problem: str, fix: str = "", *, retry_after_s: float = 1.0) -> None:
        super().__init__(problem, fix)
        self.retry_after_s = retry_after_s

    def headers(self) -> dict[str, str]:
        """When to come again, in whole seconds."""
        return {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}


class SlowBody(Refusal):
    """The body, or a stream's next message, did not come in time."""

    status = 408
    slug = "too-slow"
    title = "The client was too slow"


class NoShadow(Refusal):
    """The model has no candidate that sees its traffic."""

    status = 404
    slug = "no-shadow"
    title = "There is no candidate"


class NoWatch(Refusal):
    """An update is asked for where the registry is not followed."""

    status = 404
    slug = "no-watch"
    title = "The registry is not followed"
