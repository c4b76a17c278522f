"""A real engine that can be held back, or told what to answer."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import numpy as np
from torch import Tensor

from longhaul.engines.inference import Array, InferenceEngine
from longhaul.export.manifest import Manifest
from longhaul.export.registry import Registry
from longhaul.serving.models.loading import make_engine


class HeldEngine:
    """Waits in `infer` until `go` is set, as it is at first.

    Args:
        engine: that answers.
        answers: output -> what it says in place of the engine's own.
    """

    kind = "held"

    def __init__(self, engine: InferenceEngine, answers: dict[str, Array] | None = None) -> None:
        self.engine, self.answers = engine, answers or {}
        self.max_batch = engine.max_batch
        self.go = threading.Event()
        self.go.set()

    def infer(self, batch: Array | Tensor) -> dict[str, Array]:
        assert self.go.wait(60)
        return self.engine.infer(batch) | {name: np.asarray(value) for name, value in self.answers.items()}

    def warm_up(self) -> None:
        self.engine.warm_up()

    def close(self) -> None:
        self.engine.close()


def held_engine(registry: Registry, manifest: Manifest, answers: dict[str, Array] | None = None) -> HeldEngine:
    """The engine of a version in the registry."""
    with tempfile.TemporaryDirectory() as scratch:
        files = registry.fetch(manifest, Path(scratch))
        return HeldEngine(make_engine(manifest, files, "onnxruntime", threads=1), answers)
