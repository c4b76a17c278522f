"""`longhaul signals`: radio recordings, looked at, made, and cut into tiles."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from longhaul.cli import chunk, scenes
from longhaul.cli.export import size_text

if TYPE_CHECKING:
    from longhaul.signals.recording import Recording

app = typer.Typer(help="Inspect recordings, make synthetic ones, and cut them into tiles.", no_args_is_help=True)
app.command(name="make")(scenes.make)
app.command(name="chunk")(chunk.chunk)


@app.command()
def inspect(
    file: Annotated[
        Path, typer.Argument(help="A .sigmf-meta file, an archive, a collection, or a folder of recordings.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option(help="The picture of one recording; NAME-waterfall.png in the current folder without it.")
    ] = None,
    start_s: Annotated[float, typer.Option(help="Where the picture begins, in seconds.")] = 0.0,
    duration_s: Annotated[float | None, typer.Option(help="How many seconds it shows; to the end without it.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read all samples and compare them with the checksum.")] = False,
) -> None:
    """Print what a recording holds, and draw its waterfall with a box for every annotation.

    A folder or a collection is listed, a line for each recording, with what is wrong with those that cannot be used.

    Examples:
      longhaul signals inspect recordings/capture.sigmf-meta
      longhaul signals inspect capture.sigmf --start-s 1.2 --duration-s 0.2 --out part.png
      longhaul signals inspect recordings --verify
    """
    from longhaul.errors import UserError
    from longhaul.signals.recording import find_recordings, open_recording

    console = Console()
    if not file.is_dir() and file.suffix != ".sigmf-collection":
        with open_recording(file, verify=verify) as recording:
            console.print(_details(recording))
            console.print(f"drawn to {escape(str(_draw(recording, out, start_s, duration_s)))}", soft_wrap=True)
        return
    if out is not None:
        raise UserError(f"--out {out}: is for one recording, and {file} holds several", "Name one of them, or leave out --out")
    unusable = _list(console, find_recordings(file), file, verify=verify)
    if unusable:
        raise typer.Exit(2)


def _draw(recording: Recording, out: Path | None, start_s: float, duration_s: float | None) -> Path:
    from longhaul.insight.waterfall import draw_waterfall
    from longhaul.storage import Storage

    path = out if out is not None else Path(f"{recording.name}-waterfall.png")
    Storage.open(path.parent).write_bytes(path.name, draw_waterfall(recording, start_s=start_s, duration_s=duration_s))
    return path


def _details(recording: Recording) -> Table:
    """One recording, a line for each thing there is to know."""
    table = Table(title=escape(str(recording.path)), show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("datatype", recording.datatype)
    table.add_row("sample rate", f"{recording.sample_rate_hz / 1e6:g} MS/s")
    table.add_row("centre", _center(recording))
    table.add_row("duration", f"{recording.duration_s:.6g} s, {recording.samples:,} samples")
    table.add_row("size", size_text(recording.size_bytes))
    table.add_row("started", f"{recording.started:%Y-%m-%d %H:%M:%S.%f} UTC" if recording.started else "not given")
    table.add_row("annotations", "\n".join(_counts(recording)) or "none")
    if recording.notes:
        table.add_row("notes", "\n".join(map(escape, recording.notes)), style="yellow")
    return table


def _list(console: Console, paths: list[Path], root: Path, *, verify: bool) -> int:
    """Several recordings, a line each, and below what is odd or wrong; returns how many cannot be used."""
    from longhaul.errors import UserError
    from longhaul.signals.recording import open_recording

    name = Column("recording", overflow="fold")
    table = Table(name, "datatype", "rate", "centre", "duration", "size", "annotations", title=escape(str(root)))
    notes, errors = [], []
    for path in paths:
        shown = escape(str(path.relative_to(root)) if path.is_relative_to(root) else path.name)
        try:
            recording = open_recording(path, verify=verify)
        except UserError as error:
            errors.append(str(error))
            table.add_row(shown, "[red]cannot be used[/]")
            continue
        notes += [f"{shown}: {escape(note)}" for note in recording.notes]
        table.add_row(
            shown,
            recording.datatype,
            f"{recording.sample_rate_hz / 1e6:g} MS/s",
            _center(recording),
            f"{recording.duration_s:.6g} s",
            size_text(recording.size_bytes),
            ", ".join(_counts(recording)),
        )
    console.print(table)
    for note in notes:
        console.print(f"[yellow]note[/] {note}", soft_wrap=True, highlight=False)
    for message in errors:
        console.print(f"[bold red]error[/] {escape(message)}", soft_wrap=True, highlight=False)
    return len(errors)


def _center(recording: Recording) -> str:
    return "not given" if recording.center_hz is None else f"{recording.center_hz / 1e6:.12g} MHz"


def _counts(recording: Recording) -> list[str]:
    """`12 wifi`, by label."""
    counts = Counter(annotation.label for annotation in recording.annotations)
    return [f"{many} {escape(label)}" for label, many in sorted(counts.items())]
