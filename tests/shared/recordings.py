"""Small recordings to test with, and ways to damage their metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from longhaul.signals.recording import Annotation, write_recording

RATE, CENTER = 20e6, 2.44e9
SAMPLES = np.random.default_rng(4).uniform(-0.9, 0.9, 10_000).astype(np.float32).view(np.complex64)
WIFI = Annotation("wifi", start=1000, count=500, low_hz=-8e6, high_hz=8e6)
HOP = Annotation("bluetooth", start=3000, count=100, low_hz=2e6, high_hz=3e6)


def written(folder: Path, name: str = "capture", **options: Any) -> Path:
    """A recording of 5000 samples with two annotations, unless `options` of `write_recording` say otherwise."""
    options = {"sample_rate_hz": RATE, "center_hz": CENTER, "annotations": [WIFI, HOP]} | options
    return write_recording(folder / name, options.pop("samples", SAMPLES), **options)


def change(meta: Path, **parts: Any) -> Path:
    """Put other fields into the metadata; `None` takes one away, `captures` and `annotations` are replaced."""
    content = json.loads(meta.read_text())
    for part in ("captures", "annotations"):
        content[part] = parts.pop(part, content[part])
    for field, value in parts.items():
        content["global"][f"core:{field}"] = value
        if value is None:
            del content["global"][f"core:{field}"]
    meta.write_text(json.dumps(content))
    return meta


def annotation(start: int = 0, count: int | None = 10, **fields: Any) -> dict[str, Any]:
    """An annotation of the metadata; a field of `None` is left out."""
    entry = {"core:sample_start": start, "core:sample_count": count, "core:label": "x"}
    entry |= {f"core:{name}": value for name, value in fields.items()}
    return {name: value for name, value in entry.items() if value is not None}
