"""A run with one checkpoint of a small timm network on the digits, and a registry that it was exported to once."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from longhaul import workloads
from longhaul.export.pipeline import export_run
from longhaul.export.registry import Registry
from longhaul.recipe import Recipe
from longhaul.resilience.checkpoint import CheckpointStore, Manifest, checkpoint_name
from longhaul.resilience.run_directory import RunDirectory


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch's second thread waits by spinning: on a busy machine that costs a network this small a hundred times its work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "digits-tiny",
            "model": {"name": "test_resnet"},
            "data": {"kind": "digits", "root": str(tmp_path_factory.mktemp("data") / "digits"), "resolution": 32},
            "training": {"steps": 20},
            "export": {"max_batch": 5},
        }
    )


@pytest.fixture(scope="session")
@one_thread()
def trained(recipe: Recipe) -> nn.Module:
    """The network after a few real steps, so that its answers are not all the same."""
    torch.manual_seed(11)
    workload = workloads.build(recipe)
    model = workload.build_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    train = workload.splits.train
    for step in range(20):
        samples = [train.read((step * 32 + i) * 5 % len(train), None) for i in range(32)]
        batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        workload.loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="session")
def run(recipe: Recipe, trained: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = RunDirectory.create(str(tmp_path_factory.mktemp("runs")), "one", recipe)
    source = tmp_path_factory.mktemp("checkpoint")
    save_file({name: tensor.contiguous() for name, tensor in trained.state_dict().items()}, source / "model.safetensors")
    manifest = Manifest(step=20, rank=0, world_size=1, attempt="abcd1234", created_s=time.time(), goal=0.5, files={})
    CheckpointStore(run).publish(checkpoint_name(20, "abcd1234"), source, manifest)
    return run


@pytest.fixture(scope="session")
@one_thread()
def exported_root(run: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with version 1 of the run's model, with a plan where a builder is installed; leave it as it is."""
    root = tmp_path_factory.mktemp("registry") / "models"
    export_run(run, Registry(str(root)))
    return root


@pytest.fixture
def registry(exported_root: Path, tmp_path: Path) -> Registry:
    """A copy of that registry to do anything with."""
    return Registry(str(shutil.copytree(exported_root, tmp_path / "models")))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket on an S3 server of our own on the loopback: `s3://...`."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    name = f"house-{uuid.uuid4().hex[:8]}"  # what moto holds belongs to the process, not to the server
    boto3.client("s3").create_bucket(Bucket=name)
    yield f"s3://{name}"
    server.stop()
