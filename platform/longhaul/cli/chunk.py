"""`longhaul signals chunk`: recordings to folders of tiles."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from longhaul.errors import UserError

if TYPE_CHECKING:
    from longhaul.cluster.chunking import Conversion
    from longhaul.signals.chunks import Tally

_TILE = re.compile(r"(?P<side>\d+)(?:/(?P<time>\d+)x(?P<frequency>\d+))?")


def chunk(
    recordings: Annotated[
        list[Path], typer.Argument(help="SigMF recordings, or folders of them.", show_default=False, metavar="RECORDINGS")
    ],
    out: Annotated[Path, typer.Option(help="Folder that gets spec_image/YYYYMMDD_HHMMSS with the tiles.", show_default=False)],
    chunk_s: Annotated[float, typer.Option("--chunk-s", min=0.0, help="Length of a chunk in seconds.")] = 0.2,
    nfft: Annotated[int, typer.Option(help="Samples a frame of the transform, and its bins; a power of two.")] = 4096,
    hop: Annotated[
        int | None, typer.Option(help="Samples from one frame to the next. Default: half of --nfft.", show_default=False)
    ] = None,
    tile: Annotated[
        str,
        typer.Option(
            metavar="SIDE[/TxF]", help="Side in pixels; 1024/4x2 cuts a chunk into 4 tiles along time, 2 along frequency."
        ),
    ] = "1024",
    workers: Annotated[
        int | None, typer.Option(min=0, help="Tasks at a time on Ray; 0: in this process. Default: all CPUs.", show_default=False)
    ] = None,
    stamp: Annotated[
        str | None, typer.Option(metavar="YYYYMMDD_HHMMSS", help="Name of the folder. Default: when the first recording began.")
    ] = None,
) -> None:
    """Cut recordings into chunks, and make each a grey spectrogram with the boxes of its annotations beside it.

    The same command again goes on where it was stopped, and adds what is new. A recording that cannot be read is listed at the
    end, and the exit code is 1.

    Examples:
      longhaul signals chunk recordings --out tiles
      longhaul signals chunk a.sigmf-meta b.sigmf-meta --out tiles --chunk-s 0.01 --nfft 1024 --tile 256 --workers 0
    """
    from longhaul.cluster.chunking import convert
    from longhaul.cluster.connect import connect
    from longhaul.signals.tile_folder import tile_settings

    console = Console(highlight=False, soft_wrap=True)
    side, cut = _tile(tile)
    settings = tile_settings(chunk_s=chunk_s, nfft=nfft, hop=nfft // 2 if hop is None else hop, tile=side, cut=cut)
    if workers != 0:
        console.print(f"[dim]{connect()}[/]")
    try:
        with _Bar(console) as bar:
            result = convert(recordings, out, settings, workers=workers, stamp=stamp, progress=bar.show)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        raise typer.Exit(130) from None
    _report(console, result)
    if result.failed:
        raise typer.Exit(1)


def _tile(text: str) -> tuple[int, tuple[int, int]]:
    """Side of a tile, and tiles a chunk along time and frequency."""
    match = _TILE.fullmatch(text)
    if match is None:
        raise UserError(
            f"--tile {text}: is neither a side in pixels nor SIDE/TxF", "Give for example --tile 1024 or --tile 1024/4x2"
        )
    return int(match["side"]), (int(match["time"] or 1), int(match["frequency"] or 1))


def _report(console: Console, result: Conversion) -> None:
    tally = result.tally
    kept = f", {tally.kept} were there already" if tally.kept else ""
    console.print(f"{tally.written} tiles of {result.recordings} recordings written to {escape(str(result.folder))}{kept}")
    slivers = f"; {tally.slivers} left out as slivers (parts of annotations too thin or too small)" if tally.slivers else ""
    console.print(f"  {tally.boxes} boxes on them{slivers}")
    if result.left_out_s:
        console.print(f"  {result.left_out_s:.3g} s at the ends of recordings fill no chunk and are on no tile")
    for note in result.notes:
        console.print(f"  note: {escape(note)}")
    for error in result.failed:
        console.print(f"[red]failed[/] {escape(error)}")


class _Bar:
    """Chunks done of all, and the tiles written so far."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=console,
        )  # fmt: skip
        self._task = self._progress.add_task("chunks", total=None, note="")

    def show(self, done: int, total: int, tally: Tally) -> None:
        """Bring the bar up to date."""
        self._progress.update(self._task, completed=done, total=total, note=f"{tally.written} tiles, {tally.boxes} boxes")

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
