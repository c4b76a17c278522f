"""`longhaul models`: look at the model registry, check it, and move its aliases."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from longhaul.cli.export import RegistryRoot, size_text

if TYPE_CHECKING:
    from longhaul.export.registry import Registry

app = typer.Typer(help="List, show, verify and promote the models in the registry.", no_args_is_help=True)

Reference = Annotated[
    str, typer.Argument(metavar="NAME[@VERSION]", help="A model, such as digits, digits@3 or digits@latest.", show_default=False)
]


@app.command()
def ls(registry: RegistryRoot = "models") -> None:
    """List every version of every model, newest last.

    Example: longhaul models ls

    Example: longhaul models ls --registry s3://bucket/models
    """
    from longhaul.export.registry import Registry

    models = Registry(registry)
    table = Table(
        Column("model", no_wrap=True), "version", "aliases", "made", "goal", "parity", "size", "run", title=escape(models.uri)
    )
    for name in models.names():
        _add_versions(table, models, name)
    console = Console()
    if table.row_count:
        console.print(table)
    else:
        console.print(f"no models in {escape(models.uri)}; `longhaul export RUN` makes one", soft_wrap=True)


def _add_versions(table: Table, models: Registry, name: str) -> None:
    from longhaul.errors import IntegrityError
    from longhaul.export.registry import aliases_of

    try:
        aliases, aliases_damaged = models.aliases(name), False
    except IntegrityError:
        aliases, aliases_damaged = {}, True
    for version in models.versions(name):
        names = "[red]damaged[/]" if aliases_damaged else ", ".join(aliases_of(version, aliases))
        try:
            manifest = models.resolve(name, version) if not aliases_damaged else None
        except IntegrityError:
            manifest = None
        if manifest is None:
            table.add_row(name, version, names, "", "", "[red]damaged[/]", "", "longhaul models verify " + name)
            continue
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.created_s))
        goal = f"{manifest.parity.metric} {manifest.parity.onnx_metric:.4f}"
        parity = "passed" if manifest.parity.passed else "[red]FAILED[/]"
        table.add_row(
            name, version, names, made, goal, parity, size_text(manifest.total_bytes), escape(manifest.run.rsplit("/", 1)[-1])
        )


@app.command()
def show(reference: Reference, registry: RegistryRoot = "models") -> None:
    """Print the manifest of a version as JSON: signature, metrics, parity, origin, files.

    Without a version it is the one that `prod` points to, or the newest.

    Example: longhaul models show digits

    Example: longhaul models show digits@2
    """
    from longhaul.export.registry import Registry, split_reference

    models = Registry(registry)
    manifest = models.resolve(*split_reference(reference))
    Console().print_json(manifest.model_dump_json())
    Console(stderr=True).print(f"[dim]{escape(models.folder(manifest.name, manifest.version))}[/]", soft_wrap=True)


@app.command()
def verify(
    reference: Annotated[str, typer.Argument(metavar="[NAME[@VERSION]]", help="Only this model; all of them if left out.")] = "",
    registry: RegistryRoot = "models",
) -> None:
    """Read every file again and compare it with its manifest; exit with 2, naming each bad file.

    Example: longhaul models verify

    Example: longhaul models verify digits@2 --registry s3://bucket/models
    """
    from longhaul.errors import IntegrityError
    from longhaul.export.registry import Registry, split_reference

    models = Registry(registry)
    console = Console(highlight=False, soft_wrap=True)
    problems: list[str] = []
    for name, version in _chosen(models, *split_reference(reference)):
        try:
            found = models.verify(models.resolve(name, version))
        except IntegrityError as error:
            found = [str(error)]
        problems += found
        console.print(f"{name}@{version}: {'[red]damaged[/]' if found else '[green]sound[/]'}")
    if problems:
        raise IntegrityError("\n".join(dict.fromkeys(problems)))


def _chosen(models: Registry, name: str, version: str | None) -> list[tuple[str, str]]:
    """The versions to look at: one, all of a model, or all there are."""
    if version is not None:
        return [(name, models.resolve(name, version).version)]
    if name and not models.versions(name):
        models.resolve(name)  # raises, and says what there is
    return [(each, number) for each in ([name] if name else models.names()) for number in models.versions(each)]


@app.command()
def promote(
    name: Annotated[str, typer.Argument(help="The model.", show_default=False)],
    version: Annotated[str, typer.Argument(help="A version or an alias.", show_default=False)],
    alias: Annotated[str, typer.Option("--as", help="The alias that shall point to it.")] = "prod",
    registry: RegistryRoot = "models",
) -> None:
    """Point an alias to a version, once all of its files verify and its parity with the torch model passed.

    Example: longhaul models promote digits 2

    Example: longhaul models promote digits latest --as canary
    """
    from longhaul.export.registry import Registry

    models = Registry(registry)
    manifest = models.promote(name, version, alias)
    Console(highlight=False, soft_wrap=True).print(f"{name}@{alias} -> version {manifest.version} in {escape(models.uri)}")
