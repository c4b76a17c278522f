"""Recordings to folders of tiles: in this process, or in parallel on Ray.

Tasks get a stretch of a recording and write its tiles themselves, so nothing large travels. A bounded number of tasks is in
flight. On a cluster of several machines, recordings and folder must be on storage that all of them see.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from longhaul.errors import UserError
from longhaul.signals.chunks import Chunk, Tally, divide, origin_of, stretches, write_chunk
from longhaul.signals.recording import Recording, find_recordings, open_recording
from longhaul.signals.tile_folder import (
    SETTINGS,
    TileSettings,
    is_stamp,
    read_settings,
    remove_partials,
    settings_difference,
    stamp_folders,
    write_settings,
)

_AHEAD = 2  # tasks in flight a worker: one at work, one waiting

Progress = Callable[[int, int, Tally], None]
"""Called with chunks done, chunks in all, and the tally so far."""


@dataclass
class Conversion:
    """What a conversion did.

    Attributes:
        folder: with the tiles.
        tally: of all recordings.
        recordings: how many gave chunks.
        left_out_s: seconds at the ends of recordings that filled no chunk.
        failed: recordings that gave no tiles or not all, a line each.
        notes: what is odd but not fatal, a line each.
    """

    folder: Path
    tally: Tally = field(default_factory=Tally)
    recordings: int = 0
    left_out_s: float = 0.0
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    """A task: a stretch of a recording."""

    recording: Recording
    chunks: tuple[Chunk, ...]


def convert(
    inputs: Sequence[Path],
    out: Path,
    settings: TileSettings,
    *,
    workers: int | None = None,
    stamp: str | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Make the tiles of recordings in `out/spec_image/<stamp>`; what is complete there stays.

    Without a stamp, a folder that already has tiles of one of the recordings is gone on with; a new one is named for when the
    first recording began, or for now. A recording that cannot be read does not stop the others.

    Args:
        inputs: recordings, or folders of them.
        out: the folder that gets `spec_image`.
        settings: how; their `recordings` are filled in.
        workers: tasks at a time on the Ray cluster that this process is connected to (all its CPUs by default); 0 for none, in
            this process.
        stamp: name of the folder, YYYYMMDD_HHMMSS.
        progress: called as chunks get done.

    Raises:
        UserError: no recordings, a stamp that is none, or a folder made with other settings.
    """
    if stamp is not None and not is_stamp(stamp):
        raise UserError(f"--stamp {stamp}: is not of the form YYYYMMDD_HHMMSS", "Give for example --stamp 20260131_235959")
    failed: list[str] = []
    paths = _find(inputs, failed)
    opened = list(_open(paths, failed))
    folder = out / "spec_image" / (stamp or _stamp(out, opened))
    before = _settings_before(folder, settings)
    result = Conversion(folder, failed=failed)
    parts = _plan(opened, settings, before, result, max(1, workers or _cluster_cpus(workers)))
    if not parts:
        return result
    known = dict(before.recordings) if before else {}
    origins = {part.recording.name: origin_of(part.recording) for part in parts}
    complete = settings.model_copy(update={"recordings": {**known, **origins}})
    write_settings(folder, complete)
    remove_partials(folder)
    if len(complete.sample_rates_hz) > 1:
        rates = ", ".join(f"{rate:g}" for rate in complete.sample_rates_hz)
        result.notes.append(f"the folder's recordings have sample rates of {rates}: a pixel is not the same time and band in all")
    total = sum(len(part.chunks) for part in parts)
    done, errors = 0, dict[str, list[str]]()
    for part, tally in _run(parts, settings, folder, workers):
        done += len(part.chunks)
        result.tally.add(tally)
        if tally.errors:
            errors.setdefault(part.recording.name, []).extend(tally.errors)
        if progress is not None:
            progress(done, total, result.tally)
    failed.extend(_first_of(errors[name]) for name in sorted(errors))
    return result


def _find(inputs: Sequence[Path], failed: list[str]) -> list[Path]:
    """Paths of the recordings, each once; a second one of a name, whose tiles would have it too, is put down in `failed`."""
    found = sorted({Path(os.path.abspath(path)) for given in inputs for path in find_recordings(given)})
    names: dict[str, Path] = {}
    for path in found:
        other = names.setdefault(path.stem, path)
        if other != path:
            failed.append(f"{path}: has the same name as {other}, so their tiles would too. Convert it with another --out")
    return sorted(names.values())


