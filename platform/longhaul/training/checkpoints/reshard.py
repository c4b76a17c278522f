"""Resharding: the universal form of a checkpoint, made once and cached in the run directory.

DeepSpeed refuses the ZeRO shards of another number of workers; `universal` turns them into whole tensors, from which any
number takes its parts. A CPU task outside the training group does it:

    universal/<SHA-256 over the checkpoint's manifests>/<id of the making>/
        engine/zero/<parameter>/fp32.pt, exp_avg.pt, ...
        engine/zero/optimizer_state.pt            options of the parameter groups, loss scale
        engine/*_model_states.pt                  step counts of DeepSpeed's own
        manifest.json                             names, sizes, SHA-256; written last, so what has one is complete

It is a cache: what is not there or not sound is made again from the checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from longhaul.resilience.checkpoint import CheckpointStore
from longhaul.resilience.run_directory import RunDirectory
from longhaul.storage import FileRecord, Storage, file_sha256
from longhaul.training.checkpoints.universal import ENGINE, to_universal
from longhaul.training.ranks import Ranks

log = logging.getLogger(__name__)

_FOLDER = "universal"
_MANIFEST = "manifest.json"
_NEAR_S, _FAR_S = 0.5, 5.0  # between two looks for the manifest: on a local path, on S3
_THREADS = 16


class UniversalManifest(BaseModel):
    """What a complete universal checkpoint holds: `files` by name, and the `checkpoint` that it was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    checkpoint: str
    files: dict[str, FileRecord]


class UniversalDamagedError(Exception):
    """A universal checkpoint is not what was written; a restart makes it again."""


@contextlib.contextmanager
def universal(run: RunDirectory, name: str, ranks: Ranks, beat: Callable[[], None]) -> Iterator[Path]:
    """A local folder with the universal form of checkpoint `name`; all ranks must call it.

    Rank 0 looks whether it is there and sound, and has a Ray task make it where it is not. The ranks wait by looking at the
    storage, not in a collective, so no timeout of collectives applies.

    Args:
        run: the run.
        name: of the checkpoint, which has been verified.
        ranks: who waits together.
        beat: called while waiting, so that nobody takes it for a hang.

    Raises:
        UniversalDamagedError: it is not what was written.
    """
    import ray

    task, place = None, ""
    if ranks.is_first:
        place = _sound_one(run, name) or ""
        if not place:
            place = f"{digest(run, name)}/{uuid.uuid4().hex[:8]}"
            log.info("checkpoint %s is resharded for %d workers", name, ranks.world_size)
            task = _start(run.uri, name, place)
    place = ranks.from_first(place)
    folder = run.storage.child(f"{_FOLDER}/{place}")
    while not folder.exists(_MANIFEST):
        beat()
        if task is not None and ray.wait([task], timeout=0)[0]:
            ray.get(task)  # raises what went wrong
        time.sleep(_NEAR_S if folder.is_local else _FAR_S)
    beat()
    with tempfile.TemporaryDirectory(prefix="longhaul-universal-") as scratch:
        yield _fetch(folder, Path(scratch), beat)


def digest(run: RunDirectory, name: str) -> str:
    """SHA-256 over the manifests of checkpoint `name`, which name the SHA-256 of every file."""
    folder = CheckpointStore(run).folder(name)
    total = hashlib.sha256()
    for entry in folder.list():
        if entry.name.startswith("manifest-"):
            total.update(entry.name.encode() + b"\0" + folder.read_bytes(entry.name))
    return total.hexdigest()


