"""A folder of small tiles in the format of `longhaul signals chunk`, drawn: bright upright bars and wide faint bands in noise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("wifi", "bluetooth")
RECIPE = """
name: few-tiles
workload: {kind: detection}
model: {name: fasterrcnn_resnet18_fpn, stages: [2, 3], fpn_channels: 16, head_width: 32, anchor_px: 8, candidates: 64,
        proposals: 20, anchor_samples: 32, proposal_samples: 32, max_detections: 20}
data: {kind: spectrograms, root: ROOT, classes: [wifi, bluetooth], resolution: 64, loader_workers: 0, folds: 2}
training: {steps: 3, global_batch: 4, micro_batch: 4}
export: {batches: [1]}
"""
"""A detector that trains on them in a moment; `data.root` is to be given."""


def draw_tiles(root: Path, *, recordings: int = 6, chunks: int = 4, side: int = 64, seed: int = 0) -> Path:
    """Write `recordings` x `chunks` tiles of `side` pixels below `root`, one to three boxes on each; returns `root`."""
    generator = np.random.default_rng(seed)
    folder = root / "20260101_000000"
    folder.mkdir(parents=True)
    for recording in range(recordings):
        for chunk in range(chunks):
            pixels = generator.normal(60, 10, (side, side))
            boxes = []
            for _ in range(int(generator.integers(1, 4))):
                label = CLASSES[int(generator.integers(2))]
                width, height = (side // 4, side // 3) if label == "wifi" else (side // 10, side // 8)
                x, y = int(generator.integers(0, side - width)), int(generator.integers(0, side - height))
                pixels[y : y + height, x : x + width] = generator.normal(140 if label == "wifi" else 230, 10, (height, width))
                boxes.append({"label": label, "x_min": x, "y_min": y, "x_max": x + width, "y_max": y + height})
            write_tile(folder, f"chunk_rec{recording}_{chunk:03}", pixels, boxes)
    return root


def write_tile(folder: Path, stem: str, pixels: np.ndarray, boxes: list[dict[str, object]]) -> Path:
    """One PNG with its JSON; returns the PNG."""
    png = folder / f"{stem}.png"
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(png)
    height, width = pixels.shape
    beside = {"image": png.name, "width": width, "height": height, "bboxes": boxes}
    (folder / f"{stem}_bboxes.json").write_text(json.dumps(beside))
    return png
