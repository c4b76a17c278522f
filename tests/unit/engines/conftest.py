"""Models that tell which batch size computed an answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from longhaul.workloads.base import Signature, TensorSpec

SIDE = 2


@pytest.fixture
def signature() -> Signature:
    """`image` (1, 2, 2) in; `mean` () and `size` () out."""
    return Signature(
        task="test",
        inputs=(TensorSpec(name="image", dtype="float32", shape=(1, SIDE, SIDE)),),
        outputs=(TensorSpec(name="mean", dtype="float32", shape=()), TensorSpec(name="size", dtype="float32", shape=())),
    )


@pytest.fixture
def sized_models(tmp_path: Path) -> Callable[..., dict[int, Path]]:
    """`sized_models(1, 4, 8)`: an ONNX file for each; `mean` is the sample's mean, `size` the batch that the file is for."""

    def write(*sizes: int) -> dict[int, Path]:
        return {size: _write(tmp_path / f"model.b{size}.onnx", size) for size in sizes}

    return write


def _write(file: Path, size: int) -> Path:
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
            helper.make_node("Identity", ["constant"], ["size"]),
        ],
        "sized",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [size, 1, SIDE, SIDE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size]) for name in ("mean", "size")],
        [
            helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
            helper.make_tensor("constant", TensorProto.FLOAT, [size], [float(size)] * size),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), file)
    return file