def make(run: RunDirectory, name: str, place: str) -> None:
    """Make the universal form of checkpoint `name`, publish it at `universal/<place>`, and delete all others.

    Args:
        run: the run.
        name: of the checkpoint.
        place: `<digest>/<id>`, where nothing is yet.
    """
    store = CheckpointStore(run)
    with tempfile.TemporaryDirectory(prefix="longhaul-reshard-") as scratch:
        stored, target = store.folder(name), Path(scratch) / "universal"
        source = Path(stored.root)
        if not stored.is_local:
            source = store.fetch(name, Path(scratch) / "checkpoint", only=f"{ENGINE}/")
        target.mkdir()
        to_universal(source, target)
        if not stored.is_local:
            shutil.rmtree(source)  # disk space, before anything is written
        _publish(run.storage.child(f"{_FOLDER}/{place}"), target, name)
    wanted, own = place.split("/")
    for entry in run.storage.list(_FOLDER):
        if entry.name != wanted:
            run.storage.delete_dir(f"{_FOLDER}/{entry.name}")
    for entry in run.storage.list(f"{_FOLDER}/{wanted}"):
        if entry.name != own:
            run.storage.delete_dir(f"{_FOLDER}/{wanted}/{entry.name}")


def _start(uri: str, name: str, place: str) -> Any:
    """`make` as a Ray task of its own.

    It takes no CPU of the cluster's books, so it can always be placed; "DEFAULT" keeps it out of the training group's
    placement group, whose children would else inherit it; a process of its own sees no GPU.
    """
    import ray

    remote = ray.remote(
        num_cpus=0,
        max_calls=1,
        scheduling_strategy="DEFAULT",
        runtime_env={"env_vars": {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}},
    )(_make_at)
    return remote.remote(uri, name, place)


def _make_at(uri: str, name: str, place: str) -> None:
    make(RunDirectory.open(uri), name, place)


def _sound_one(run: RunDirectory, name: str) -> str | None:
    """The place of a complete universal form of checkpoint `name` whose every file verifies; damaged ones are deleted."""
    key = digest(run, name)
    for entry in run.storage.list(f"{_FOLDER}/{key}"):
        place = f"{key}/{entry.name}"
        folder = run.storage.child(f"{_FOLDER}/{place}")
        if not folder.exists(_MANIFEST):
            continue  # of an attempt that ended, or still being made for one
        try:
            _each(_manifest(folder), partial(_check, folder))
            return place
        except UniversalDamagedError as error:
            log.warning("the universal form of %s is made again: %s", name, error)
            run.storage.delete_dir(f"{_FOLDER}/{place}")
    return None


def _publish(folder: Storage, source: Path, checkpoint: str) -> None:
    names = [path.relative_to(source).as_posix() for path in sorted(source.rglob("*")) if path.is_file()]
    files = {n: FileRecord(sha256=file_sha256(source / n), bytes=(source / n).stat().st_size) for n in names}
    manifest = UniversalManifest(checkpoint=checkpoint, files=files)
    _each(manifest, lambda file, record: folder.upload(source / file, file))
    folder.write_bytes(_MANIFEST, (manifest.model_dump_json(indent=1) + "\n").encode())


def _fetch(folder: Storage, scratch: Path, beat: Callable[[], None]) -> Path:
    """Where its files lie on this machine: its own path, or copies below `scratch`; every file is checked."""
    source = folder if folder.is_local else Storage.open(scratch)

    def take(file: str, record: FileRecord) -> None:
        if not folder.is_local:
            folder.download(file, scratch / file)
        _check(source, file, record)
        beat()

    _each(_manifest(folder), take)
    return Path(source.root)


def _manifest(folder: Storage) -> UniversalManifest:
    try:
        return UniversalManifest.model_validate_json(folder.read_bytes(_MANIFEST))
    except (ValidationError, FileNotFoundError) as error:
        raise UniversalDamagedError(f"{_MANIFEST} cannot be read ({type(error).__name__})") from None


def _check(folder: Storage, file: str, record: FileRecord) -> None:
    try:
        if folder.sha256(file) != record.sha256:
            raise UniversalDamagedError(f"{file} is not what was written (SHA-256 differs)")
    except FileNotFoundError:
        raise UniversalDamagedError(f"{file} is missing") from None


def _each(manifest: UniversalManifest, do: Callable[[str, FileRecord], None]) -> None:
    """Several at once: there are four small files a parameter, and a storage far away takes its time for each."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(lambda item: do(*item), manifest.files.items()):
            pass
