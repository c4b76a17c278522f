"""Checkpoints: visible only when complete, resumed from only when every byte is as it was written.

    checkpoints/step-000000120-3fa9c2d1/
        model.safetensors                  whole weights, float32, whatever the engine (rank 0)
        ema.safetensors                    their moving average, where the run keeps one (rank 0)
        progress.json                      cursor, step, schedule and early-stop bookkeeping (rank 0)
        engine/...                         the engine's own files: optimizer, scaler, ZeRO shards (each rank its own)
        rank-00000.pt                      random states and running statistics (each rank its own)
        manifest-00000-of-00002.json       one a rank, written after all of that rank's files: names, sizes, SHA-256

A checkpoint is complete when the manifests of all its ranks are there. No rank waits for another to publish, so the same
layout serves uploads that run behind training. Names end in an id of the attempt: a step saved again after a rollback
never meets the files of the first time.

Two classes are kept: ephemeral (the newest few) and permanent (the best k by the goal metric, and one every so often). Of
a run in phases this is meant of the newest phase; of each one before it the last checkpoint stays, and the permanent ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from longhaul.errors import IntegrityError, UserError
from longhaul.resilience.run_directory import RunDirectory
from longhaul.storage import FileRecord, Storage, file_sha256

log = logging.getLogger(__name__)

_MANIFEST = re.compile(r"manifest-(\d{5})-of-(\d{5})\.json")
_PHASE = re.compile(r"step-\d+-p(\d+)-")
_REJECTED = "rejected.json"


Beat = Callable[[], None]
"""Called now and then in long work, so that nobody takes it for a hang."""


def _nothing() -> None:
    """Nobody waits."""


class Manifest(BaseModel):
    """What one rank wrote.

    Attributes:
        step: optimizer steps done.
        attempt: id of the start of the workers that wrote it.
        permanent: never retired.
        goal: the goal metric at this step, where it was measured.
        phase: number of the run's phase.
        files: by name.
        seal: SHA-256 of all the rest of this manifest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    step: int
    rank: int
    world_size: int
    attempt: str
    created_s: float
    permanent: bool = False
    goal: float | None = None
    phase: int = 0
    files: dict[str, FileRecord]
    seal: str = ""

    def sealed(self) -> Manifest:
        """The same with its seal."""
        return self.model_copy(update={"seal": _seal(self.model_dump(mode="json"))})


@dataclass(frozen=True)
class Entry:
    """One complete checkpoint: its folder's name and what its rank 0 says of it."""

    name: str
    step: int
    created_s: float
    permanent: bool
    goal: float | None
    world_size: int
    phase: int = 0


