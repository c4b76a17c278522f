"""`longhaul export`: a checkpoint of a run becomes a model in the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from longhaul.export.manifest import DecisionsRecord, Manifest
    from longhaul.export.registry import Registry

RegistryRoot = Annotated[
    str, typer.Option("--registry", envvar="LONGHAUL_REGISTRY", help="Folder or s3:// address of the model registry.")
]


def export(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run's name below --storage, its folder, or its s3:// address.", show_default=False),
    ],
    registry: RegistryRoot = "models",
    which: Annotated[Literal["best", "latest"], typer.Option(help="Best checkpoint by the goal metric, or the newest.")] = "best",
    plan: Annotated[bool, typer.Option("--plan/--no-plan", help="Build a TensorRT plan where a builder is installed.")] = True,
    storage: Annotated[
        str, typer.Option(envvar="LONGHAUL_STORAGE", help="Where runs lie: a folder or an s3:// address.")
    ] = "runs",
) -> None:
    """Export a run's checkpoint to ONNX, compare it with the torch model, and register it as a new version.

    The comparison runs both models on the whole test split and is kept with the model. Exits with 1 where they disagree:
    the version is registered then, to look into, and cannot be promoted.

    Example: longhaul export digits

    Example: longhaul export s3://bucket/runs/digits --registry s3://bucket/models --which latest --no-plan
    """
    from longhaul.export.pipeline import export_run
    from longhaul.export.registry import Registry
    from longhaul.insight.runs import resolve_run

    console = Console(highlight=False, soft_wrap=True)
    models = Registry(registry)
    manifest = export_run(
        resolve_run(run, storage), models, which=which, with_plan=plan, say=lambda line: console.print(f"[dim]{escape(line)}[/]")
    )
    console.print(_summary(manifest, models))
    if not manifest.parity.passed:
        raise typer.Exit(1)


def _summary(manifest: Manifest, registry: Registry) -> Table:
    parity = manifest.parity
    agreement = "" if parity.top1_agreement is None else f", {parity.top1_agreement:.2%} of classes equal"
    verdict = "[green]passed[/]" if parity.passed else "[bold red]FAILED[/]"
    at = "" if registry.uri.endswith("/models") else f" --registry {registry.uri}"
    table = Table(show_header=False, title=f"{manifest.name}@{manifest.version}")
    table.add_row("path", escape(registry.folder(manifest.name, manifest.version)))
    table.add_row("from", escape(f"{manifest.run}, {manifest.checkpoint}, step {manifest.step}"))
    table.add_row(
        f"test {parity.metric}", f"{parity.onnx_metric:.4f} (torch {parity.torch_metric:.4f}) on {parity.samples} samples"
    )
    if parity.decisions is None:
        found = f"largest difference {parity.max_abs_difference:.2e} (allowed {parity.tolerance:.0e}){agreement}"
        table.add_row("parity", f"{verdict}: {found}")
    else:
        _add_decisions(table, parity.decisions, verdict)
    for plan in manifest.plans:
        table.add_row("plan", f"{plan.file} by {plan.builder} {plan.builder_version} for {plan.device} device")
    table.add_row("size", size_text(manifest.total_bytes))
    if parity.passed:
        serve = "\nlonghaul serve" if manifest.signature.task == "classification" else ""
        table.add_row("next", f"longhaul models promote {manifest.name} {manifest.version}{escape(at)}{serve}")
    return table


def _add_decisions(table: Table, decisions: DecisionsRecord, verdict: str) -> None:
    """A row for each runtime, with a line for each threshold."""
    table.add_row("parity", f"{verdict}: {decisions.precision} detections against torch in float32")
    for runtime in decisions.runtimes:
        lines = [f"{'' if found.passed else '[bold red]FAILED[/] '}{escape(str(found))}" for found in runtime.thresholds]
        lines.append(f"mean average precision {runtime.map:.4f} (torch {runtime.torch_map:.4f})")
        if runtime.unsettled_tiles:
            lines.append(f"[yellow]tiles on which a suppression may not be exact: {runtime.unsettled_tiles}[/]")
        sizes = ", ".join(map(str, runtime.batch_sizes))
        table.add_row(runtime.runtime, "\n".join([f"batches of {sizes}", *lines]))
    need = f"{decisions.rpn_iterations} and {decisions.detection_iterations}"
    table.add_row("suppression", f"{need} rounds needed on {decisions.iteration_tiles} test tiles")


def size_text(size: int) -> str:
    """`1551612` -> `1.6 MB` (powers of ten)."""
    amount = float(size)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} GB"
