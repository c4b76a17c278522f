"""`POST /v1/models/{name}/predict`: a picture in, its best classes out."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field

from longhaul.serving.http.guard import needs
from longhaul.serving.http.intake.bodies import BodyLimits, field_bytes, media_type, read_body, read_form
from longhaul.serving.http.model_routes import Name, Version
from longhaul.serving.http.problems import documented
from longhaul.serving.http.settings import ApiSettings
from longhaul.serving.http.tokens import Scope
from longhaul.serving.models.catalog import Catalog
from longhaul.serving.models.classifier import Prediction
from longhaul.serving.models.served import Served, ServedClassifier
from longhaul.serving.refusals import BrokenImage, ImageTooLarge, UnsupportedContentType, WrongTask

IMAGE_FIELD = "image"
_FORM_OVERHEAD_BYTES = 64 << 10  # boundaries and headers around the picture
_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_FORM_SCHEMA = {"type": "object", "required": [IMAGE_FIELD], "properties": {IMAGE_FIELD: _PICTURE["schema"]}}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": f"The picture: as the whole body, or as the field `{IMAGE_FIELD}` of a form.",
        "content": {
            "image/*": _PICTURE,
            "application/octet-stream": _PICTURE,
            "multipart/form-data": {"schema": _FORM_SCHEMA},
        },
    }
}

TopK = Annotated[int | None, Query(ge=1, description="How many classes; 5 (or all, of fewer) if left out.", examples=[3])]


class Answer(BaseModel):
    """The best classes of one picture, best first."""

    model: str = Field(examples=["digits"])
    version: str = Field(examples=["3"])
    predictions: list[Prediction] = Field(examples=[[{"label": "7", "index": 7, "probability": 0.9981}]])


def classify_router(catalog: Catalog, settings: ApiSettings) -> APIRouter:
    """The route, over the models that answer it."""
    router = APIRouter(dependencies=[Depends(needs(Scope.PREDICT))], tags=["classify"])

    @router.post(
        "/v1/models/{name}/predict",
        summary="Classify one picture",
        openapi_extra=_BODY,
        responses=documented(400, 401, 403, 404, 408, 409, 413, 415, 422, 500),
    )
    async def predict(request: Request, name: Name, top_k: TopK = None, version: Version = None) -> Answer:
        model = _classifier(catalog.find(name, version))
        model.classifier.check_top_k(top_k)  # before the body is read
        body = await _picture(request, model.classifier.limits.bytes, settings)
        predictions = await model.predict(body, top_k)
        return Answer(model=model.manifest.name, version=model.manifest.version, predictions=predictions)

    return router


def _classifier(model: Served) -> ServedClassifier:
    if not isinstance(model, ServedClassifier):
        task = model.manifest.signature.task
        raise WrongTask(f"model {model.manifest.name!r}: is of task {task}", "Detectors answer at POST /v1/detect")
    return model


async def _picture(request: Request, limit: int, settings: ApiSettings) -> bytes:
    """The picture's bytes, from the body or from the form's field; never holds more than the limit."""
    kind = media_type(request)
    memory, idle_s = settings.limits.memory_bytes, settings.body_idle_s
    if kind.startswith("image/") or kind == "application/octet-stream":
        with await read_body(request, BodyLimits(limit, memory, idle_s, ImageTooLarge, "Send a smaller picture")) as body:
            return body.read()
    if kind == "multipart/form-data":
        limits = BodyLimits(limit + _FORM_OVERHEAD_BYTES, memory, idle_s, ImageTooLarge, "Send a smaller picture")
        async with read_form(request, limits, text_bytes=_FORM_OVERHEAD_BYTES) as form:
            field = await field_bytes(form, IMAGE_FIELD, limit, ImageTooLarge) if IMAGE_FIELD in form else None
        if field is None:
            fix = f"Send it as `curl -F {IMAGE_FIELD}=@picture.png`"
            raise BrokenImage(f"the form has no file in the field {IMAGE_FIELD!r}", fix)
        return field
    fix = f"Send the picture as the body with `Content-Type: image/png`, or as the form field `{IMAGE_FIELD}`"
    raise UnsupportedContentType(f"content type {kind[:100] or '(none)'!r}: not an image", fix)
