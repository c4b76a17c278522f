"""Many networks at many resolutions, side by side: measured one after the other, written as a table, drawn."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from longhaul.errors import LonghaulError, UserError
from longhaul.insight.peak_memory import cpu_peak_mb
from longhaul.insight.profile import Conditions, Profile, chosen_device, profile
from longhaul.models.counting import MIB, Count, count_image_model
from longhaul.models.zoo import DETECTORS, build_image_model, check_name
from longhaul.recipe.networks import ModelSection

BACKBONES = (
    "convnext_tiny", "convnext_small", "convnext_base", "convnext_large", "resnet50", "resnet101",
    "vit_base_patch16_224", "vit_large_patch16_224", "efficientnet_b3", "efficientnet_b4",
)  # fmt: skip
"""The networks that localization chooses from, by their names in timm."""

SUFFIXES = (".csv", ".parquet", ".json")


class Row(BaseModel):
    """One network at one resolution; `problem` says why something is missing, in one line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    resolution: int
    count: Count | None = None
    profile: Profile | None = None
    problem: str | None = None


def check_names(names: Sequence[str]) -> None:
    """Refuse names that no classifier has.

    Raises:
        UserError: an unknown name, with the nearest ones, or a detector's.
    """
    for name in names:
        check_name(name)
        if name in DETECTORS:
            fix = "Give its backbone, such as resnet50"
            raise UserError(f"model {name!r}: detectors are not profiled, their work depends on what they see", fix)


def count_row(name: str, classes: int, resolution: int) -> Row:
    """What a network costs on paper; in under a second and without memory, however large it is."""
    try:
        return Row(model=name, resolution=resolution, count=count_image_model(ModelSection(name=name), classes, resolution))
    except UserError as error:
        return Row(model=name, resolution=resolution, problem=error.problem)


def profile_row(name: str, classes: int, resolution: int, conditions: Conditions, *, cpu_memory: bool = False) -> Row:
    """What a network costs on paper and takes in truth.

    Args:
        name: one that `check_names` has passed.
        classes: outputs.
        resolution: side of the images in pixels.
        conditions: how it is measured.
        cpu_memory: on a CPU, measure the peak memory too, in a process of its own, which takes seconds.
    """
    row, section = count_row(name, classes, resolution), ModelSection(name=name)
    if row.count is None:
        return row
    try:
        model = build_image_model(section, classes, resolution)
        measured = profile(model, (3, resolution, resolution), conditions, row.count)
    except UserError as error:
        return row.model_copy(update={"problem": error.problem})
    if cpu_memory and chosen_device(conditions.device).type == "cpu":
        measured = _with_peak(measured, section, classes, conditions)
    return row.model_copy(update={"profile": measured})


def _with_peak(measured: Profile, section: ModelSection, classes: int, conditions: Conditions) -> Profile:
    try:
        peak = cpu_peak_mb(section, classes, measured.shape[1], conditions)
    except LonghaulError as error:
        return measured.model_copy(update={"no_peak_memory": str(error)})
    return measured.model_copy(update={"peak_memory_mb": peak, "no_peak_memory": None})


def rows(
    names: Sequence[str], resolutions: Sequence[int], classes: int, conditions: Conditions | None, *, cpu_memory: bool = False
) -> Iterator[Row]:
    """A row for each network and resolution, as they are measured; without `conditions` they are only counted."""
    for name in names:
        for resolution in resolutions:
            if conditions is None:
                yield count_row(name, classes, resolution)
            else:
                yield profile_row(name, classes, resolution, conditions, cpu_memory=cpu_memory)


def flat(row: Row) -> dict[str, Any]:
    """One line of a file: every figure by a name with its unit, None where there is none."""
    counted, measured = row.count, row.profile
    single, batched = (measured.single, measured.batched) if measured else (None, None)
    return {
        "model": row.model,
        "resolution": row.resolution,
        "parameters": counted and counted.parameters,
        "feature_width": counted and counted.feature_width,
        "size_mb": counted and counted.size_mb,
        "gmacs": counted and counted.macs / 1e9,
        "gflops": counted and counted.flops / 1e9,
        "activation_mb": counted and counted.activation_bytes / MIB,
        "device": measured and measured.device,
        "torch": measured and measured.torch,
        "threads": measured and measured.threads,
        "precision": measured and measured.precision,
        "tf32": measured and measured.tf32,
        "channels_last": measured and measured.channels_last,
        "p50_ms_batch_1": single and single.p50_ms,
        "p99_ms_batch_1": single and single.p99_ms,
        "samples_per_s_batch_1": single and single.samples_per_s,
        "batch": batched and batched.batch,
        "p50_ms": batched and batched.p50_ms,
        "p99_ms": batched and batched.p99_ms,
        "samples_per_s": batched and batched.samples_per_s,
        "peak_memory_mb": measured and measured.peak_memory_mb,
        "settled": single and batched and single.settled and batched.settled,
        "problem": row.problem,
    }


def check_file(path: Path) -> None:
    """Refuse a file that `write` would refuse after the work is done.

    Raises:
        UserError: no kind of table, or no folder to put it in.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: no kind of table", f"Give a name that ends in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UserError(f"{path}: its folder does not exist", "Make it first")


def write(path: Path, table: Sequence[Row]) -> None:
    """Write the rows as CSV, Parquet or JSON, by the file's name; JSON holds them whole, the others as `flat`.

    Raises:
        UserError: as `check_file`.
    """
    check_file(path)
    if path.suffix == ".json":
        path.write_text(json.dumps([row.model_dump(mode="json") for row in table], indent=1) + "\n", encoding="utf-8")
    elif path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, flat(table[0]).keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(flat, table))
        path.write_text(text.getvalue(), encoding="utf-8")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist([flat(row) for row in table], schema=_schema()), path)


def _schema() -> Any:
    """Types of the columns: those of a table of mere counts are the same as of a measured one."""
    import pyarrow as pa

    kinds = {
        pa.string(): ("model", "device", "torch", "precision", "problem"),
        pa.int64(): ("resolution", "parameters", "feature_width", "threads", "batch"),
        pa.bool_(): ("tf32", "channels_last", "settled"),
    }
    known = {name: kind for kind, names in kinds.items() for name in names}
    return pa.schema([(name, known.get(name, pa.float64())) for name in flat(Row(model="", resolution=0))])
