"""`longhaul explain`: what a classifier looks at, at one resolution or at several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from longhaul.cli.runs import Root

if TYPE_CHECKING:
    from longhaul.insight.explain.across import Consistency
    from longhaul.insight.explain.attribution import Method
    from longhaul.insight.explain.record import Explanation, Kept, MethodReport
    from longhaul.resilience.run_directory import RunDirectory

_OUT = "explanations"


def explain(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN [RUN...]", help="A run, or runs of one model at several resolutions.", show_default=False),
    ],
    image: Annotated[
        Path | None, typer.Option(help="Explain this picture instead of test images: the class that the model answers.")
    ] = None,
    images: Annotated[int, typer.Option(help="Test images, the same in all runs, stratified by class.", min=1)] = 8,
    method: Annotated[
        list[str] | None,
        typer.Option(help="gradcam, integrated_gradients or saliency; may be repeated. Default: all.", show_default=False),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help=f"Folder or S3 prefix for the pictures. Default: of one run its own pictures/, else {_OUT}."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of images and of the sanity check's random weights.")] = 0,
    storage: Root = "runs",
) -> None:
    """Explain what the best model of a run looks at, by Grad-CAM, integrated gradients and saliency.

    Of several runs of one model at different resolutions: the same images side by side, and how consistent the maps are. Every
    method is checked: integrated gradients must add up to the model's answer, and maps must change when weights are random.

    Examples:
      longhaul explain digits
      longhaul explain cells/resnet18-32 cells/resnet18-64 --images 12 --out pictures
      longhaul explain digits --image seven.png --method gradcam
    """
    from longhaul.insight.explain.cell import explain_run
    from longhaul.insight.explain.one_picture import explain_file
    from longhaul.insight.explain.record import load_kept
    from longhaul.insight.runs import resolve_run

    console = Console(highlight=False, soft_wrap=True)
    methods = _methods(method)
    directories = [resolve_run(run, storage) for run in runs]
    if image is not None:
        explained, kept = explain_file(directories, image, methods, seed)
        pictures, where = _pictures(explained, kept, None, f"{image.stem}_"), out or _OUT
        console.print(methods_table(explained))
        console.print(_answers_line(explained))
    elif len(directories) == 1:
        explanation = explain_run(directories[0], images, methods, seed)
        console.print(methods_table([explanation]))
        pictures = _pictures([explanation], [load_kept(directories[0])], None) if out else {}
        where = out or ""
        if not out:
            names = ["explain", *(f"explain_{name}" for name in explanation.usable)]
            console.print("\n".join(escape(f"  {directories[0].uri}/pictures/{name}.png") for name in names))
    else:
        pictures, where = _compare(console, directories, images, methods, seed), out or _OUT
    _write(console, pictures, where)


def methods_table(explained: Sequence[Explanation]) -> Table:
    """A row a run and method: what it looked at, and what its checks say."""
    table = Table("run", "px", "right", "method", "looks at", "adds up", "random weights", title="explanations")
    for one in explained:
        known = [image.answer == image.label for image in one.images if image.label is not None]
        right = f"{sum(known)}/{len(known)}" if known else ""
        for place, report in enumerate(one.methods):
            head = (escape(one.run), str(one.resolution), right) if place == 0 else ("", "", "")
            table.add_row(*head, report.method, *_cells(report, len(one.images)))
        table.add_section()
    table.caption = (
        "adds up: maps whose sum is the rise of the logit within 1 %; random weights: rank correlation with the maps of the "
        "same network with random weights, which a method that depends on the model keeps at 0.5 or less; in brackets, between "
        "the trained network's own maps of different images"
    )
    return table


def consistency_table(found: Consistency) -> Table:
    """A row a method and resolution: agreement with the highest one, its interval, and chance."""
    highest = max(found.runs)
    title = f"{found.model}: maps against those at {highest} px, means over {len(found.images)} images"
    if found.layer is not None:
        cells = ", ".join(f"{side} x {side} cells at {px} px" for px, side in found.sides.items())
        title += f"\nGrad-CAM of layer {escape(found.layer)} at all of them: {cells}"
    table = Table("method", "px", "rank correlation", "chance", "IoU top 10 %", "chance", "IoU top 20 %", "chance", title=title)
    for method in dict.fromkeys(pair.method for pair in found.pairs):
        for pair in found.to_highest(method):
            row = []
            for one in (pair.agreement.rank_correlation, pair.agreement.top_iou[10], pair.agreement.top_iou[20]):
                spread = "" if one.low is None or one.high is None else rf" \[{one.low:.2f}, {one.high:.2f}]"
                row += [f"{one.mean:.2f}{spread}", "" if one.chance is None else f"{one.chance:.2f}"]
            table.add_row(method, str(pair.low), *row)
    return table


def _compare(
    console: Console, runs: Sequence[RunDirectory], images: int, methods: Sequence[Method], seed: int
) -> dict[str, bytes]:
    """Explain and compare the runs; files by name."""
    from longhaul.insight.explain.across import explain_across, one_model
    from longhaul.insight.explain.record import load_explanation, load_kept

    found = explain_across(runs, images, methods, seed)
    ascending = one_model(runs)
    explained = [one for run in ascending if (one := load_explanation(run)) is not None]
    console.print(methods_table(explained))
    console.print(consistency_table(found))
    pictures = _pictures(explained, [load_kept(run) for run in ascending], found)
    return pictures | {"consistency.json": (found.model_dump_json(indent=1) + "\n").encode()}


def _pictures(
    explained: Sequence[Explanation], kept: Sequence[Kept], found: Consistency | None, prefix: str = ""
) -> dict[str, bytes]:
    from longhaul.insight.explain.across import draw_across
    from longhaul.insight.explain.run_pictures import draw

    drawn = draw(explained[0], kept[0]) if len(explained) == 1 else draw_across(explained, kept, found)
    return {prefix + name: picture for name, picture in drawn.items()}


def _write(console: Console, files: dict[str, bytes], where: str) -> None:
    from longhaul.storage import Storage

    for name, data in files.items():
        Storage.open(where).write_bytes(name, data)
        console.print(escape(f"  {where.rstrip('/')}/{name}"))


def _cells(report: MethodReport, images: int) -> tuple[str, str, str]:
    if report.problem is not None:
        return escape(report.problem), "", ""
    looks = f"{report.layer} ({report.side} x {report.side})" if report.layer else "pixels"
    if report.empty:
        looks += f", {report.empty} empty"
    adds_up = ""
    if report.worst_error is not None:
        adds_up = f"{images - report.incomplete}/{images}, worst {report.worst_error:.1%}, {report.most_steps} steps"
    sane = ""
    if report.sanity is not None:
        sane = f"{report.sanity.stages[-1].rank_correlation.mean:+.2f} {'ok' if report.sanity.passes else '[red]stays[/]'}"
        shared = report.sanity.between_images
        sane += "" if shared is None else f" (images {shared:+.2f})"
    return looks, adds_up, sane


def _answers_line(explained: Sequence[Explanation]) -> str:
    parts = [f"{one.resolution} px: {one.classes[one.images[0].answer]} ({one.images[0].probability:.0%})" for one in explained]
    return escape("answers: " + ", ".join(parts))


def _methods(names: Sequence[str] | None) -> list[Method]:
    from longhaul.errors import UserError
    from longhaul.insight.explain.attribution import METHODS

    unknown = sorted(set(names or ()) - set(METHODS))
    if unknown:
        raise UserError(f"--method {unknown[0]}: not known", f"Take {', '.join(METHODS)}")
    return [method for method in METHODS if not names or method in names]
