"""`longhaul profile`: what networks cost, on paper and on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from longhaul.cli.option_group import with_options
from longhaul.cli.progress_bars import progress_bars
from longhaul.errors import UserError

if TYPE_CHECKING:
    from longhaul.insight.profile import Conditions, Profile
    from longhaul.insight.profile_table import Row
    from longhaul.insight.timing import Timing

_LEAST_PX, _MOST_PX = 8, 4096
_MOST_WIDTH = 1000  # characters, more than any table has


class PrecisionOption(StrEnum):
    """`insight.profile.Precision` for the command line."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


@dataclass(frozen=True)
class Measuring:
    """Options of what is not on paper."""

    batch: Annotated[int, typer.Option(min=1, max=4096, help="Images a call, beside one alone.")] = 32
    device: Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu or cuda.")] = "auto"
    precision: Annotated[PrecisionOption, typer.Option(help="fp32; bf16: autocast; fp16: weights and images.")] = (
        PrecisionOption.fp32
    )
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Images and weights as (N, H, W, C).")] = False
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: as torch chooses.")] = 0
    seconds: Annotated[float, typer.Option(min=0.1, help="Time for each batch size; slow networks need more for a p99.")] = 3.0
    memory: Annotated[
        bool, typer.Option("--memory", help="Peak memory on a CPU too, each in a fresh process (a GPU's is always measured).")
    ] = False
    picture: Annotated[
        Path | None, typer.Option(help="Draw latency over operations: a .png.", dir_okay=False, show_default=False)
    ] = None


@with_options(Measuring, "measuring")
def profile(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Names that `longhaul recipe models` lists.")
    ] = None,
    resolutions: Annotated[str, typer.Option(help="Sides of the images in pixels, with commas.")] = "224",
    classes: Annotated[int, typer.Option(min=2, help="Outputs of each network.")] = 10,
    backbones: Annotated[bool, typer.Option("--backbones", help="The ten networks that localization chooses from.")] = False,
    count_only: Annotated[
        bool, typer.Option("--count-only", help="Only what needs no measuring; quick, takes no memory.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the table: .csv, .parquet or .json.", dir_okay=False, show_default=False)
    ] = None,
    *,
    measuring: Measuring,
) -> None:
    """Compare networks: parameters, operations, latency, throughput and memory at each resolution.

    A network that cannot work at a resolution gets a row that says so. Weights and images are random, which changes no time.
    Peak memory holds weights, images and all between, at the larger batch, without gradients.

    Examples:
      longhaul profile resnet18 resnet50 --resolutions 64,128,224
      longhaul profile --backbones --count-only
      longhaul profile convnext_large --device cuda --precision bf16 --channels-last --batch 64
      longhaul profile vgg16 mobilenetv2_100 --threads 1 --memory --out cost.csv --picture cost.png
    """
    from longhaul.insight.profile_table import BACKBONES, check_file, check_names, write

    names = list(dict.fromkeys([*(models or []), *(BACKBONES if backbones else ())]))
    sides = _sides(resolutions)
    if not names:
        raise UserError("profile: no model is named", "Give names that `longhaul recipe models` lists, or --backbones")
    check_names(names)
    if out is not None:
        check_file(out)
    _check_picture(measuring.picture, count_only)
    conditions = None if count_only else _conditions(measuring)
    console = Console(highlight=False, soft_wrap=True)
    measured = _measured(names, sides, classes, conditions, cpu_memory=measuring.memory)
    for table in tables(measured, conditions, console):
        console.print(table)
    for line in notes(measured):
        console.print(line)
    if out is not None:
        write(out, measured)
        console.print(f"  {out}")
    if measuring.picture is not None and any(row.profile for row in measured):
        from longhaul.insight.curves import png
        from longhaul.insight.profile_picture import cost_figure

        measuring.picture.write_bytes(png(cost_figure(measured)))
        console.print(f"  {measuring.picture}")


def _conditions(measuring: Measuring) -> Conditions:
    """What the options say, where there is such a device; the threads are set for this process."""
    import torch

    from longhaul.insight.profile import Conditions, chosen_device

    chosen_device(measuring.device)
    if measuring.threads:
        torch.set_num_threads(measuring.threads)
    return Conditions(measuring.device, measuring.batch, measuring.precision.value, measuring.channels_last, measuring.seconds)


