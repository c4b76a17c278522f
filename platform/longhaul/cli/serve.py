"""`longhaul serve`: models from the registry over HTTP."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from longhaul.errors import UserError

if TYPE_CHECKING:
    from ray.serve.schema import ServeDeploySchema

    from longhaul.export.manifest import Manifest


def serve(
    config: Annotated[Path, typer.Option(help="A Ray Serve config.")] = Path("serve_configs/local.yaml"),
    registry: Annotated[
        str | None,
        typer.Option(help="Folder or s3:// address of the model registry, in place of the config's.", show_default=False),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[@VERSION]", help="Serve this model; repeatable. All in the registry if left out.", show_default=False
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on, in place of the config's.", show_default=False)] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port to listen on, in place of the config's.", show_default=False)
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            help="Token file (`longhaul token new`), in place of the config's; needed on any address but loopback.",
            show_default=False,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="The Ray cluster; the one at hand, or else a new one here, if left out.", show_default=False),
    ] = None,
) -> None:
    """Serve models from the registry over HTTP, until Ctrl-C.

    Each model's `prod` version is taken, else its latest. Every file is verified by its SHA-256 first, and the address is
    printed once every engine has answered. While it serves, it follows `prod`: `longhaul models promote` is all that an update
    takes. It follows the config as well: edit the file, and replicas change over one after the other; what is wrong is told and
    changes nothing.

    Example: longhaul serve

    Example: longhaul serve --registry s3://bucket/models --model digits@3 --port 8080
    """
    from longhaul.cluster.connect import find_gcs
    from longhaul.serving.config_file import ConfigFile
    from longhaul.serving.proxy_mode import faster_proxy

    console = Console(highlight=False, soft_wrap=True)
    listening = _host_of(config, host)
    starts = find_gcs(address or os.environ.get("RAY_ADDRESS") or None) is None
    with faster_proxy(listening) if starts else contextlib.nullcontext():  # before anything imports ray.serve
        from longhaul.serving import deployment

        def read() -> tuple[ServeDeploySchema, list[Manifest]]:
            given = deployment.read_config(config)
            settings = deployment.override(given, registry=registry, models=model or [], host=host, port=port, tokens=tokens)
            return settings, deployment.check_models(settings)

        file = ConfigFile(config, read)
        settings, manifests = read()
        deployment.check_port(settings.http_options.host, settings.http_options.port)

        def renewed() -> ServeDeploySchema | None:
            change = file.renewed()
            return change[0] if change else None

        _run(settings, manifests, renewed, address, console)


def _host_of(config: Path, host: str | None) -> str:
    """The address to listen on, for what is decided before Ray can be imported; the rest of the config is checked later.

    Raises:
        UserError: there is no such config.
    """
    import yaml

    if not config.is_file():
        raise UserError(
            f"config {config}: there is no such file",
            "Start in Longhaul's checkout, or name its serve_configs/local.yaml, or a copy, with --config",
        )
    given = None
    with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError, OSError, AttributeError):
        given = yaml.safe_load(config.read_text()).get("http_options", {}).get("host")
    return host or str(given or "127.0.0.1")


def _run(
    settings: ServeDeploySchema,
    manifests: list[Manifest],
    renewed: Callable[[], ServeDeploySchema | None],
    address: str | None,
    console: Console,
) -> None:
    import ray

    from longhaul.cluster.connect import connect
    from longhaul.serving import deployment

    stop = threading.Event()
    with console.status("connecting to Ray") as status:
        connect(address)
        deployment.check_idle()
        try:
            _stop_on_signals(stop)  # after connecting: Ray sets a handler of its own
            logging.getLogger("ray.serve").setLevel(logging.WARNING)
            ready = deployment.deploy(settings, lambda line: status.update(escape(line)), stop.is_set, stop.wait)
            status.stop()
            if ready:
                _announce(settings, manifests, console)
                deployment.watch(settings, lambda line: console.print(escape(line)), stop.is_set, stop.wait, renewed)
                console.print("stopping")
        finally:
            # Ray's own thread prints that the controller was killed, as an error; that is how a controller always ends.
            with contextlib.redirect_stdout(io.StringIO()):
                deployment.take_down()
                ray.shutdown()


def _stop_on_signals(stop: threading.Event) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)


def _announce(settings: ServeDeploySchema, manifests: list[Manifest], console: Console) -> None:
    options = settings.http_options
    url = f"http://{_reachable(options.host)}:{options.port}{options.root_path}"
    table = Table("model", "version", "task", "classes", "on the test split", title=f"Serving at {url}")
    for manifest in manifests:
        signature = manifest.signature
        metric = f"{manifest.parity.metric} {manifest.parity.onnx_metric:.4f}"
        table.add_row(manifest.name, manifest.version, signature.task, ", ".join(_shortened(signature.classes)), metric)
    console.print(table)
    console.print(f"routes  {url}/docs")
    console.print(f"health  {url}/healthz")
    console.print(_example(url, manifests))
    console.print(f"stop    Ctrl-C, or kill {os.getpid()}")


def _reachable(host: str) -> str:
    """The host of an address that a client of this machine can use."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _example(url: str, manifests: list[Manifest]) -> str:
    """One thing to ask, by what is served."""
    if any(manifest.signature.task == "detection" for manifest in manifests):
        return f"ask     longhaul detect RECORDING.sigmf-meta --url {url}"
    name = manifests[0].name
    return f"ask     curl --data-binary @PICTURE.png -H 'Content-Type: image/png' '{url}/v1/models/{name}/predict?top_k=3'"


def _shortened(classes: Sequence[str], most: int = 4) -> list[str]:
    return [*classes] if len(classes) <= most else [*classes[: most - 1], f"{len(classes) - most + 1} more"]
