"""`longhaul detect`: what a server's detectors find in a recording."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from longhaul.cli.option_group import with_options
from longhaul.errors import UserError

if TYPE_CHECKING:
    from longhaul.insight.detections import Mark
    from longhaul.serving.client import Longhaul
    from longhaul.serving.detection.answers import ChunkAnswer, Detection
    from longhaul.serving.detection.tracks import Track
    from longhaul.signals.recording import Recording

_MOST_SENT_BYTES = 64 << 20  # a longer recording is streamed; servers take at least this in one piece
_PATIENCE_S = 30.0
_ROWS = 40
_ADVICE = {
    "late": "it missed the deadline: give more with --deadline-ms, or a server with more room",
    "shed": "the server has taken it out while it is overloaded: ask again later, or give more replicas",
    "failed": "its engine failed: the server's log says more",
}


@dataclass(frozen=True)
class Question:
    """What is asked, of which stretch of the recording."""

    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Ask this model; repeatable. All without it.", show_default=False)
    ] = None
    deadline_ms: Annotated[
        int | None, typer.Option(min=1, help="Time for each chunk. Default: the server's, 400.", show_default=False)
    ] = None
    start_s: Annotated[float, typer.Option(min=0.0, help="Where to begin in the recording, in seconds.")] = 0.0
    duration_s: Annotated[float | None, typer.Option(help="How many seconds; to the end without it.", show_default=False)] = None

    @property
    def deadline_s(self) -> float | None:
        """The deadline in seconds."""
        return None if self.deadline_ms is None else self.deadline_ms / 1000

    @property
    def models(self) -> list[str]:
        """Whom it is for; everybody, if nobody is named."""
        return self.model or []


@dataclass(frozen=True)
class _Found:
    """What the server said: its answers by chunk, and the tracks over all of them."""

    chunks: tuple[ChunkAnswer, ...]
    tracks: tuple[Track, ...]

    @property
    def detections(self) -> list[Detection]:
        """All detections, in order of time."""
        return [one for chunk in self.chunks for one in chunk.detections]


@with_options(Question, "question")
def detect(
    file: Annotated[
        Path, typer.Argument(help="A SigMF recording (.sigmf-meta or archive), or a tile as .png.", show_default=False)
    ],
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8000",
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token in it. Default: LONGHAUL_TOKEN of the environment.", show_default=False),
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Send it chunk by chunk; long recordings are in any case.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="The picture. Default: NAME.detections.png beside the file.", show_default=False)
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write all answers and tracks here.", show_default=False)
    ] = None,
    *,
    question: Question,
) -> None:
    """Ask a server what is on a recording: a table of detections and tracks, and a waterfall with boxes.

    A model that did not answer in time is named, with what to do about it; the exit code stays 0, as the rest holds. A busy
    server is asked again for up to half a minute.

    Examples:
      longhaul detect capture.sigmf-meta --url http://127.0.0.1:8000
      longhaul detect capture.sigmf --stream --deadline-ms 1000 --json answers.json
    """
    from longhaul.serving.client import Longhaul
    from longhaul.signals.recording import open_recording

    console = Console(highlight=False, soft_wrap=True)
    with Longhaul(url, _token(token_file), patience_s=_PATIENCE_S) as server:
        _check_writable("--json", json_file)
        if file.suffix == ".png":
            found = _of_tile(server, file, question)
            _print(console, found)
            _keep(json_file, found, console)
            return
        picture = out or file.with_name(f"{_name(file)}.detections.png")
        with open_recording(file) as recording:
            _check_writable("--out", picture)
            found = _ask(server, recording, question, stream=stream, console=console)
            _print(console, found, recording.center_hz is None)
            _keep(json_file, found, console)  # first, as drawing can fail and asking costs
            _draw(picture, recording, found, question)
    console.print(f"drawn to {escape(str(picture))}")


def _of_tile(server: Longhaul, file: Path, question: Question) -> _Found:
    answer = server.detect(file, models=question.models, deadline_s=question.deadline_s)
    return _Found(answer.chunks, ())


def _draw(picture: Path, recording: Recording, found: _Found, question: Question) -> None:
    from longhaul.insight.detections import draw_detections

    marks = _marks(found, question.start_s)
    note = "some models are missing" if any(chunk.degraded for chunk in found.chunks) else ""
    png = draw_detections(recording, marks, start_s=question.start_s, duration_s=question.duration_s, note=note)
    _write("--out", picture, png)


def _ask(server: Longhaul, recording: Recording, question: Question, *, stream: bool, console: Console) -> _Found:
    """The answers, in one piece or chunk by chunk."""
    length_s = recording.duration_s - question.start_s if question.duration_s is None else question.duration_s
    share = min(1.0, max(0.0, length_s / recording.duration_s))
    if stream or recording.size_bytes * share > _MOST_SENT_BYTES:
        return _streamed(server, recording, question, length_s, console)
    with console.status(f"{escape(recording.name)} is on its way"):
        answer = server.detect_stretch(
            recording,
            start_s=question.start_s,
            duration_s=question.duration_s,
            models=question.models,
            deadline_s=question.deadline_s,
            tracks=True,
        )
    return _Found(answer.chunks, tuple(answer.tracks or ()))


def _streamed(server: Longhaul, recording: Recording, question: Question, length_s: float, console: Console) -> _Found:
    chunks: list[ChunkAnswer] = []
    tracks: tuple[Track, ...] = ()
    count = 0
    updates = server.stream(
        recording,
        start_s=question.start_s,
        duration_s=question.duration_s,
        models=question.models,
        deadline_s=question.deadline_s,
    )
    columns = (SpinnerColumn(), *Progress.get_default_columns()[:3], TextColumn("{task.fields[found]}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(escape(recording.name), total=length_s, found="")
        for update in updates:
            tracks = update.tracks
            if update.answer is not None:
                chunks.append(update.answer)
                count += len(update.answer.detections)
                done = update.answer.start_s + update.answer.duration_s
                progress.update(task, completed=done, found=f"{count} detections")
    return _Found(tuple(chunks), tracks)


def _marks(found: _Found, start_s: float) -> list[Mark]:
    """What to draw; times count from the recording's first sample again, and only tracks that are in the table are named."""
    from longhaul.insight.detections import Mark

    told = {track.id for track in found.tracks}
    return [
        Mark(
            one.label,
            start_s + one.start_s,
            start_s + one.end_s,
            one.low_hz,
            one.high_hz,
            one.track if one.track in told else None,
        )
        for one in found.detections
        if one.start_s is not None and one.end_s is not None and one.low_hz is not None and one.high_hz is not None
    ]