@dataclass(frozen=True)
class Retention:
    """What stays: the `latest` newest, the `best` k by goal in `direction`, and every permanent one."""

    latest: int
    best: int
    direction: Literal["max", "min"]


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        run: the run directory.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._storage = run.storage.child("checkpoints")

    def folder(self, name: str) -> Storage:
        """The folder of checkpoint `name`."""
        return self._storage.child(name)

    def publish(self, name: str, source: Path, manifest: Manifest) -> None:
        """Store every file below `source` (this rank's), then this rank's manifest.

        Args:
            name: from `checkpoint_name`, the same on all ranks.
            source: a local folder.
            manifest: without files; they are filled in from `source`.
        """
        folder = self.folder(name)
        records = {}
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            relative = path.relative_to(source).as_posix()
            records[relative] = FileRecord(sha256=file_sha256(path), bytes=path.stat().st_size)
            folder.upload(path, relative)
        full = manifest.model_copy(update={"files": records}).sealed()
        folder.write_bytes(_manifest_name(manifest.rank, manifest.world_size), (full.model_dump_json(indent=1) + "\n").encode())

    def entries(self) -> list[Entry]:
        """Complete checkpoints, oldest first by phase, step and time of writing; rejected ones are left out."""
        found = []
        for child in self._storage.list():
            if child.is_dir:
                names = [entry.name for entry in self.folder(child.name).list()]
                if not self._what_is_missing(names) and _REJECTED not in names:
                    try:
                        found.append(self._entry(child.name, names))
                    except IntegrityError as error:
                        log.warning("checkpoint %s is passed over: %s", child.name, error)
        return sorted(found, key=lambda entry: (entry.phase, entry.step, entry.created_s))

    def candidates(self, phase: int = 0) -> list[str]:
        """Names of all folders of a phase, complete or not, newest first: what a resume looks through."""
        names = [child.name for child in self._storage.list() if child.is_dir and _phase_of(child.name) == phase]
        return sorted((n for n in names if not self.folder(n).exists(_REJECTED)), reverse=True)

    def problems(self, name: str, *, share: tuple[int, int] = (0, 1), beat: Beat = _nothing) -> list[str]:
        """Why checkpoint `name` cannot be resumed from; empty when every file is what its manifest says.

        Args:
            name: of the checkpoint.
            share: (rank, world size) of the caller: hash only the files of every world-size-th manifest from rank on.
            beat: called after every file.
        """
        folder = self.folder(name)
        names = [entry.name for entry in folder.list()]
        missing = self._what_is_missing(names)
        if missing:
            return [missing]
        found = []
        for manifest_name in sorted(n for n in names if _MANIFEST.fullmatch(n))[share[0] :: share[1]]:
            try:
                manifest = self._manifest(name, manifest_name)
            except IntegrityError as error:
                found.append(str(error))
                continue
            for file, record in manifest.files.items():
                problem = _damage(folder, file, record)
                found += [] if problem is None else [problem]
                beat()
        return found

    def is_complete(self, name: str) -> bool:
        """Whether all manifests of checkpoint `name` are there: one without was never resumable, its writer died."""
        return self._what_is_missing([entry.name for entry in self.folder(name).list()]) is None

    def reject(self, name: str, reasons: Sequence[str]) -> None:
        """Mark a checkpoint so that nothing counts or resumes it again; its files stay until the next `retire`."""
        text = json.dumps({"time_s": time.time(), "reasons": list(reasons)}, indent=1)
        self.folder(name).write_bytes(_REJECTED, text.encode())

    def retire(self, retention: Retention, attempt: str) -> list[str]:
        """Delete what need not stay; also rejected and incomplete leftovers of other attempts. Returns their names.

        Args:
            retention: what stays.
            attempt: the running attempt, whose unfinished folders are left alone.
        """
        entries = self.entries()
        newest = newest_phase(entries)
        keep = {entry.name for entry in newest[-retention.latest :]} | {entry.name for entry in entries if entry.permanent}
        keep |= {entry.name for entry in best_entries(newest, retention.direction)[: retention.best]}
        keep |= set({entry.phase: entry.name for entry in entries}.values())  # the last of each phase
        complete = {entry.name for entry in entries}
        gone = []
        for child in self._storage.list():
            leftover = child.name not in complete and not child.name.endswith(attempt)
            if child.is_dir and child.name not in keep and (leftover or child.name in complete):
                self._storage.delete_dir(child.name)
                gone.append(child.name)
        return gone

    def fetch(self, name: str, target: Path, *, only: str = "", beat: Beat = _nothing) -> Path:
        """Copy a checkpoint's files (those whose name starts with `only`) to the local folder `target`, checking each.

        `beat` is called after every file.

        Raises:
            IntegrityError: a file is missing, cut short or changed.
        """
        for manifest_name in sorted(e.name for e in self.folder(name).list() if _MANIFEST.fullmatch(e.name)):
            for file, record in self._manifest(name, manifest_name).files.items():
                if file.startswith(only):
                    try:
                        self.folder(name).download(file, target / file)
                    except FileNotFoundError:
                        raise IntegrityError(f"checkpoint {name}: {file} is missing") from None
                    if file_sha256(target / file) != record.sha256:
                        raise IntegrityError(f"checkpoint {name}: {file} is not what was written (SHA-256 differs)")
                    beat()
        return target

    def _entry(self, name: str, names: Sequence[str]) -> Entry:
        first = self._manifest(name, next(n for n in sorted(names) if _MANIFEST.fullmatch(n)))
        return Entry(name, first.step, first.created_s, first.permanent, first.goal, first.world_size, first.phase)

    def _manifest(self, name: str, manifest_name: str) -> Manifest:
        try:
            members = json.loads(self.folder(name).read_bytes(manifest_name))
            manifest = Manifest.model_validate(members)
        except (ValueError, FileNotFoundError) as error:  # pydantic's and json's errors are ValueErrors
            raise IntegrityError(f"{manifest_name} cannot be read ({type(error).__name__})") from None
        if manifest.seal != _seal(members):
            raise IntegrityError(f"{manifest_name} is not what was written (its seal differs)")
        return manifest

    @staticmethod
    def _what_is_missing(names: Sequence[str]) -> str | None:
        matches = [match for name in names if (match := _MANIFEST.fullmatch(name))]
        if not matches:
            return "incomplete: it has no manifest"
        world_size = int(matches[0][2])
        absent = sorted(set(range(world_size)) - {int(match[1]) for match in matches})
        return f"incomplete: the manifests of ranks {absent} of {world_size} are missing" if absent else None


