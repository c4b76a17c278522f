"""The Ray Serve application, `longhaul.serving.app:build`: a thin layer over `serving.http.api`.

This file, `serving.deployment` and `serving.autoscaling` are the only ones here that know Ray.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from logging.handlers import MemoryHandler
from typing import Any

import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve._private.common import ReplicaState
from ray.serve._private.constants import SERVE_LOGGER_NAME
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus

from longhaul.errors import UserError
from longhaul.export.registry import Registry, split_reference
from longhaul.serving.arguments import LiveSettings, ServeArguments
from longhaul.serving.autoscaling import BUSY, MISSED, SHED
from longhaul.serving.http.api import build_api
from longhaul.serving.http.streaming.streams import Streams
from longhaul.serving.models.catalog import Catalog, choose, load, warn_of_crowding
from longhaul.serving.models.updates import RegistryWatch, check_candidates

_LOOK_FOR_STOP_S = 1.0
_log = logging.getLogger(__name__)


class ModelServer:
    """One replica: every model loaded, verified and warmed up before the replica counts as ready.

    It is unhealthy, and Serve replaces it, if a classifier fails or every detector does; a single detector that fails is told in
    each answer and in `/v1/models`, as the others are worth more than a restart.

    Args:
        arguments: of `ServeArguments`, the registry's address absolute.
        models: `name@version` of each model, so that all replicas start alike; names that are followed move on from there.
    """

    def __init__(self, arguments: dict[str, Any], models: list[str]) -> None:
        self._arguments = ServeArguments.model_validate(arguments)
        self._models = models
        self._live: LiveSettings | None = None
        self._catalog: Catalog | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once the constructor is through, on the event loop that requests are answered on."""
        _log_with_serve()
        arguments = self._arguments
        torch.set_num_threads(arguments.threads)
        registry = Registry(arguments.registry)
        catalog = await asyncio.to_thread(_load, registry, self._models, arguments)
        self._catalog = catalog
        context = serve.get_replica_context()
        _warn_of_crowding(catalog, arguments.threads)
        names = arguments.models or tuple(sorted({split_reference(model)[0] for model in self._models}))
        catalog.watch = RegistryWatch(
            registry,
            catalog,
            names,
            load=arguments,
            candidates=arguments.candidates,
            every_s=arguments.watch_s,
        )
        if arguments.watch_s > 0:
            await catalog.watch.look_now()  # this replica may start long after the names were fixed to versions
        # What is loaded stays: looking through it for garbage would stop all threads for 50 to 150 ms, again and again.
        gc.collect()
        gc.freeze()
        app = build_api(catalog, arguments.api, stamp_request_id=False, replica=context.replica_tag)
        self._start(catalog.watch.run())
        self._start(_end_streams(app.state.streams, context))
        return app

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve with `user_config`, at the start and whenever it changes; requests in flight keep what they have.

        What is wrong with a later one changes nothing and is logged: raising would make Serve restart every replica.

        Raises:
            UserError: the first one is wrong.
        """
        try:
            live = LiveSettings.parse(user_config)
        except UserError as error:
            if self._live is None:
                raise
            _log.error("%s; the settings stay as they were", error)
            return
        self._live = live
        if self._catalog is not None and self._catalog.watch is not None:
            self._catalog.configure(live.ensemble)
            self._catalog.watch.compare_by(live.shadow)

    async def check_health(self) -> None:
        """Called by Serve every `health_check_period_s`: runs every engine; what it raises counts against the replica."""
        if self._catalog is not None:
            await self._catalog.check()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve for `longhaul.serving.autoscaling`; it counts requests in work and waiting itself."""
        if self._catalog is None:
            return {}
        states = self._catalog.ensemble.states() if self._catalog.ensemble is not None else []
        return {
            BUSY: max((model.busy.take() for model in self._catalog.models()), default=0.0),
            MISSED: max((state.misses for state in states if not state.shed), default=0.0),
            SHED: float(sum(state.shed for state in states)),
        }

    def __del__(self) -> None:
        """Called by Serve when the replica stops, after its last request; the constructor may not have come to the end."""
        for task in self.__dict__.get("_tasks", ()):
            task.cancel()
        catalog: Catalog | None = self.__dict__.get("_catalog")
        if catalog is not None:
            catalog.close()
        self._catalog = None

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(_tell_failure)