def _open(paths: Sequence[Path], failed: list[str]) -> Iterator[Recording]:
    for path in paths:
        try:
            yield open_recording(path)
        except (UserError, OSError) as error:
            failed.append(_line(path, error))


def _stamp(out: Path, recordings: Sequence[Recording]) -> str:
    names = {recording.name for recording in recordings}
    for folder in reversed(stamp_folders(out)):
        settings = read_settings(folder)
        if settings is not None and names & settings.recordings.keys():
            return folder.name
    begun = [recording.started for recording in recordings if recording.started is not None]
    return f"{min(begun, default=datetime.now(UTC)):%Y%m%d_%H%M%S}"


def _settings_before(folder: Path, settings: TileSettings) -> TileSettings | None:
    """What a folder has been made with so far, or None for a new one.

    Raises:
        UserError: that is something else, or unknown.
    """
    before = read_settings(folder)
    if before is None and any(folder.glob("chunk_*.png")):
        raise UserError(f"{folder}: has tiles from elsewhere, without {SETTINGS}", "Give another --out or a new --stamp")
    if before is not None and (difference := settings_difference(settings, before)):
        raise UserError(f"{folder / SETTINGS}: {difference}", "Give the same settings, another --out, or a new --stamp")
    return before


def _plan(
    recordings: Sequence[Recording], settings: TileSettings, before: TileSettings | None, result: Conversion, workers: int
) -> list[_Part]:
    """The tasks; what cannot be converted is put down in `result`."""
    parts = []
    for recording in recordings:
        known = before.recordings.get(recording.name) if before else None
        try:
            if known is not None and known != origin_of(recording):
                raise UserError(
                    f"{recording.path}: is not as it was when tiles were made of it in {result.folder}",
                    f"Remove its tiles (chunk_{recording.name}_*) and its entry in {SETTINGS}, or give a new --stamp",
                )
            division = divide(recording, settings)
            if known is None and recording.sha512 is not None:
                open_recording(recording.path, verify=True)  # all of it is about to be read anyway
        except (UserError, OSError) as error:
            result.failed.append(_line(recording.path, error))
            continue
        result.recordings += 1
        result.left_out_s += division.left_out / recording.sample_rate_hz
        parts += [_Part(recording, chunks) for chunks in stretches(division.chunks, workers)]
    return parts


def _run(parts: Sequence[_Part], settings: TileSettings, folder: Path, workers: int | None) -> Iterator[tuple[_Part, Tally]]:
    if workers == 0:
        for part in parts:
            for chunk in part.chunks:
                one = _Part(part.recording, (chunk,))
                yield one, _convert_part(one, settings, folder)
        return
    yield from _run_on_ray(parts, settings, folder.resolve(), workers or _cluster_cpus(workers))


def _run_on_ray(parts: Sequence[_Part], settings: TileSettings, folder: Path, workers: int) -> Iterator[tuple[_Part, Tally]]:
    """Tallies as tasks end, in whatever order."""
    import ray

    task = ray.remote(num_cpus=1)(_convert_part)
    waiting, running = list(reversed(parts)), dict[Any, _Part]()
    try:
        while waiting or running:
            while waiting and len(running) < _AHEAD * workers:
                part = waiting.pop()
                running[task.remote(part, settings, folder)] = part
            ended, _ = ray.wait(list(running), num_returns=1)
            for reference in ended:
                yield running.pop(reference), ray.get(reference)
    finally:
        for reference in running:
            ray.cancel(reference)


def _convert_part(part: _Part, settings: TileSettings, folder: Path) -> Tally:
    tally = Tally()
    with _one_thread():
        for chunk in part.chunks:
            try:
                tally.add(write_chunk(part.recording, chunk, settings, folder))
            except UserError as error:
                tally.errors += (str(error),)
    return tally


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """What the cluster counts for a task. And the steps of a tile are short: on a busy machine, threads wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cluster_cpus(workers: int | None) -> int:
    if workers == 0:
        return 1
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _first_of(errors: Sequence[str]) -> str:
    """A recording's errors in a line."""
    more = len(errors) - 1
    return min(errors) + (f" (and {more} more of its chunks failed)" if more else "")


def _line(path: Path, error: Exception) -> str:
    return str(error) if str(path) in str(error) else f"{path}: {error}"
