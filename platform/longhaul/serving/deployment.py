"""From a Serve config to a running application: read it, check the models, deploy, wait, take it down.

What `serve run CONFIG` does (`ray.serve.scripts.run`), with the registry made absolute, its files verified, and errors in
one line. Ray must be connected for `deploy` and what follows it.
"""

from __future__ import annotations

import difflib
import logging
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError
from ray import serve
from ray.exceptions import RayError
from ray.serve._private.api import serve_start
from ray.serve.config import ProxyLocation, gRPCOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from longhaul.errors import IntegrityError, LonghaulError, UserError
from longhaul.export.manifest import Manifest
from longhaul.serving.app import build
from longhaul.serving.arguments import LiveSettings, ServeArguments
from longhaul.serving.http.tokens import TokenFile
from longhaul.serving.models.catalog import choose

_log = logging.getLogger(__name__)
_LOOK_S = 5.0
IMPORT_PATH = f"{build.__module__}:{build.__name__}"


class DeploymentFailed(LonghaulError):
    """Serve could not start the application; the message has its last word."""


def read_config(path: Path) -> ServeDeploySchema:
    """Read a Serve config that has applications of ours.

    Raises:
        UserError: no such file, no YAML, not Serve's schema (names the field), no `longhaul.serving.app:build` in it, or what
            one of them is given is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text())
        config = ServeDeploySchema.model_validate(content)
    except OSError as error:
        raise UserError(f"config {path}: {error.strerror}", "Give one such as serve_configs/local.yaml") from None
    except yaml.YAMLError as error:
        raise UserError(f"config {path}: no YAML ({' '.join(str(error).split())})", "Correct it") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the whole file"
        raise UserError(f"config {path}: {field}: {first['msg']}", "Compare with serve_configs/local.yaml") from None
    _refuse_unknown_fields(content, ServeDeploySchema, str(path))
    for i, application in enumerate(content["applications"]):
        _refuse_unknown_fields(application, ServeApplicationSchema, f"{path}: applications.{i}")
        for j, server in enumerate(application.get("deployments", [])):
            _refuse_unknown_fields(server, DeploymentSchema, f"{path}: applications.{i}.deployments.{j}")
    for application in _ours(config, path):
        ServeArguments.parse(dict(application.args))
        for server in application.deployments:
            if isinstance(server.user_config, dict):
                LiveSettings.parse(server.user_config)
    return config


def override(
    config: ServeDeploySchema,
    *,
    registry: str | None,
    models: Sequence[str],
    host: str | None,
    port: int | None,
    tokens: Path | None = None,
) -> ServeDeploySchema:
    """The config with what is given in place of its own, and addresses of files made absolute.

    Raises:
        UserError: an argument is wrong, there are models and several applications, or others can reach the address and an
            application has no token file.
    """
    changed = config.model_copy(deep=True)
    changed.http_options.host = host or changed.http_options.host
    changed.http_options.port = port or changed.http_options.port
    applications = _ours(changed)
    if models and len(applications) > 1:
        names = ", ".join(application.name for application in applications)
        raise UserError(f"--model: the config has several applications ({names})", "Write each one's models into the config")
    for application in applications:
        args = dict(application.args)
        if registry is not None:
            args["registry"] = str(Path(registry).absolute()) if "://" not in registry else registry
        if models:
            args["models"] = list(models)
        if tokens is not None:
            args["api"] = {**args.get("api", {}), "tokens": str(tokens.absolute())}
        arguments = ServeArguments.parse(args).for_host(changed.http_options.host)
        if arguments.api.tokens is not None:
            TokenFile.read(arguments.api.tokens)
        application.args = args | {"registry": arguments.open_registry().uri}
    return changed


def check_models(config: ServeDeploySchema) -> list[Manifest]:
    """What the config serves, every file of it verified, before anything starts.

    Raises:
        UserError: the registry is empty, or has no such model.
        IntegrityError: a file is missing or damaged; names each.
    """
    served = []
    for application in _ours(config):
        arguments = ServeArguments.parse(dict(application.args))
        registry = arguments.open_registry()
        manifests = choose(registry, arguments.models)
        damaged = [problem for manifest in manifests for problem in registry.verify(manifest)]
        if damaged:
            raise IntegrityError("; ".join(damaged))
        served += manifests
    return served


def check_port(host: str, port: int) -> None:
    """Refuse an address that another process of this machine listens on, or that is not this machine's.

    Raises:
        UserError: it cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"address {host}:{port}: {error.strerror}", "Give another --port or --host, or stop what is there"
            ) from None


def check_idle() -> None:
    """Refuse a cluster on which Serve runs: a config would replace all its applications, and its port is fixed.

    Raises:
        UserError: it does.
    """
    state = serve.status()
    if state.applications or state.proxies:
        what = ", ".join(sorted(state.applications)) or "without an application"
        raise UserError(f"Ray Serve already runs on this cluster ({what})", "Stop it with `serve shutdown -y`")


