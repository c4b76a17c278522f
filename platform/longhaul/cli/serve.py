"""`longhaul serve`: models from the registry over HTTP."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ray.serve.schema import ServeDeploySchema

    from longhaul.export.manifest import Manifest

LOOPBACK = ("127.0.0.1", "localhost", "::1")


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
    address: Annotated[
        str | None,
        typer.Option(help="The Ray cluster; the one at hand, or else a new one here, if left out.", show_default=False),
    ] = None,
) -> None:
    """Serve models from the registry over HTTP, until Ctrl-C.

    Each model's `prod` version is taken, else its latest. Every file is verified by its SHA-256 first, and the address is
    printed once every engine has answered.

    Example: longhaul serve

    Example: longhaul serve --registry s3://bucket/models --model digits@3 --port 8080
    """
    from longhaul.serving import deployment

    console = Console(highlight=False, soft_wrap=True)
    settings = deployment.override(deployment.read_config(config), registry=registry, models=model or [], host=host, port=port)
    manifests = deployment.check_models(settings)
    deployment.check_port(settings.http_options.host, settings.http_options.port)
    _run(settings, manifests, address, console)


def _run(settings: ServeDeploySchema, manifests: list[Manifest], address: str | None, console: Console) -> None:
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
                deployment.watch(settings, lambda line: console.print(escape(line)), stop.is_set, stop.wait)
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
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(options.host, options.host)
    url = f"http://{shown}:{options.port}{options.root_path}"
    table = Table("model", "version", "classes", "top-1 on the test split", title=f"Serving at {url}")
    for manifest in manifests:
        top1 = manifest.metrics.get("top1")
        table.add_row(
            manifest.name, manifest.version, str(len(manifest.signature.classes)), f"{top1:.4f}" if top1 is not None else "-"
        )
    console.print(table)
    if options.host not in LOOPBACK:
        console.print(f"[yellow]warning[/] {escape(options.host)} is not loopback, and requests need no token")
    console.print(f"routes  {url}/docs")
    console.print(f"health  {url}/healthz")
    name = manifests[0].name
    console.print(
        f"ask     curl --data-binary @PICTURE.png -H 'Content-Type: image/png' '{url}/v1/models/{name}/predict?top_k=3'\n"
        f"stop    Ctrl-C, or kill {os.getpid()}"
    )
