"""A detector that can be reckoned by hand: a tile is a grid of cells, and every bright cell is a box.

A real ONNX model for ONNX Runtime and a real entry of the registry, made in milliseconds. The score of a cell is its mean
brightness, its box the cell, its label one of the model's classes in turn; what scores under 0.05 is padding. For tests that
want many models, or models that answer exactly.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from longhaul.export.manifest import Description, Manifest, ParityRecord, batch_file
from longhaul.export.registry import Registry
from longhaul.signals.front_end import FrontEnd
from longhaul.signals.tile_folder import TileSettings
from longhaul.workloads.base import Signature, TensorSpec

SIDE, CELL = 64, 8
SAMPLE_RATE_HZ = 1e6
TILES = TileSettings(front_end=FrontEnd(nfft=64, hop=32, tile=SIDE), chunk_s=0.01)
CHUNK_SAMPLES = TILES.chunk_samples(SAMPLE_RATE_HZ)
"""10 ms at 1 MHz: 10,000 samples."""


def publish_grid_detector(
    registry: Registry,
    name: str = "grid",
    *,
    classes: Sequence[str] = ("even", "odd"),
    batches: Sequence[int] = (1, 4, 8),
    gain: float = 1.0,
    tiles: TileSettings = TILES,
    sample_rates_hz: Sequence[float] = (SAMPLE_RATE_HZ,),
) -> Manifest:
    """Publish one version; `gain` multiplies the scores (clipped to 1), so that two versions of a name can differ.

    Returns:
        The manifest.
    """
    side = tiles.front_end.tile
    cells = (side // CELL) ** 2
    made = {**tiles.model_dump(mode="json", exclude={"recordings"}), "sample_rates_hz": list(sample_rates_hz)}
    signature = Signature(
        task="detection",
        inputs=(TensorSpec(name="image", dtype="float32", shape=(1, side, side)),),
        outputs=(
            TensorSpec(name="boxes", dtype="float32", shape=(cells, 4)),
            TensorSpec(name="scores", dtype="float32", shape=(cells,)),
            TensorSpec(name="labels", dtype="int32", shape=(cells,)),
            TensorSpec(name="flag", dtype="float32", shape=()),
        ),
        classes=tuple(classes),
        preprocess={"resolution": side, "tiles": made},
    )
    parity = ParityRecord(
        samples=1, batch_sizes=tuple(batches), max_abs_difference=0.0, mean_abs_difference=0.0, top1_agreement=None,
        metric="map50", torch_metric=1.0, onnx_metric=1.0, tolerance=1e-4, passed=True,
    )  # fmt: skip
    description = Description(
        name=name, signature=signature, max_batch=max(batches), batches=tuple(sorted(batches)), metrics={"map50": 1.0},
        parity=parity, recipe_sha256="0" * 64, run="runs/none", checkpoint="none", step=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        files = []
        for batch in batches:
            files.append(Path(scratch) / batch_file(batch))
            _write(files[-1], batch, side, len(classes), gain)
        return registry.publish(description, files)


def _write(file: Path, batch: int, side: int, classes: int, gain: float) -> None:
    grid = side // CELL
    cells = grid * grid
    rows, columns = np.divmod(np.arange(cells), grid)
    corners = np.stack([columns, rows, columns + 1, rows + 1], axis=1) * CELL
    constants = {
        "corners": np.broadcast_to(corners.astype(np.float32), (batch, cells, 4)).copy(),
        "classes": np.broadcast_to(1 + (np.arange(cells) % classes).astype(np.int32), (batch, cells)).copy(),
        "flags": np.zeros(batch, np.float32),
        "gain": np.float32(gain),
        "one": np.float32(1),
        "least": np.float32(0.05),
        "padding": np.full((batch, cells), -1, np.float32),
        "nothing": np.zeros((batch, cells), np.int32),
        "nowhere": np.zeros((batch, cells, 4), np.float32),
        "flat": np.array([batch, cells], np.int64),
        "last": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("AveragePool", ["image"], ["mean"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        helper.make_node("Reshape", ["mean", "flat"], ["brightness"]),
        helper.make_node("Mul", ["brightness", "gain"], ["raised"]),
        helper.make_node("Min", ["raised", "one"], ["clipped"]),
        helper.make_node("Greater", ["clipped", "least"], ["found"]),
        helper.make_node("Where", ["found", "clipped", "padding"], ["scores"]),
        helper.make_node("Where", ["found", "classes", "nothing"], ["labels"]),
        helper.make_node("Unsqueeze", ["found", "last"], ["found4"]),
        helper.make_node("Where", ["found4", "corners", "nowhere"], ["boxes"]),
        helper.make_node("Identity", ["flags"], ["flag"]),
    ]
    outputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [batch, cells, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, cells]),
        helper.make_tensor_value_info("labels", TensorProto.INT32, [batch, cells]),
        helper.make_tensor_value_info("flag", TensorProto.FLOAT, [batch]),
    ]
    graph = helper.make_graph(
        nodes,
        "grid",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, side, side])],
        outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, file)
