"""Where a recording's metadata and samples lie: `.sigmf-meta` with its data file, an archive, the members of a collection.

Symbols wrapped: `sigmf.validate.validate`, `sigmf.sigmffile.get_sigmf_filenames`. `sigmf.fromfile` and `SigMFArchiveReader`
are not used to read: they map the data file as a whole, which an address space with a limit cannot do, say nothing of
which field is wrong, and take a data file that has been cut short with a warning.
"""

from __future__ import annotations

import json
import tarfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from jsonschema import ValidationError
from sigmf import schema
from sigmf.sigmffile import get_sigmf_filenames
from sigmf.validate import validate

from longhaul.errors import UserError

META, DATA, ARCHIVE, COLLECTION = ".sigmf-meta", ".sigmf-data", ".sigmf", ".sigmf-collection"
_INTEGERS = {
    "global": ("core:num_channels", "core:offset", "core:trailing_bytes"),
    "captures": ("core:sample_start", "core:header_bytes", "core:global_index"),
    "annotations": ("core:sample_start", "core:sample_count"),
}
_COMPRESSED = (".sigmf.gz", ".sigmf.xz", ".sigmf.zip")


@dataclass(frozen=True)
class Source:
    """A recording on disk, not yet looked into.

    Attributes:
        path: the metadata file or the archive.
        name: of the recording, without a suffix.
        meta: the metadata, as written.
        data: the file that holds the samples (the archive itself, for one), or None if there is none.
        offset, size: where in that file the recording's data lie, in bytes.
    """

    path: Path
    name: str
    meta: bytes
    data: Path | None
    offset: int = 0
    size: int = 0


def locate(path: Path) -> Source:
    """The recording behind a path: `.sigmf-meta`, `.sigmf-data`, `.sigmf`, or a name without any of them.

    Raises:
        UserError: there is nothing there, or something that is no recording.
    """
    if path.name.endswith(_COMPRESSED):
        raise UserError(
            f"{path}: a compressed archive cannot be mapped into memory", f"Unpack it, for example: tar -xf {path.name}"
        )
    if path.suffix == COLLECTION:
        raise UserError(f"{path}: is a collection of {len(members(path))} recordings", "Name one of its recordings")
    if path.is_dir():
        raise UserError(f"{path}: is a folder", "Name one of its recordings")
    names = get_sigmf_filenames(path)
    meta, archive = names["meta_fn"], names["archive_fn"]
    if archive.is_file() and (path.suffix == ARCHIVE or not meta.is_file()):
        return _in_archive(archive)
    if not meta.is_file():
        raise UserError(f"{meta}: there is no such recording", "Give the path of a .sigmf-meta file or a .sigmf archive")
    return Source(meta, names["base_fn"].name, meta.read_bytes(), None)


def _in_archive(path: Path) -> Source:
    try:
        with tarfile.open(path, "r:") as archive:
            files = [member for member in archive if member.isfile()]
            metas = [member for member in files if member.name.endswith(META)]
            if len(metas) != 1:
                raise UserError(
                    f"{path}: the archive holds {len(metas)} {META} files, where one is needed",
                    "Pack each recording into its own",
                )
            reader = archive.extractfile(metas[0])
            meta = reader.read() if reader else b""
    except (tarfile.TarError, RecursionError, IndexError) as error:  # header after header, or one that is missing
        raise UserError(f"{path}: is not an uncompressed tar archive, or damaged ({error})", "Fetch or pack it anew") from error
    stem = metas[0].name.removesuffix(META)
    data = next((member for member in files if member.name == stem + DATA), None)
    if data is None:
        raise UserError(f"{path}: the archive has no {Path(stem).name}{DATA}", "Pack the recording with its data")
    if data.issparse():  # its bytes are not in one piece; one cut short is a TarError above
        raise UserError(f"{path}: its data are stored with holes left out", "Pack the archive without tar's --sparse")
    return Source(path, path.stem, meta, path, data.offset_data, data.size)


