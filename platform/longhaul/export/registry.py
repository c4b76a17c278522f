"""The model registry: a folder of versioned, checksummed models, on a local path or on S3.

    <root>/<name>/<version>/   model.onnx (or model.b1.onnx and so on), engine plans, manifest.json
    <root>/<name>/names.json   aliases such as `prod` -> version

The manifest is written last: a version without one does not exist. A published version never changes; only aliases move.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from longhaul.errors import IntegrityError, UserError
from longhaul.export.manifest import MANIFEST_FILE, Description, Manifest, ParityRecord
from longhaul.storage import FileRecord, Storage, file_sha256

LATEST, PROD = "latest", "prod"

_ALIASES_FILE = "names.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,39}")


class Registry:
    """Models by name and version.

    Args:
        root: a local folder (it need not exist yet) or `s3://bucket/prefix`.

    Raises:
        UserError: `root` has an unknown scheme.
    """

    def __init__(self, root: str) -> None:
        self._storage = Storage.open(root)

    @property
    def uri(self) -> str:
        """What `Registry` takes to get here again."""
        return self._storage.uri

    def names(self) -> list[str]:
        """The models that have a version, sorted."""
        return [entry.name for entry in self._storage.list() if entry.is_dir and self.versions(entry.name)]

    def versions(self, name: str) -> list[str]:
        """The complete versions of a model, oldest first; empty for an unknown name."""
        folders = self._version_folders(name)
        return [version for version in folders if self._storage.size(f"{name}/{version}/{MANIFEST_FILE}") is not None]

    def aliases(self, name: str) -> dict[str, str]:
        """Alias -> version, without the implicit `latest`.

        Raises:
            IntegrityError: the file of aliases is damaged.
        """
        file = f"{name}/{_ALIASES_FILE}"
        try:
            aliases = json.loads(self._storage.read_bytes(file))
        except FileNotFoundError:
            return {}
        except ValueError:
            aliases = None
        if not isinstance(aliases, dict) or not all(_VERSION.fullmatch(str(v)) for v in aliases.values()):
            fix = f"Delete it and run `longhaul models promote {name} VERSION`"
            raise IntegrityError(f"{self._storage.uri}/{file}: is damaged. {fix}")
        return {str(alias): str(version) for alias, version in aliases.items()}

    def folder(self, name: str, version: str) -> str:
        """The address of a version's folder."""
        return f"{self._storage.uri}/{name}/{version}"

    def resolve(self, name: str, version: str | None = None) -> Manifest:
        """The manifest of a version.

        Args:
            name: the model's name.
            version: a version or an alias; left out, `prod` where that is set, else the newest whose parity passed.

        Raises:
            UserError: no such model, version or alias; names the nearest and what there is.
            IntegrityError: the manifest is damaged.
        """
        versions = self.versions(name)
        if not versions:
            raise self._unknown_model(name)
        aliases = {LATEST: versions[-1]} | self.aliases(name)
        if version is None and PROD not in aliases:
            return self._newest_that_agrees(name, versions)
        wanted = version or PROD
        number = aliases.get(wanted, wanted)
        if number not in versions:
            known = [*versions, *aliases]
            points = f" (points to {number}, which is not there)" if wanted in aliases else ""
            problem = f"model {name}@{wanted}: no such version{points} in {self.uri}"
            raise UserError(problem, _suggest(wanted, known, "Give one of"))
        return self._read(name, number)

    def publish(self, description: Description, files: Sequence[Path]) -> Manifest:
        """Add a version: upload the files, then the manifest. What fails before the manifest leaves no version.

        Args:
            description: says what the model is.
            files: local files; they keep their names.
        """
        version, claim = self._claim(description.name)
        folder = self._storage.child(description.name).child(version)
        try:
            for file in files:
                folder.upload(file, file.name)
            records = {file.name: FileRecord(sha256=file_sha256(file), bytes=file.stat().st_size) for file in files}
            fields = {name: getattr(description, name) for name in Description.model_fields}
            manifest = Manifest(**fields, version=version, created_s=time.time(), files=records)
            folder.write_bytes(MANIFEST_FILE, manifest.encode())
        except BaseException:  # also a Ctrl-C: what is half there goes
            with contextlib.suppress(OSError):
                folder.delete_dir("")
            raise
        with contextlib.suppress(OSError):  # it harms nobody
            folder.delete_file(claim)
        return manifest

    def verify(self, manifest: Manifest) -> list[str]:
        """What is wrong with the stored files of a version, one line each, beginning with the file's address."""
        problems = []
        try:
            if self._read(manifest.name, manifest.version) != manifest:
                problems.append(f"{self.folder(manifest.name, manifest.version)}/{MANIFEST_FILE}: is not the one given")
        except IntegrityError as error:
            problems.append(str(error))
        for file, record in manifest.files.items():
            problem = self._file_problem(manifest, file, record)
            if problem:
                problems.append(f"{self.folder(manifest.name, manifest.version)}/{file}: {problem}")
        return problems

    def fetch(self, manifest: Manifest, target_dir: Path) -> dict[str, Path]:
        """Bring a version's files to a local folder, each verified before it appears there.

        A file that is there already and verifies is not downloaded again.

        Returns:
            File name -> local path.

        Raises:
            IntegrityError: a file is missing or is not what the manifest says; names it.
        """
        self._read(manifest.name, manifest.version)
        target_dir.mkdir(parents=True, exist_ok=True)
        return {file: self._fetch_file(manifest, file, record, target_dir) for file, record in manifest.files.items()}

    def promote(self, name: str, version: str, alias: str = PROD) -> Manifest:
        """Point an alias to a version, after verifying all of its files.

        Raises:
            UserError: no such version, a name that cannot be an alias, or a model whose parity failed.
            IntegrityError: a file of the version is damaged.
        """
        if alias == LATEST or _ALIAS.fullmatch(alias) is None:
            fix = "Give a name such as prod; `latest` is always the newest version"
            raise UserError(f"alias {alias!r}: cannot be given to a version", fix)
        manifest = self.resolve(name, version)
        parity = manifest.parity
        if not parity.passed:
            problem = f"model {name}@{manifest.version}: what was exported does not agree with the torch model ({_why(parity)})"
            raise UserError(problem, "Export the run again, and promote a version whose parity passed")
        problems = self.verify(manifest)
        if problems:
            raise IntegrityError("; ".join(problems))
        aliases = self.aliases(name) | {alias: manifest.version}
        self._storage.write_bytes(f"{name}/{_ALIASES_FILE}", (json.dumps(aliases, indent=1, sort_keys=True) + "\n").encode())
        return manifest

    def _newest_that_agrees(self, name: str, versions: Sequence[str]) -> Manifest:
        for version in reversed(versions):
            manifest = self._read(name, version)
            if manifest.parity.passed:
                return manifest
        fix = "Export the run again; `longhaul models show` has the evidence"
        raise UserError(f"model {name}: no version of it agrees with its torch model", fix)

    def _version_folders(self, name: str) -> list[str]:
        entries = self._storage.list(name) if _NAME.fullmatch(name) else []
        return sorted((e.name for e in entries if e.is_dir and _VERSION.fullmatch(e.name)), key=int)

    def _claim(self, name: str) -> tuple[str, str]:
        """The next free version, its folder made ours, and the file that says so.

        Neither S3 nor a network drive has a lock that both know. Each claimant writes a file of its own and then looks:
        of two, whoever writes later sees the other's, so that at most one goes on. A folder that a failed publish left is
        passed over.
        """
        claim = f".claim-{uuid.uuid4().hex}"
        number = int((self._version_folders(name) or ["0"])[-1])
        while True:
            number += 1
            folder = self._storage.child(name).child(str(number))
            folder.write_bytes(claim, b"")
            if [entry.name for entry in folder.list()] == [claim]:
                return str(number), claim
            with contextlib.suppress(FileNotFoundError):
                folder.delete_file(claim)

    def _read(self, name: str, version: str) -> Manifest:
        source = f"{self.folder(name, version)}/{MANIFEST_FILE}"
        try:
            data = self._storage.read_bytes(f"{name}/{version}/{MANIFEST_FILE}")
        except FileNotFoundError:
            raise IntegrityError(f"{source}: is missing. Publish the model again") from None
        manifest = Manifest.decode(data, source)
        if (manifest.name, manifest.version) != (name, version):
            found = f"{manifest.name}@{manifest.version}"
            raise IntegrityError(f"{source}: is the manifest of {found}. Publish the model again")
        return manifest

    def _file_problem(self, manifest: Manifest, file: str, record: FileRecord) -> str | None:
        stored = f"{manifest.name}/{manifest.version}/{file}"
        size = self._storage.size(stored)
        if size is None:
            return "is missing"
        if size != record.bytes:
            return f"has {size} bytes where the manifest says {record.bytes}"
        return None if self._storage.sha256(stored) == record.sha256 else "its SHA-256 differs from the manifest's"

    def _fetch_file(self, manifest: Manifest, file: str, record: FileRecord, target_dir: Path) -> Path:
        target = target_dir / file
        if target.is_file() and target.stat().st_size == record.bytes and file_sha256(target) == record.sha256:
            return target
        address = f"{self.folder(manifest.name, manifest.version)}/{file}"
        partial = target_dir / f"{file}.partial-{uuid.uuid4().hex[:8]}"
        try:
            self._storage.download(f"{manifest.name}/{manifest.version}/{file}", partial)
            if partial.stat().st_size != record.bytes:
                found = f"has {partial.stat().st_size} bytes where the manifest says {record.bytes}"
                raise IntegrityError(f"{address}: {found}. Publish the model again")
            if file_sha256(partial) != record.sha256:
                raise IntegrityError(f"{address}: its SHA-256 differs from the manifest's. Publish the model again")
            os.replace(partial, target)
        except FileNotFoundError:
            raise IntegrityError(f"{address}: is missing. Publish the model again") from None
        finally:
            partial.unlink(missing_ok=True)
        return target

    def _unknown_model(self, name: str) -> UserError:
        known = self.names()
        fix = _suggest(name, known, "There are") if known else "Fill it with `longhaul export RUN`"
        return UserError(f"model {name!r}: not in the registry {self.uri}", fix)


def _why(parity: ParityRecord) -> str:
    """The first finding that failed."""
    if parity.decisions is None:
        return f"largest difference {parity.max_abs_difference:.3g}, tolerance {parity.tolerance:.3g}"
    for runtime in parity.decisions.runtimes:
        for found in runtime.thresholds:
            if not found.passed:
                return f"{runtime.runtime}, {found}"
        if not runtime.passed:
            drop = f"mean average precision {runtime.map:.4f}, torch {runtime.torch_map:.4f}"
            return f"{runtime.runtime}: {drop}" if any(found.reference for found in runtime.thresholds) else "no detection at all"
    return "marked so by whoever published it"


def _suggest(wanted: str, known: Sequence[str], lead: str) -> str:
    near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}? " if near else ""
    return f"{hint}{lead}: {', '.join(known)}"


def split_reference(reference: str) -> tuple[str, str | None]:
    """`digits@3` -> (`digits`, `3`); `digits` -> (`digits`, None)."""
    name, _, version = reference.partition("@")
    return name, version or None


def aliases_of(version: str, aliases: Mapping[str, str]) -> list[str]:
    """The aliases that point to a version, sorted."""
    return sorted(alias for alias, target in aliases.items() if target == version)