def deploy(
    config: ServeDeploySchema, report: Callable[[str], None], stopped: Callable[[], bool], pause: Callable[[float], object]
) -> bool:
    """Start Serve on the connected cluster and wait until the applications answer.

    Args:
        config: from `override`.
        report: told what it waits for, one line.
        stopped: asked between two looks at the state; once true, waiting ends.
        pause: sleeps for so many seconds, or less once stopped.

    Returns:
        Whether it answers; False only if stopped.

    Raises:
        DeploymentFailed: an application does not start.
    """
    client = serve_start(
        http_options=config.http_options.model_dump(),
        proxy_location=ProxyLocation(config.proxy_location),
        grpc_options=gRPCOptions(**config.grpc_options.model_dump()),
        controller_options=config.controller_options,
    )
    client.deploy_apps(config, _blocking=False)
    names = [application.name for application in _ours(config)]
    while not stopped():
        states = serve.status().applications
        if all(name in states and states[name].status == ApplicationStatus.RUNNING for name in names):
            client.wait_for_proxies_serving(wait_for_applications_running=True)
            return True
        waits = []
        for name in names:
            if name in states:
                _check_starting(name, states[name])
                waits += [f"{n}: {d.message or d.status.value}" for n, d in states[name].deployments.items()]
        report("; ".join(map(_last_line, waits)) or "building the application")
        pause(0.5)
    return False


def watch(
    config: ServeDeploySchema,
    report: Callable[[str], None],
    stopped: Callable[[], bool],
    pause: Callable[[float], object],
    renewed: Callable[[], ServeDeploySchema | None] = lambda: None,
) -> None:
    """Return once `stopped`; meanwhile `report` each change of an application's status, and deploy each new config.

    Args:
        config: what is deployed.
        report: told one line.
        stopped: asked between two looks.
        pause: sleeps for so many seconds, or less once stopped.
        renewed: a config to change to, or None; what it raises is reported, and everything stays as it is.

    Raises:
        DeploymentFailed: an application is no longer there, such as after `serve shutdown`.
    """
    before = {application.name: ApplicationStatus.RUNNING for application in _ours(config)}
    while not stopped():
        states = serve.status().applications
        for name in before:
            if name not in states:
                raise DeploymentFailed(f"application {name}: somebody took it down")
            if states[name].status != before[name]:
                report(f"application {name}: {states[name].status.value} {_last_line(states[name].message)}".rstrip())
                before[name] = states[name].status
        pause(_LOOK_S)
        try:
            change = renewed()
            if change is not None:
                _change(config, change)
                report("the config has changed; replicas follow it one after the other")
                config = change
                before = {
                    application.name: before.get(application.name, ApplicationStatus.DEPLOYING) for application in _ours(config)
                }
        except LonghaulError as error:
            report(f"{error}; all stays as it is")


def _change(old: ServeDeploySchema, new: ServeDeploySchema) -> None:
    """Deploy another config over the one that runs.

    Raises:
        UserError: it changes what is fixed for as long as Serve runs.
    """
    for field in ("http_options", "proxy_location", "grpc_options"):
        if getattr(old, field) != getattr(new, field):
            raise UserError(f"config: {field} cannot change while Serve runs", "Stop it and start it again")
    client = _get_global_client()
    assert client is not None  # it runs
    client.deploy_apps(new, _blocking=False)


def _check_starting(name: str, state: ApplicationStatusOverview) -> None:
    if state.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
        details = [deployment.message for deployment in state.deployments.values() if deployment.message]
        raise DeploymentFailed(f"application {name}: {_last_line(details[0] if details else state.message)}")


def _refuse_unknown_fields(given: dict[str, object], schema: type[BaseModel], where: str) -> None:
    """Serve's schema passes over what it does not know, so that a misspelt limit would be no limit."""
    for name in given:
        if name not in schema.model_fields:
            near = difflib.get_close_matches(name, schema.model_fields, n=1)
            fix = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(schema.model_fields)}"
            raise UserError(f"config {where}: unknown field {name!r}", fix)


def take_down() -> None:
    """Stop Serve on the connected cluster, replicas, proxies and controller; nothing happens if it is not running.

    Applications go first, while the proxies still stand: requests in flight are answered, and streams hear why they end.
    """
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return
    try:
        client.delete_apps(list(serve.status().applications), blocking=True)
    except (TimeoutError, RayError) as error:
        _log.warning("applications did not end by themselves: %s", _last_line(str(error)))
    serve.shutdown()


def _ours(config: ServeDeploySchema, path: Path | None = None) -> list[ServeApplicationSchema]:
    ours = [application for application in config.applications if application.import_path == IMPORT_PATH]
    if not ours:
        problem = f"config {path or ''}: no application with import_path {IMPORT_PATH}"
        raise UserError(problem, "Compare with serve_configs/local.yaml")
    return ours


def _last_line(message: str) -> str:
    """Serve's messages hold whole tracebacks: their last line says what happened."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else ""