def _print(console: Console, found: _Found, relative: bool = False) -> None:
    """Detections, tracks, and what was missing."""
    console.print(_detection_table(found, relative))
    if found.tracks:
        console.print(_track_table(found.tracks, relative))
    for line in _missing(found.chunks):
        console.print(f"[yellow]degraded[/] {line}")
    for line in sorted({f"{one.model}: {one.detail}" for one in _doubtful(found.chunks)}):
        console.print(f"[yellow]note[/] {escape(line)}")


def _detection_table(found: _Found, relative: bool) -> Table:
    several = len(found.chunks)
    names = (_right("score"), _right("time ms"), _right(_frequency(relative)), _right("width MHz"))
    table = Table(
        Column("label", no_wrap=True),
        *names,
        "model",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        title_justify="left",
    )
    table.title = f"{len(found.detections)} detections in {several} chunk{'s' if several != 1 else ''}"
    for one in found.detections[:_ROWS]:
        table.add_row(escape(one.label), f"{one.score:.2f}", *_place(one), escape(one.model))
    left = len(found.detections) - _ROWS
    if left > 0:
        table.caption = f"and {left} more; --json FILE writes all"
    return table


def _place(one: Detection) -> tuple[str, str, str]:
    if one.start_s is None or one.end_s is None or one.center_hz is None or one.bandwidth_hz is None:
        left, top, right, bottom = one.box_px
        return f"x {left:.0f} to {right:.0f} px", f"y {top:.0f} to {bottom:.0f} px", ""
    return f"{1e3 * one.start_s:.2f} to {1e3 * one.end_s:.2f}", f"{one.center_hz / 1e6:.3f}", f"{one.bandwidth_hz / 1e6:.3f}"


