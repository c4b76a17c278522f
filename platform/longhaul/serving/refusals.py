"""What a client can get wrong, each with its HTTP status; `serving.http.problems` turns them into problem+json."""

from __future__ import annotations

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
