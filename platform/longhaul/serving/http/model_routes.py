"""`GET /v1/models` and below: what is served, how it does, and what a candidate in the shadow would have answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, Field

from longhaul.serving.detection.shadow import ShadowReport
from longhaul.serving.http.guard import needs
from longhaul.serving.http.problems import documented
from longhaul.serving.http.tokens import Scope
from longhaul.serving.models.catalog import Catalog
from longhaul.serving.models.served import Served
from longhaul.serving.refusals import NoShadow


class ModelSummary(BaseModel):
    """A model that is served; `version` answers where none is asked for.

    Attributes:
        state: `shed` means that it is left out until the deadline is kept again.
        failure: why its last health check failed.
        refused: why a newer version was not taken.
        seconds_per_tile: what it costs, as learned; detectors only.
    """

    name: str = Field(examples=["wifi_bluetooth"])
    version: str = Field(examples=["3"])
    versions: list[str] = Field(examples=[["3"]])
    task: str = Field(examples=["detection"])
    classes: int = Field(examples=[2])
    engine: str = Field(examples=["onnxruntime"])
    state: Literal["serving", "shed", "failed"] = Field(examples=["serving"])
    failure: str | None = Field(None, examples=[None])
    refused: str | None = Field(None, examples=[None])
    seconds_per_tile: float | None = Field(None, examples=[0.021])


class ModelList(BaseModel):
    """All models, by name."""

    models: list[ModelSummary]


class ModelDetail(ModelSummary):
    """Everything that a client may want to know of a model; `manifest` is the registry's own record of this version."""

    labels: list[str] = Field(examples=[["wifi", "bluetooth"]])
    max_batch: int = Field(examples=[8])
    manifest: dict[str, Any]


Name = Annotated[str, Path(max_length=128, description="The model's name.", examples=["digits"])]
Version = Annotated[
    str | None, Query(max_length=128, description="A version that is served; left out, the default one.", examples=["3"])
]


def model_router(catalog: Catalog) -> APIRouter:
    """The routes, over what is served."""
    router = APIRouter(prefix="/v1/models", dependencies=[Depends(needs(Scope.PREDICT))], tags=["models"])

    @router.get("", summary="The models that are served", responses=documented(401, 403))
    async def list_models() -> ModelList:
        defaults = {model.manifest.name: model for model in reversed(catalog.models())}
        return ModelList(models=[_summary(catalog, defaults[name]) for name in sorted(defaults)])

    @router.get("/{name}", summary="One model: classes, input, metrics", responses=documented(401, 403, 404, 422))
    async def show_model(name: Name, version: Version = None) -> ModelDetail:
        model = catalog.find(name, version)
        manifest = model.manifest
        return ModelDetail(
            **_summary(catalog, model).model_dump(),
            labels=list(manifest.signature.classes),
            max_batch=model.engine.max_batch,
            manifest=manifest.model_dump(mode="json"),
        )

    @router.get(
        "/{name}/shadow",
        summary="A model's candidate, compared with it on live traffic",
        responses=documented(401, 403, 404, 422),
    )
    async def show_shadow(name: Name) -> ShadowReport:
        catalog.find(name)
        if name not in catalog.shadows:
            raise NoShadow(f"model {name!r}: has no candidate in the shadow", "Its operator gives it one")
        return catalog.shadows[name].report()

    return router


def _summary(catalog: Catalog, model: Served) -> ModelSummary:
    manifest = model.manifest
    state = None
    if catalog.ensemble is not None:
        this = (manifest.name, manifest.version)
        state = next((one for one in catalog.ensemble.states() if (one.name, one.version) == this), None)
    return ModelSummary(
        name=manifest.name,
        version=manifest.version,
        versions=catalog.versions(manifest.name),
        task=manifest.signature.task,
        classes=len(manifest.signature.classes),
        engine=model.engine.kind,
        state="failed" if model.failure else "shed" if state is not None and state.shed else "serving",
        failure=model.failure or None,
        refused=catalog.refused.get(manifest.name),
        seconds_per_tile=None if state is None else state.seconds_per_sample,
    )
