"""The one way a checkpoint is told to Ray Train: a wrapper around `ray.train.report`.

The checkpoint lies complete in the run directory, which is also Ray Train's experiment directory, before Ray hears of it
(`CheckpointUploadMode.NO_UPLOAD`): a crash in between loses nothing, because a resume looks at what verifies on storage and
not at Ray's `checkpoint_manager_snapshot.json`. Retention is ours as well, so Ray keeps all it knows of.
"""

from __future__ import annotations

import math

import ray.train
from ray.train import Checkpoint, CheckpointUploadMode

from longhaul.resilience.run_directory import RunDirectory
from longhaul.storage import Storage

SNAPSHOT = "checkpoint_manager_snapshot.json"


def report_checkpoint(run: RunDirectory, name: str, metrics: dict[str, float]) -> None:
    """Tell Ray Train of a complete checkpoint; every rank must call it.

    Ray stores what it is told as JSON and cannot read NaN, infinity or numpy numbers back, so those become plain finite
    numbers here, with `<name>_nonfinite: 1.0` beside them.
    """
    folder: Storage = run.storage.child(f"checkpoints/{name}")
    checkpoint = Checkpoint(folder.root, filesystem=folder.filesystem)
    ray.train.report(
        plain_metrics(metrics), checkpoint=checkpoint, checkpoint_dir_name=f"checkpoints/{name}",
        checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
    )  # fmt: skip


def plain_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """Plain, finite Python floats."""
    plain: dict[str, float] = {}
    for name, value in metrics.items():
        number = float(value)
        plain[name] = number if math.isfinite(number) else 0.0
        if not math.isfinite(number):
            plain[f"{name}_nonfinite"] = 1.0
    return plain


def forget_snapshot(run: RunDirectory) -> None:
    """Delete Ray's memory of a former driver.

    It refers to checkpoints that retention has deleted since, and Ray refuses to start with such a reference. The manifests
    on storage are the truth.
    """
    if run.storage.exists(SNAPSHOT):
        run.storage.delete_file(SNAPSHOT)
