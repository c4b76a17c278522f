"""The same run with its directory on S3: trained, killed, resumed, retired and exported there."""

from __future__ import annotations

from pathlib import Path

import boto3
import pytest

from longhaul.recipe import load
from longhaul.resilience.checkpoint import CheckpointStore, load_weights
from longhaul.resilience.run_directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

DIGITS = Path(__file__).parents[2] / "jobs" / "recipes" / "classification" / "digits.yaml"


def test_a_run_on_s3_is_resumed_by_its_name(s3_server: str) -> None:
    from longhaul.training.on_ray.launch import fit

    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket="longhaul-runs")
    # A small network: the test's S3 server takes 20 MiB a second.
    length = ["training.epochs=null", "training.steps=4", "checkpoints.every=1 step", "checkpoints.keep_every=2 steps"]
    recipe = load(DIGITS, [*length, "scaling.workers=1", "model.name=test_resnet", "data.resolution=16"])
    run = RunDirectory.create("s3://longhaul-runs/here", "digits", recipe)
    first = fit(recipe, run)
    assert first.status == "finished"
    entries = CheckpointStore(run).entries()
    assert [entry.step for entry in entries] == [2, 3, 4]  # the permanent ones and the newest two; step 1 was retired
    assert load_weights(run).step == 4

    # As if the driver had died before it was done, and the newest checkpoint had been cut short.
    file = f"checkpoints/{entries[-1].name}/model.safetensors"
    run.storage.write_bytes(file, run.storage.read_bytes(file)[:-1])
    second = fit(recipe, run)
    assert second.status == "finished"
    assert second.segment == 2
    events = run.events().to_pylist()
    rejected = [event["message"] for event in events if event["kind"] == "checkpoint_rejected"]
    assert len(rejected) == 1
    assert "model.safetensors" in rejected[0]
    assert [event["step"] for event in events if event["kind"] == "resumed"] == [3]
    assert {row["segment"] for row in run.metrics().to_pylist()} == {1, 2}
    assert [entry.step for entry in CheckpointStore(run).entries()] == [2, 3, 4]  # 4 anew, the damaged one is gone
