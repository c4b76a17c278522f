"""`longhaul report`: a sweep on one page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from longhaul.cli.progress_bars import progress_bars


def report(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="The sweep's name below --storage.", show_default=False)],
    storage: Annotated[str | None, typer.Option(help="Where sweeps lie: a folder or s3://bucket/prefix. Default: runs.")] = None,
    profile: Annotated[
        bool, typer.Option("--profile/--no-profile", help="Measure latency and throughput of finished cells that lack them.")
    ] = True,
    explain: Annotated[
        bool, typer.Option("--explain/--no-explain", help="Make heat maps of finished cells that lack them.")
    ] = True,
    images: Annotated[int, typer.Option(min=1, max=64, help="Test images that heat maps are made of.")] = 6,
    device: Annotated[str, typer.Option(help="What is measured on: auto, cpu or cuda.")] = "auto",
) -> None:
    """Draw a sweep, finished or not, on one page with its pictures: STORAGE/SWEEP/report/index.html.

    The page has the table of all cells, accuracy against resolution, what accuracy costs in latency and operations, how
    consistent explanations are across resolutions, confusion matrices, detectors' precision-recall curves, heat maps and learning
    curves; each cell has a folder of its own beside it, FAMILY/MODEL/RESOLUTION. What is there already is not measured or
    explained again.

    Example: longhaul report resomap_small

    Example: longhaul report resomap_standard --storage s3://bucket/runs --no-profile --no-explain
    """
    from longhaul.cluster.connect import default_storage
    from longhaul.insight.profile import Conditions, chosen_device
    from longhaul.insight.sweep_report.report import Wanted, write_report
    from longhaul.resilience.sweep_directory import SweepDirectory

    found = SweepDirectory.open(storage or default_storage(), sweep)
    if profile:
        chosen_device(device)  # refused now, and not once a cell
    console = Console(highlight=False, soft_wrap=True)
    bars = progress_bars(console)

    def begin(task: str, parts: int) -> Callable[[], None]:
        bar = bars.add_task(task, total=parts)
        return lambda: bars.advance(bar)

    with bars:
        address = write_report(found, Wanted(profile, explain, images, Conditions(device=device)), begin)
    console.print(f"report: {escape(address)}")
