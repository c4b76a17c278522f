"""What several folders of tests share: one Ray cluster for the whole session, and a model that is published in a moment."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from longhaul.data.preprocess import ImagePreprocess
from longhaul.export.manifest import Description, Manifest, ParityRecord
from longhaul.export.registry import Registry
from longhaul.workloads.base import Signature, TensorSpec

# Before any import of Ray: unset, the same test would start an open or a token-guarded cluster by what ~/.ray holds.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

PublishTiny = Callable[..., Manifest]


def _free_port() -> int:
    """A port under 10002: Ray refuses those up to 19999 as its own workers' range. Tests that run beside these look elsewhere."""
    for number in range(900):
        port = 9100 + (os.getpid() + number) % 900
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError("no free port between 9100 and 10000")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """An S3 server (moto) on loopback, where this process and all that it starts look for S3; yields its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    mine = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in mine.items():
            patch.setenv(name, value)
        yield mine["AWS_ENDPOINT_URL"]
    server.stop()


@pytest.fixture(scope="session")
def ray_cluster(s3_server: str) -> Iterator[str]:
    """A local Ray cluster with two CPUs and its dashboard (the State API needs it); yields the GCS address."""
    import ray

    context = ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=_free_port(),
        log_to_driver=False,
        configure_logging=False,
    )
    yield context.address_info["gcs_address"]  # type: ignore[attr-defined]
    ray.shutdown()


@pytest.fixture(scope="session")
def publish_tiny(tmp_path_factory: pytest.TempPathFactory) -> PublishTiny:
    """`publish_tiny(registry, name="tiny", seed=0)`: one linear layer over 8 x 8 pictures, four classes, batches up to 4."""

    def publish(registry: Registry, name: str = "tiny", seed: int = 0, task: str = "classification") -> Manifest:
        file = tmp_path_factory.mktemp("tiny") / "model.onnx"
        _write_linear(file, seed)
        signature = Signature(
            task=task,
            inputs=(TensorSpec(name="image", dtype="float32", shape=(3, 8, 8)),),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=(4,)),),
            classes=("north", "east", "south", "west"),
            preprocess=ImagePreprocess(resolution=8).model_dump(mode="json"),
        )
        parity = ParityRecord(
            samples=1,
            batch_sizes=(1,),
            max_abs_difference=0.0,
            mean_abs_difference=0.0,
            top1_agreement=1.0,
            metric="top1",
            torch_metric=1.0,
            onnx_metric=1.0,
            tolerance=1e-4,
            passed=True,
        )
        description = Description(
            name=name,
            signature=signature,
            max_batch=4,
            metrics={"top1": 1.0},
            parity=parity,
            recipe_sha256="0" * 64,
            run="runs/none",
            checkpoint="none",
            step=0,
        )
        return registry.publish(description, [file])

    return publish


def _write_linear(file: Path, seed: int) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(seed).normal(size=(3 * 8 * 8, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "weights"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weights, "weights")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), file)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once why a test failed: a run that is cut off by its time limit never comes to its summary."""
    if report.failed and os.environ.get("CI"):
        print(f"\n{report.nodeid}\n{report.longreprtext}", file=sys.__stderr__, flush=True)
