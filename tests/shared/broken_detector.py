"""Versions of the grid detector that must not take over: one damaged on disk, one whose engine fails when it runs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from grid_detector import publish_grid_detector
from onnx import TensorProto, helper, numpy_helper

from longhaul.export.manifest import Description, Manifest
from longhaul.export.registry import Registry


def damage(registry: Registry, manifest: Manifest) -> None:
    """Flip a bit of the version's first model file; its size stays. For a registry in a folder."""
    file = Path(registry.folder(manifest.name, manifest.version)) / next(iter(manifest.model_files.values()))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def publish_failing_detector(registry: Registry, name: str = "grid", *, answers_nan: bool = False) -> Manifest:
    """Publish a version that loads, and whose every run fails, or gives a number that is none."""
    with tempfile.TemporaryDirectory() as scratch:
        whole = Registry(str(Path(scratch) / "models"))
        manifest = publish_grid_detector(whole, name)
        files = list(whole.fetch(manifest, Path(scratch) / "files").values())
        for file in files:
            model = onnx.load(file)
            (_answer_nan if answers_nan else _fail_when_run)(model.graph)
            onnx.checker.check_model(model)
            onnx.save(model, file)
        description = Description(**{field: getattr(manifest, field) for field in Description.model_fields})
        return registry.publish(description, files)


def _fail_when_run(graph: onnx.GraphProto) -> None:
    """Let `flag` be looked up far behind the end of a table, at a place that depends on the input."""
    constants = {"far": np.int64(999), "across": np.array([1], np.int64)}
    graph.initializer.extend([numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()])
    graph.node.remove(next(node for node in graph.node if node.output[0] == "flag"))
    graph.node.extend(
        [
            helper.make_node("Cast", ["brightness"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Add", ["whole", "far"], ["behind"]),
            helper.make_node("Gather", ["flags", "behind"], ["looked_up"]),
            helper.make_node("ReduceMax", ["looked_up", "across"], ["flag"], keepdims=0),
        ]
    )


def _answer_nan(graph: onnx.GraphProto) -> None:
    (flags,) = (constant for constant in graph.initializer if constant.name == "flags")
    flags.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(flags), np.nan), "flags"))
