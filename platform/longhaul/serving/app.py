"""The Ray Serve application, `longhaul.serving.app:build`: a thin layer over `serving.http.api`.

This file and `serving.deployment` are the only ones here that know Ray.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve

from longhaul.errors import UserError
from longhaul.export.registry import Registry
from longhaul.serving.catalog import choose, load
from longhaul.serving.http.api import build_api
from longhaul.serving.loading import EngineKind

REGISTRY_VARIABLE = "LONGHAUL_REGISTRY"


class ServeArguments(BaseModel):
    """`args` of the application in a Serve config.

    Attributes:
        registry: a folder or `s3://bucket/prefix`. In place of a relative folder the variable LONGHAUL_REGISTRY counts, if the
            Ray node has it; else it is looked up where that node was started (not where the config lies).
        models: `name` or `name@version`; all that the registry has if left out.
        engine: `auto`, `onnxruntime` or `tensorrt` (`serving.loading.make_engine`).
        threads: CPU cores for each ONNX Runtime engine. Keep `models x threads` within the replica's `num_cpus`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    registry: str = "models"
    models: tuple[str, ...] = ()
    engine: EngineKind = "auto"
    threads: int = Field(1, ge=1)

    @classmethod
    def parse(cls, args: dict[str, Any]) -> ServeArguments:
        """Read `args` of a config.

        Raises:
            UserError: names the field.
        """
        try:
            return cls.model_validate(args)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise UserError(f"serve config, args.{field}: {first['msg']}", f"Known: {', '.join(cls.model_fields)}") from None

    def open_registry(self) -> Registry:
        """The registry, by this process's folder and environment.

        Raises:
            UserError: an unknown scheme.
        """
        if "://" in self.registry or Path(self.registry).is_absolute():
            return Registry(self.registry)
        return Registry(os.environ.get(REGISTRY_VARIABLE) or self.registry)


class ModelServer:
    """One replica: every model loaded, verified and warmed up before the replica counts as ready.

    Args:
        registry: its address.
        models: `name@version` of each model, so that all replicas serve the same.
        engine: which engine.
        threads: CPU cores for each ONNX Runtime engine.
    """

    def __init__(self, registry: str, models: list[str], engine: EngineKind, threads: int) -> None:
        torch.set_num_threads(threads)
        source = Registry(registry)
        self._catalog = load(source, choose(source, models), kind=engine, threads=threads)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once the constructor is through."""
        return build_api(self._catalog, stamp_request_id=False)

    async def check_health(self) -> None:
        """Called by Serve every `health_check_period_s`: runs every engine; what it raises counts against the replica."""
        await self._catalog.check()

    def __del__(self) -> None:
        """Called by Serve when the replica stops; the constructor may not have come to the end."""
        if hasattr(self, "_catalog"):
            self._catalog.close()


def build(args: dict[str, Any]) -> serve.Application:
    """The builder named in a Serve config.

    It runs once for each deployment of the config, in the cluster; what is wrong with the registry or a model's name fails
    there, before any replica starts, and the names are fixed to versions there.

    Raises:
        UserError: an argument is wrong, the registry is empty, or a model is not in it.
        IntegrityError: a manifest is damaged.
    """
    arguments = ServeArguments.parse(args)
    registry = arguments.open_registry()
    models = [f"{manifest.name}@{manifest.version}" for manifest in choose(registry, arguments.models)]
    deployment = serve.deployment(
        max_ongoing_requests=16,
        max_queued_requests=64,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        health_check_period_s=10,
        health_check_timeout_s=30,
        max_surge_percent=100,  # the default, 0, stops an old replica before the new one answers
        max_constructor_retry_count=2,  # a model that does not verify will not verify later
    )
    return deployment(serve.ingress()(ModelServer)).bind(registry.uri, models, arguments.engine, arguments.threads)
