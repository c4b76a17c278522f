"""The HTTP interface as a FastAPI application, buildable and testable without Ray."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile

from longhaul import __version__
from longhaul.serving.catalog import Catalog, ServedModel
from longhaul.serving.classifier import Prediction
from longhaul.serving.http import problems
from longhaul.serving.http.reference_page import render
from longhaul.serving.refusals import BrokenImage, ImageTooLarge, NotReady, UnsupportedContentType

IMAGE_FIELD = "image"
_FORM_OVERHEAD_BYTES = 64 << 10  # boundaries and headers around the picture

_ABOUT = """Classifies pictures with models from a Longhaul registry.

    curl --data-binary @picture.png -H 'Content-Type: image/png' 'http://HOST:PORT/v1/models/NAME/predict?top_k=3'

Every error is an RFC 9457 problem (`application/problem+json`); every answer carries `X-Request-ID`."""

_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_FORM_SCHEMA = {"type": "object", "required": [IMAGE_FIELD], "properties": {IMAGE_FIELD: _PICTURE["schema"]}}
_BODY = {
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
_BUSY = {"description": "The queue is full; try again after `Retry-After` seconds (answered by Ray Serve, as plain text)."}


class Answer(BaseModel):
    """The best classes of one picture, best first."""

    model: str = Field(examples=["digits"])
    version: str = Field(examples=["3"])
    predictions: list[Prediction] = Field(examples=[[{"label": "7", "index": 7, "probability": 0.9981}]])


class ModelSummary(BaseModel):
    """A model that is served; `version` answers where none is asked for."""

    name: str = Field(examples=["digits"])
    version: str = Field(examples=["3"])
    versions: list[str] = Field(examples=[["3"]])
    task: str = Field(examples=["classification"])
    classes: int = Field(examples=[10])
    engine: str = Field(examples=["onnxruntime"])


class ModelList(BaseModel):
    """All models, by name."""

    models: list[ModelSummary]


class ModelDetail(ModelSummary):
    """Everything that a client may want to know of a model; `manifest` is the registry's own record of this version."""

    labels: list[str] = Field(examples=[["0", "1"]])
    max_batch: int = Field(examples=[64])
    manifest: dict[str, Any]


class Health(BaseModel):
    """`ok`, and what answers."""

    status: str = Field(examples=["ok"])
    models: list[str] = Field(examples=[["digits@3"]])


Name = Annotated[str, Path(description="The model's name.", examples=["digits"])]
Version = Annotated[str | None, Query(description="A version that is served; left out, the default one.", examples=["3"])]
TopK = Annotated[int | None, Query(ge=1, description="How many classes; 5 (or all, of fewer) if left out.", examples=[3])]


class _Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """FastAPI lists an error's model as JSON too; these are answered as problems only."""
        document = super().openapi()
        for item in document["paths"].values():
            for operation in item.values():
                for response in operation["responses"].values():
                    content = response.get("content", {})
                    if problems.MEDIA_TYPE in content:
                        content.pop("application/json", None)
        return document


def build_api(catalog: Catalog, *, stamp_request_id: bool = True) -> FastAPI:
    """The application over loaded models.

    Args:
        catalog: what is served; the caller closes it.
        stamp_request_id: False where the server in front writes `X-Request-ID` itself, as Ray Serve does.
    """
    app = _Api(title="Longhaul", version=__version__, description=_ABOUT, docs_url=None, redoc_url=None)
    problems.install(app, stamp=stamp_request_id)
    _add_models(app, catalog)
    _add_predict(app, catalog)
    _add_server(app, catalog)
    return app


def _add_models(app: FastAPI, catalog: Catalog) -> None:
    @app.get("/v1/models", summary="The models that are served", tags=["models"])
    async def list_models() -> ModelList:
        defaults = {model.manifest.name: model for model in reversed(catalog.models())}
        return ModelList(models=[ModelSummary(**_summary(catalog, defaults[name])) for name in sorted(defaults)])

    @app.get("/v1/models/{name}", summary="One model: classes, input, metrics", tags=["models"], responses=_errors(404, 422))
    async def show_model(name: Name, version: Version = None) -> ModelDetail:
        model = catalog.find(name, version)
        manifest = model.manifest
        return ModelDetail(
            **_summary(catalog, model),
            labels=list(manifest.signature.classes),
            max_batch=model.engine.max_batch,
            manifest=manifest.model_dump(mode="json"),
        )


def _add_predict(app: FastAPI, catalog: Catalog) -> None:
    @app.post(
        "/v1/models/{name}/predict",
        summary="Classify one picture",
        tags=["predict"],
        openapi_extra=_BODY,
        responses=_errors(400, 404, 413, 415, 422, 500) | {429: _BUSY},
    )
    async def predict(request: Request, name: Name, top_k: TopK = None, version: Version = None) -> Answer:
        model = catalog.find(name, version)
        model.classifier.check_top_k(top_k)  # before the body is read
        body = await _picture(request, model.classifier.limits.bytes)
        predictions = await model.predict(body, top_k)
        return Answer(model=model.manifest.name, version=model.manifest.version, predictions=predictions)


def _add_server(app: FastAPI, catalog: Catalog) -> None:
    @app.get("/healthz", summary="Whether every model is loaded and well", tags=["server"], responses=_errors(503))
    async def healthz() -> Health:
        if catalog.problem:
            raise NotReady(catalog.problem, "Wait, or look into the server's log")
        return Health(status="ok", models=[f"{m.manifest.name}@{m.manifest.version}" for m in catalog.models()])

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(render(app.openapi()))


def _summary(catalog: Catalog, model: ServedModel) -> dict[str, Any]:
    manifest = model.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "versions": catalog.versions(manifest.name),
        "task": manifest.signature.task,
        "classes": len(manifest.signature.classes),
        "engine": model.engine.kind,
    }


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"model": problems.Problem, "content": content} for status in statuses}


async def _picture(request: Request, limit: int) -> bytes:
    """The picture's bytes, from the body or from the form's field; never holds more than the limit."""
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type.startswith("image/") or media_type == "application/octet-stream":
        return await _body(request, limit)
    if media_type == "multipart/form-data":
        return await _form_field(request, await _body(request, limit + _FORM_OVERHEAD_BYTES))
    fix = f"Send the picture as the body with `Content-Type: image/png`, or as the form field `{IMAGE_FIELD}`"
    raise UnsupportedContentType(f"content type {media_type or '(none)'!r}: not an image", fix)


async def _body(request: Request, limit: int) -> bytes:
    """The body, refused as soon as it is known to be too long."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise ImageTooLarge(f"the body has {int(declared):,} bytes, the limit is {limit:,}", "Send a smaller picture")
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > limit:
            raise ImageTooLarge(f"the body has more than {limit:,} bytes", "Send a smaller picture")
    return bytes(body)


async def _form_field(request: Request, body: bytes) -> bytes:
    async def replay() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async with Request(request.scope, replay).form(max_files=1, max_fields=8) as form:
        field = form.get(IMAGE_FIELD)
        if not isinstance(field, UploadFile):
            fix = f"Send it as `curl -F {IMAGE_FIELD}=@picture.png`"
            raise BrokenImage(f"the form has no file in the field {IMAGE_FIELD!r}", fix)
        return await field.read()