def _measured(
    names: Sequence[str], sides: Sequence[int], classes: int, conditions: Conditions | None, *, cpu_memory: bool
) -> list[Row]:
    """The rows, with a bar on stderr while they are measured."""
    from longhaul.insight.profile_table import rows

    measured = []
    with progress_bars(Console(stderr=True)) as bar:
        task = bar.add_task(names[0], total=len(names) * len(sides))
        for row in rows(names, sides, classes, conditions, cpu_memory=cpu_memory):
            measured.append(row)
            place = len(measured)
            bar.update(task, completed=place, description=names[min(place // len(sides), len(names) - 1)])
    return measured


def tables(measured: Sequence[Row], conditions: Conditions | None, console: Console) -> list[Table]:
    """A row for each network and resolution; figures that are missing are left empty, and none is ever cut.

    Returns:
        One table where the console has room for it; else what is counted and what is measured, below each other.
    """
    counted = _counted_columns(measured, exact=conditions is None)
    if conditions is None:
        return [_table(measured, counted, _title(measured), console)]
    timed = _timed_columns(measured, conditions)
    whole = _table(measured, counted | timed, _title(measured), console)
    if (whole.width or 0) <= console.width:
        return [whole]
    parts = ((counted, "counted"), (timed, _title(measured)))
    return [_table(measured, columns, title, console, narrow=True) for columns, title in parts]


def _table(
    measured: Sequence[Row], columns: dict[str, list[str]], title: str, console: Console, *, narrow: bool = False
) -> Table:
    """As wide as its figures are, whether the console is or not; `columns`: by head, a text for each row."""
    shown = Table(title=title, title_justify="left")
    if narrow:
        shown.box, shown.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
    shown.add_column("model", no_wrap=True)
    for name in ("px", *columns):
        shown.add_column(name, no_wrap=True, justify="right")
    several = len({row.resolution for row in measured}) > 1
    for place, row in enumerate(measured):
        ends = place + 1 == len(measured) or measured[place + 1].model != row.model
        texts = [column[place] for column in columns.values()]
        shown.add_row(row.model, str(row.resolution), *texts, end_section=ends and several)
    shown.width = console.measure(shown, options=console.options.update(max_width=_MOST_WIDTH)).maximum
    return shown


def _counted_columns(measured: Sequence[Row], *, exact: bool) -> dict[str, list[str]]:
    """What is known on paper; `exact`: parameters to the last one, not in millions."""
    columns: dict[str, list[str]] = {name: [] for name in ("parameters", "width", "MB", "GMACs", "GFLOPs")}
    for row in measured:
        texts = [""] * len(columns)
        if row.count is not None:
            width = "" if row.count.feature_width is None else str(row.count.feature_width)
            flops = [f"{value / 1e9:.3g}" if value < 1e9 else f"{value / 1e9:.2f}" for value in (row.count.macs, row.count.flops)]
            parameters = f"{row.count.parameters:,}" if exact else f"{row.count.parameters / 1e6:.2f} M"
            texts = [parameters, width, f"{row.count.size_mb:.1f}", *flops]
        for column, text in zip(columns.values(), texts, strict=True):
            column.append(text)
    return columns


def _timed_columns(measured: Sequence[Row], conditions: Conditions) -> dict[str, list[str]]:
    """What was measured here."""
    names = ("p50 ms\nbatch 1", "p99 ms\nbatch 1", f"p50 ms\nbatch {conditions.batch}", "images/s", "peak MB")
    times = [_times(row.profile) for row in measured]
    return {name: [texts[place] for texts in times] for place, name in enumerate(names)}


def notes(measured: Sequence[Row]) -> list[str]:
    """What the figures mean, and the problems of rows."""
    lines = [
        "1 MAC = 2 FLOPs, both of one image's forward pass; MB are float32 weights, in 2^20 bytes; width is what the head takes"
    ]
    profiles = [row.profile for row in measured if row.profile is not None]
    if any(one.single.p99_ms is None for one in profiles):
        lines.append("no p99: under 100 calls; more --seconds give one")
    if any(not timing.settled for one in profiles for timing in (one.single, one.batched)):
        lines.append("~: times had not settled when the warm-up's share of the time was over; give more --seconds")
    reasons = sorted({one.no_peak_memory for one in profiles if one.no_peak_memory})
    lines += [
        f"no peak memory: {reason}; give --memory" if "its own" in reason else f"no peak memory: {reason}" for reason in reasons
    ]
    lines += [f"[yellow]{escape(row.model)} at {row.resolution} px[/]: {escape(row.problem)}" for row in measured if row.problem]
    return lines


def _title(measured: Sequence[Row]) -> str:
    first = next((row.profile for row in measured if row.profile is not None), None)
    if first is None:
        return "counted, not measured"
    parts = [first.device, f"CPU threads {first.threads}", f"torch {first.torch}", first.precision]
    if first.tf32:
        parts.append("TF32 allowed")
    if first.channels_last:
        parts.append("channels last")
    return ", ".join(parts)


def _times(measured: Profile | None) -> list[str]:
    if measured is None:
        return [""] * 5
    single, batched = measured.single, measured.batched
    peak = "" if measured.peak_memory_mb is None else f"{measured.peak_memory_mb:.0f}"
    p99 = "" if single.p99_ms is None else _figure(single.p99_ms)
    return [_median(single), p99, _median(batched), _figure(batched.samples_per_s), peak]


def _median(timing: Timing) -> str:
    return f"{'' if timing.settled else '~'}{_figure(timing.p50_ms)}"


def _figure(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _sides(text: str) -> list[int]:
    try:
        sides = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise UserError(f"--resolutions {text}: not whole numbers with commas", "Give such as 128,224") from None
    if not all(_LEAST_PX <= side <= _MOST_PX for side in sides):
        raise UserError(f"--resolutions {text}: out of range", f"Give {_LEAST_PX} to {_MOST_PX} pixels")
    return sides


def _check_picture(picture: Path | None, count_only: bool) -> None:
    if picture is None:
        return
    if count_only:
        raise UserError("--picture and --count-only contradict each other: it shows times", "Leave out one of them")
    if picture.suffix != ".png" or not picture.parent.is_dir():
        raise UserError(
            f"--picture {picture}: no PNG can be written there", "Give a name that ends in .png, in a folder that exists"
        )
