"""A registry with one tiny model, pictures, and an engine that does as it is told."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longhaul.export.registry import Registry
from longhaul.serving.models.catalog import Catalog, choose, load
from longhaul.serving.models.served import ServedClassifier


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(str(tmp_path / "models"))


@pytest.fixture
def catalog(registry, publish_tiny):
    publish_tiny(registry)
    loaded = load(registry, choose(registry))
    yield loaded
    loaded.close()


@pytest.fixture
def picture():
    """`picture(seed)`: noise, 10 x 12 pixels, as PNG bytes; other formats and sizes on request."""

    def make(seed: int = 0, form: str = "PNG", size: tuple[int, int] = (10, 12)) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, form)
        return stream.getvalue()

    return make


class ScriptedEngine:
    """Answers logits 0..C-1 for each sample; `gate` holds it back, `failure` makes it raise, `seen` has the batch sizes."""

    kind = "scripted"
    max_batch = 4

    def __init__(self, classes: int = 4) -> None:
        self.classes = classes
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.failure: Exception | None = None
        self.logits: np.ndarray | None = None
        self.seen: list[int] = []

    def infer(self, batch):
        self.seen.append(len(batch))
        self.entered.set()
        self.gate.wait()
        if self.failure:
            raise self.failure
        row = np.arange(self.classes, dtype=np.float32) if self.logits is None else self.logits
        return {"logits": np.stack([row] * len(batch)), "mean": np.asarray(batch).reshape(len(batch), -1).mean(1)}

    def warm_up(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def scripted(registry, publish_tiny, engine) -> Catalog:
    """The tiny model's catalog with the scripted engine in it."""
    loaded = Catalog([ServedClassifier(publish_tiny(registry), engine)])
    yield loaded
    engine.gate.set()
    loaded.close()