def with_data(source: Source, metadata: dict[str, Any]) -> Source:
    """The source with its data file, which the metadata may name (`core:dataset`).

    Raises:
        UserError: there is no data file.
    """
    if source.data is not None:
        return source
    settings = metadata["global"]
    if settings.get("core:metadata_only"):
        raise UserError(
            f"{source.path}: core:metadata_only says that it comes without samples", "Fetch the recording with its data"
        )
    data = source.path.with_name(settings.get("core:dataset", source.name + DATA))
    if not data.is_file():
        raise UserError(f"{source.path}: its data file {data.name} is missing", "Put it into the same folder")
    return Source(source.path, source.name, source.meta, data, 0, data.stat().st_size)


def read_metadata(raw: bytes, where: Path) -> tuple[dict[str, Any], list[str]]:
    """Metadata that SigMF's own schema accepts, and notes on what had to be put right for that.

    Args:
        raw: the text of a `.sigmf-meta` file.
        where: its path, for messages.

    Raises:
        UserError: it is no JSON, or the schema refuses it; the message names the field.
    """
    metadata = _json(raw, where)
    rate = metadata["global"].get("core:sample_rate") if isinstance(metadata.get("global"), dict) else None
    if isinstance(rate, (int, float)) and not rate > 0:
        raise UserError(f"{where}: core:sample_rate is {rate}", "Give the rate in samples a second, above 0")
    _make_whole(metadata)
    notes = [f"{part} are not in the order of core:sample_start" for part in ("captures", "annotations") if _sort(metadata, part)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of undeclared extensions, whose fields are not read
        try:
            validate(metadata, schema.get_schema())
        except ValidationError as error:
            _refuse(error, where)
    return metadata, notes


def members(collection: Path) -> list[Path]:
    """The `.sigmf-meta` paths of a collection's recordings, whether they are there or not.

    Raises:
        UserError: the collection is no JSON, or does not name its recordings.
    """
    if not collection.is_file():
        raise UserError(f"{collection}: there is no such collection", "Give the path of a .sigmf-collection file")
    metadata = _json(collection.read_bytes(), collection)
    # the schema for collections in sigmf 1.14 still wants streams as [name, hash] and refuses what the library itself writes
    content = metadata.get("collection")
    streams = content.get("core:streams") if isinstance(content, dict) else None
    if not isinstance(streams, list):
        raise UserError(
            f"{collection}: has no object collection with an array core:streams", "Write it as https://sigmf.org describes"
        )
    names = [_stream_name(stream) for stream in streams]
    if not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{collection}: an entry of core:streams has no name", "Give each stream the name of its recording")
    return [collection.parent / get_sigmf_filenames(str(name))["meta_fn"] for name in names]


def _stream_name(stream: Any) -> Any:
    """Of `{"name": ..., "hash": ...}` or of the older `[name, hash]`."""
    if isinstance(stream, dict):
        return stream.get("name")
    return stream[0] if isinstance(stream, list) and stream else None


def _json(raw: bytes, where: Path) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    try:
        metadata = json.loads(raw.decode("utf-8-sig"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(f"{where}: is not JSON ({error})", "Fetch or write the file anew") from error
    if not isinstance(metadata, dict):
        raise UserError(f"{where}: holds no JSON object", "It needs the objects global, captures and annotations")
    return metadata


def _make_whole(metadata: dict[str, Any]) -> None:
    """Make integers of 8.0 and the like, which are integers to JSON Schema and as floats no count of bytes to Python."""
    for part, fields in _INTEGERS.items():
        entries = metadata.get(part)
        for entry in entries if isinstance(entries, list) else [entries]:
            if not isinstance(entry, dict):
                continue
            for field in fields:
                if isinstance(value := entry.get(field), float) and value.is_integer():
                    entry[field] = int(value)


def _sort(metadata: dict[str, Any], part: str) -> bool:
    """Put entries in the order that the specification wants; whether they were not."""
    entries = metadata.get(part)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return False
    starts = [entry.get("core:sample_start") for entry in entries]
    if not all(isinstance(start, int) for start in starts) or starts == sorted(starts):
        return False
    metadata[part] = sorted(entries, key=lambda entry: int(entry["core:sample_start"]))
    return True


def _refuse(error: ValidationError, where: Path) -> NoReturn:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    text = error.message if len(error.message) < 200 else error.message[:197] + "..."
    raise UserError(
        f"{where}: {place + ': ' if place else ''}{text}", "Correct the field; https://sigmf.org describes each"
    ) from error