def _track_table(tracks: Sequence[Track], relative: bool) -> Table:
    names = ("seen ms", _frequency(relative), "width MHz", "bursts", "hops", "score")
    table = Table(
        _right("#"), Column("label", no_wrap=True), *map(_right, names), box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    table.title, table.title_justify = f"{len(tracks)} tracks", "left"
    for one in sorted(tracks, key=lambda track: track.id):
        table.add_row(
            str(one.id), escape(one.label), f"{1e3 * one.first_s:.0f} to {1e3 * one.last_s:.0f}", f"{one.center_hz / 1e6:.3f}",
            f"{one.bandwidth_hz / 1e6:.3f}", str(one.bursts), str(one.hops), f"{one.score:.2f}",
        )  # fmt: skip
    return table


def _right(name: str) -> Column:
    return Column(name, justify="right", no_wrap=True)


def _frequency(relative: bool) -> str:
    return "offset MHz" if relative else "centre MHz"


def _missing(chunks: Sequence[ChunkAnswer]) -> Iterator[str]:
    """A line for each model and way in which it was not in an answer."""
    counts: dict[tuple[str, str], int] = {}
    details: dict[tuple[str, str], str] = {}
    for chunk in chunks:
        for one in chunk.models:
            if one.status in _ADVICE:
                key = (one.model, str(one.status))
                counts[key] = counts.get(key, 0) + 1
                details[key] = one.detail or details.get(key, "")
    for (name, status), count in sorted(counts.items()):
        detail = f" ({details[name, status]})" if details[name, status] else ""
        yield escape(f"{name} was {status} in {count} of {len(chunks)} chunks{detail}; {_ADVICE[status]}")


def _doubtful(chunks: Sequence[ChunkAnswer]) -> Iterator[Any]:
    """Answers on time that the server has a word about."""
    return (one for chunk in chunks for one in chunk.models if one.detail and one.status not in _ADVICE)


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get("LONGHAUL_TOKEN", "").strip() or None
    fix = "Name a file that holds the token"
    try:
        token = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserError(f"--token-file {file}: {error.strerror}", fix) from None
    except UnicodeDecodeError:
        raise UserError(f"--token-file {file}: is no text", fix) from None
    if not token:
        raise UserError(f"--token-file {file}: is empty", fix)
    return token


def _name(file: Path) -> str:
    return file.stem if file.suffix.startswith(".sigmf") else file.name


def _keep(path: Path | None, found: _Found, console: Console) -> None:
    """Write the answers, if they are wanted."""
    if path is None:
        return
    content = {
        "chunks": [chunk.model_dump(mode="json") for chunk in found.chunks],
        "tracks": [track.model_dump(mode="json") for track in found.tracks],
    }
    _write("--json", path, (json.dumps(content, indent=1) + "\n").encode())
    console.print(f"answers written to {escape(str(path))}")


def _check_writable(option: str, path: Path | None) -> None:
    """Refuse a path that cannot be written before anybody is asked; folders that are not there yet are made later."""
    if path is None:
        return
    folder = next((above for above in path.absolute().parents if above.exists()), Path("/"))
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = "is a folder" if path.is_dir() else f"nothing can be written in {folder}"
        raise UserError(f"{option} {path}: {reason}", f"Give a file in a folder that you can write, with {option}")


def _write(option: str, path: Path, content: bytes) -> None:
    from longhaul.storage import Storage

    try:
        Storage.open(path.parent).write_bytes(path.name, content)
    except OSError as error:
        raise UserError(
            f"{option} {path}: {error.strerror or error}", f"Give a file in a folder that you can write, with {option}"
        ) from None