def build(args: dict[str, Any]) -> serve.Application:
    """The builder named in a Serve config.

    It runs once for each deployment of the config, in the cluster; what is wrong with the registry or a model's name fails
    there, before any replica starts, and the names are fixed to versions there.

    Raises:
        UserError: an argument is wrong, the registry is empty, a model is not in it, a candidate's model is not served, or
            others can reach the address and there is no token file.
        IntegrityError: a manifest is damaged.
    """
    given = ServeArguments.parse(args)
    registry = given.open_registry()
    manifests = choose(registry, given.models)
    check_candidates(given.candidates, sorted({manifest.name for manifest in manifests}))
    models = [f"{manifest.name}@{manifest.version}" for manifest in manifests]
    arguments = given.for_host(listening_host()).model_copy(update={"registry": registry.uri})
    deployment = serve.deployment(
        # What Serve holds back, no forecast sees and no deadline ends; the replica itself refuses what it cannot answer in time.
        max_ongoing_requests=64,  # streams among them, 16 by default
        max_queued_requests=32,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        health_check_period_s=10,
        health_check_timeout_s=30,
        max_surge_percent=100,  # the default, 0, stops an old replica before the new one answers
        max_constructor_retry_count=2,  # a model that does not verify will not verify later
    )
    return deployment(serve.ingress()(ModelServer)).bind(arguments.model_dump(mode="json"), models)


def listening_host() -> str | None:
    """The address that Serve's proxies listen on, as its controller knows it; None where Serve does not run."""
    if not ray.is_initialized():
        return None
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return None
    host: str | None = ray.get(client._controller.get_http_config.remote()).host
    return host


def _load(registry: Registry, models: list[str], arguments: ServeArguments) -> Catalog:
    return load(registry, choose(registry, models), arguments)


def _warn_of_crowding(catalog: Catalog, threads: int) -> None:
    on_cpu = sum(model.engine.kind == "onnxruntime" for model in catalog.models())
    cores = float(ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0))
    if warning := warn_of_crowding(on_cpu, threads, cores):
        _log.warning("%s", warning)


def _log_with_serve() -> None:
    """What this package logs goes to the replica's own file, and at once; nothing else would handle it in a replica.

    Serve's handlers gather up to a thousand lines before they write: the files behind them are taken.
    """
    ours = logging.getLogger("longhaul")
    ours.setLevel(logging.INFO)
    ours.propagate = False
    for handler in logging.getLogger(SERVE_LOGGER_NAME).handlers:
        target = handler.target if isinstance(handler, MemoryHandler) else handler
        if target is not None and target not in ours.handlers:
            ours.addHandler(target)


async def _end_streams(streams: Streams, context: serve.context.ReplicaContext) -> None:
    """End the open streams once this replica stops: Serve would wait for them to the end of its patience, and then cut them.

    A replica is not told that it stops, so while streams are open it asks the controller.
    """
    while True:
        await asyncio.sleep(_LOOK_FOR_STOP_S)
        if streams.count and await asyncio.to_thread(_stops, context):
            await streams.close_all()


def _stops(context: serve.context.ReplicaContext) -> bool:
    """Whether Serve is taking this replica down, alone or with its application."""
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return True
    try:
        details = ray.get(client._controller.get_deployment_details.remote(context.app_name, context.deployment))
        return any(one.replica_id == context.replica_tag and one.state == ReplicaState.STOPPING for one in details.replicas)
    except RayError:  # it knows no such deployment while it builds the application anew, and once it deletes it
        application = serve.status().applications.get(context.app_name)
        return application is None or application.status == ApplicationStatus.DELETING


def _tell_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.error("a task of the replica ended", exc_info=task.exception())
