"""The routes about the server itself: health, metrics, the page of routes, and what its operator may ask."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from longhaul.serving.http.guard import needs
from longhaul.serving.http.metrics import Metrics
from longhaul.serving.http.problems import documented
from longhaul.serving.http.reference_page import render
from longhaul.serving.http.tokens import Scope
from longhaul.serving.models.catalog import Catalog
from longhaul.serving.refusals import NotReady, NoWatch

_METRICS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus' text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


class Health(BaseModel):
    """`ok`, and what answers."""

    status: str = Field(examples=["ok"])
    models: list[str] = Field(examples=[["digits@3"]])


class UpdateReport(BaseModel):
    """What the server serves after it looked at the registry, and what it refused."""

    models: list[str] = Field(examples=[["wifi_bluetooth@4"]])
    refused: dict[str, str] = Field(examples=[{}])


def server_router(app: FastAPI, catalog: Catalog, metrics: Metrics) -> APIRouter:
    """The routes, over what they tell of."""
    router = APIRouter(tags=["server"])

    @router.get("/healthz", summary="Whether the server can answer; asks for no token", responses=documented(503))
    async def healthz() -> Health:
        if catalog.problem:
            raise NotReady(catalog.problem, "Wait, or look into the server's log")
        return Health(status="ok", models=_served(catalog))

    @router.get(
        "/metrics",
        summary="Counters of this replica, for Prometheus",
        response_class=Response,
        responses=_METRICS | documented(401, 403),
        dependencies=[Depends(needs(Scope.PREDICT, Scope.ADMIN))],
    )
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @router.post(
        "/v1/admin/update",
        summary="Look at the registry now; a model that has moved is loaded, verified and taken",
        responses=documented(401, 403, 404),
        dependencies=[Depends(needs(Scope.ADMIN))],
        tags=["admin"],
    )
    async def update() -> UpdateReport:
        if catalog.watch is None:
            raise NoWatch("this server does not follow its registry", "Start it with watch_s above 0")
        await catalog.watch.look_now()
        return UpdateReport(models=_served(catalog), refused=dict(catalog.refused))

    @router.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(render(app.openapi()))

    return router


def _served(catalog: Catalog) -> list[str]:
    return [f"{model.manifest.name}@{model.manifest.version}" for model in catalog.models()]