@dataclass(frozen=True)
class Weights:
    """A model's weights from a checkpoint: `state` by name, float32; `checkpoint` and `phase` are where they are from."""

    state: dict[str, Tensor]
    checkpoint: str
    step: int
    phase: int = 0


def load_weights(run: RunDirectory, which: Literal["best", "latest"] = "best") -> Weights:
    """The weights to measure and export: the moving average where the run keeps one.

    Args:
        run: the run.
        which: the best of the newest phase by the goal metric (the latest where none was measured), or the latest; where
            that one is damaged, the next, with a warning in the log.

    Raises:
        UserError: the run has no complete checkpoint.
        IntegrityError: the weights of every checkpoint are damaged.
    """
    from safetensors.torch import load_file

    store = CheckpointStore(run)
    entries = newest_phase(store.entries())
    if not entries:
        raise UserError(f"run {run.uri}: has no complete checkpoint", "Train it first: longhaul train")
    ranked = best_entries(entries, run.summary().goal_direction) if which == "best" else []
    damaged = []
    for entry in [*ranked, *reversed(entries)]:
        try:
            with tempfile.TemporaryDirectory() as scratch:
                folder = store.fetch(entry.name, Path(scratch), only="model.safetensors")
                store.fetch(entry.name, folder, only="ema.safetensors")
                averaged = folder / "ema.safetensors"
                state = load_file(averaged if averaged.exists() else folder / "model.safetensors")
            return Weights(state, entry.name, entry.step, entry.phase)
        except IntegrityError as error:
            log.warning("%s; the next best is taken", error)
            damaged.append(str(error))
    raise IntegrityError(f"run {run.uri}: the weights of no checkpoint verify ({'; '.join(dict.fromkeys(damaged))})")


def best_entries(entries: Sequence[Entry], direction: Literal["max", "min"]) -> list[Entry]:
    """Those with a measured goal, best first; of equals the earlier step first."""
    sign = -1.0 if direction == "max" else 1.0
    return sorted((e for e in entries if e.goal is not None), key=lambda e: (sign * (e.goal or 0.0), e.step))


def newest_phase(entries: Sequence[Entry]) -> list[Entry]:
    """Those of the newest phase that has any."""
    return [entry for entry in entries if entry.phase == max(other.phase for other in entries)]


def checkpoint_name(step: int, attempt: str, phase: int = 0) -> str:
    """`step-000000120-3fa9c2d1`, in later phases `step-000000120-p1-3fa9c2d1`: sorts by step, and is never used twice."""
    return f"step-{step:09d}-p{phase}-{attempt}" if phase else f"step-{step:09d}-{attempt}"


def _phase_of(name: str) -> int:
    match = _PHASE.match(name)
    return int(match[1]) if match else 0


def _seal(members: dict[str, Any]) -> str:
    """Over the members as they are stored: a field that a later version adds does not break the seal of an older one."""
    rest = {name: value for name, value in members.items() if name != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _manifest_name(rank: int, world_size: int) -> str:
    return f"manifest-{rank:05d}-of-{world_size:05d}.json"


def _damage(folder: Storage, file: str, record: FileRecord) -> str | None:
    size = folder.size(file)
    if size is None:
        return f"{file} is missing"
    if size != record.bytes:
        return f"{file} has {size} bytes instead of {record.bytes}"
    return None if folder.sha256(file) == record.sha256 else f"{file} is not what was written (SHA-256 differs)"
