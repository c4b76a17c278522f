"""Synthetic scenes written as SigMF recordings, several at a time in processes of their own."""

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sigmf import SigMFFile

from longhaul.errors import UserError
from longhaul.signals.scene_settings import SceneSettings
from longhaul.signals.scenes import Scene
from longhaul.signals.sigmf_writer import RecordingWriter

STARTED = datetime(2026, 1, 1, tzinfo=UTC)  # of the first scene, an hour before the next: the same bytes whenever they are made


def write_scene(scene: Scene, folder: Path, datatype: str = "ci16_le") -> Path:
    """Render a scene into `<kind>_<number>.sigmf-data` and its metadata; returns the path of the metadata."""
    writer = RecordingWriter(
        folder / f"{scene.settings.kind}_{scene.number:03}",
        sample_rate_hz=scene.settings.sample_rate_hz,
        center_hz=scene.center_hz,
        datatype=datatype,
        description=scene.description,
        started=STARTED + timedelta(hours=scene.number),
    )
    with writer:
        for block in scene.blocks():
            writer.write(block)
        writer.annotate(scene.annotations)
    _name_the_source(writer.meta_path)
    return writer.meta_path


def write_scenes(
    settings: SceneSettings, folder: Path, *, count: int, seed: int = 0, datatype: str = "ci16_le", workers: int | None = None
) -> Iterator[Path]:
    """Write the scenes 0 to `count` - 1 of a seed, and yield each one's metadata once it is complete, in any order.

    Args:
        settings: of all of them.
        folder: where they go.
        count: how many.
        seed: the same seed gives the same files, however many workers.
        datatype: SigMF's name of the samples' type.
        workers: processes at a time; 0 is this one; None is one for every CPU at hand.
    """
    at_hand = len(os.sched_getaffinity(0)) if workers is None else workers
    processes = min(at_hand, count)
    if processes < 2:
        for number in range(count):
            yield write_scene(Scene(settings, seed, number), folder, datatype)
        return
    # spawned: a process that holds threads of torch or Ray must not be forked
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        jobs = [pool.submit(_write_numbered, settings, seed, number, folder, datatype) for number in range(count)]
        for job in as_completed(jobs):
            yield job.result()
    finally:
        pool.shutdown(cancel_futures=True)


def refuse_used_folder(folder: Path) -> None:
    """Nothing is written over: a folder may be new, or hold anything but recordings.

    Raises:
        UserError: it is a file, or recordings lie in it.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file", "Name a folder")
    found = sorted(folder.rglob("*.sigmf*"))
    if found:
        raise UserError(
            f"{folder}: holds recordings already, {found[0].name} for one", "Choose another folder, or remove this one"
        )


def _write_numbered(settings: SceneSettings, seed: int, number: int, folder: Path, datatype: str) -> Path:
    return write_scene(Scene(settings, seed, number), folder, datatype)


def _name_the_source(path: Path) -> None:
    """Say in the metadata that no radio was there."""
    meta = SigMFFile(metadata=json.loads(path.read_text(encoding="utf-8")))
    meta.set_global_field("core:author", "Longhaul")
    meta.set_global_field("core:hw", "synthetic")
    part = path.with_name(f"{path.name.removesuffix('.sigmf-meta')}.part.sigmf-meta")
    meta.tofile(part, overwrite=True)
    part.replace(path)
