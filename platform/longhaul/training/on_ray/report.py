"""The one way a checkpoint is told to Ray Train: a wrapper around `ray.train.report`.

The checkpoint lies complete in the run directory, which is also Ray Train's experiment directory, before Ray hears of it
(`CheckpointUploadMode.NO_UPLOAD`): a crash in between loses nothing, because a resume looks at what verifies on storage and
not at Ray's `checkpoint_manager_snapshot.json`. Retention is ours as well, so Ray keeps all it knows of.
"""

from __future__ import annotations

import math

import ray.train
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState, _TrainingResultState

from longhaul.resilience.checkpoint import CheckpointStore
from longhaul.resilience.run_directory import RunDirectory
from longhaul.storage import Storage
from longhaul.training.checkpoints.saving import score

SNAPSHOT = "checkpoint_manager_snapshot.json"
_COPIES = 3


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


def rebuild_snapshot(run: RunDirectory) -> None:
    """Give Ray a memory that is true: every complete checkpoint, and no other.

    The one that a former driver left may be cut short, or refer to checkpoints that retention has deleted since, and Ray
    refuses to start with such a one. The manifests on storage are the truth; the former is kept as a copy, the last three.
    """
    if run.storage.exists(SNAPSHOT):
        numbers = sorted(
            int(entry.name.rsplit("-", 1)[1]) for entry in run.storage.list() if entry.name.startswith(f"{SNAPSHOT}.bak-")
        )
        run.storage.write_bytes(f"{SNAPSHOT}.bak-{numbers[-1] + 1 if numbers else 1}", run.storage.read_bytes(SNAPSHOT))
        for number in numbers[: -_COPIES + 1]:
            run.storage.delete_file(f"{SNAPSHOT}.bak-{number}")
    entries = CheckpointStore(run).entries()
    direction = run.summary().goal_direction
    results = [
        _TrainingResultState(checkpoint_dir_name=f"checkpoints/{e.name}", metrics={"score": score(e.goal, direction)})
        for e in entries
    ]
    state = _CheckpointManagerState(
        checkpoint_results=results,
        checkpoint_report_indices=list(range(len(results))),
        latest_checkpoint_result=results[-1] if results else None,
        pending_training_results=[],
        pending_validation_specs=[],
        current_report_index=len(results),
        validated_checkpoint_dir_names=[],
        timed_out_validation_checkpoint_dir_names=[],
        failed_validation_checkpoint_dir_names=[],
    )
    run.storage.write_bytes(SNAPSHOT, state.model_dump_json().encode())
