"""Does a server answer what the offline path finds? Over HTTP, on real engines, with batches gathered across eight clients.

    python benchmarks/serving/same_answers.py --registry .demo/models [--chunks 200] [--clients 8]

A `mixed` scene that no training saw (seed 90210) is cut into chunks. Offline: each chunk's tile as a PNG holds it, ONNX Runtime
at batch 1, scores over 0.5, torchvision's NMS, and the rule between models as two plain loops. Live: `longhaul serve`, a request
a chunk, eight clients at once, a deadline that nothing misses. Every detection must have its equal: model, label, score within
1e-4, corners within 0.01 px.

Prediction, written before the first run: all of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import batched_nms, box_iou

sys.path.insert(0, str(Path(__file__).resolve().parent))

from servers import free_port, longhaul, server

from longhaul.engines.onnxruntime_engine import OnnxRuntimeEngine
from longhaul.export.manifest import Manifest
from longhaul.export.registry import Registry
from longhaul.serving.client import Longhaul
from longhaul.signals.scene_settings import preset
from longhaul.signals.scenes import Scene
from longhaul.signals.tile_folder import TileSettings

Found = list[tuple[str, str, float, tuple[float, ...]]]
SCORE, IOU = 0.5, 0.5


def main() -> None:
    """Ask both, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", required=True)
    parser.add_argument("--chunks", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    registry = Registry(given.registry)
    manifests = [m for m in (registry.resolve(name) for name in registry.names()) if m.signature.task == "detection"]
    settings = _tiles(manifests[0])
    chunks, rate, center = _signal(settings, given.chunks)
    expected = _offline(registry, manifests, settings, chunks)
    port = free_port()
    with server(longhaul(given.registry, port), port), ThreadPoolExecutor(given.clients) as clients:
        answers = list(clients.map(lambda chunk: _live(port, chunk, rate, center), chunks))
    wrong = [number for number, pair in enumerate(zip(expected, answers, strict=True)) if not _equal(*pair)]
    total = sum(map(len, expected))
    scores = [abs(a[2] - b[2]) for one, two in zip(expected, answers, strict=True) for a, b in zip(one, two, strict=False)]
    print(f"{len(chunks)} chunks, {given.clients} clients: {total} detections offline, {sum(map(len, answers))} live")
    print(f"chunks that differ: {len(wrong)} {wrong[:10]}; scores within {max(scores, default=0.0):.1e}")
    sys.exit(bool(wrong) or not total)


def _tiles(manifest: Manifest) -> TileSettings:
    made = {key: value for key, value in manifest.signature.preprocess["tiles"].items() if key != "sample_rates_hz"}
    return TileSettings.model_validate(made)


def _signal(settings: TileSettings, count: int) -> tuple[list[np.ndarray], float, float]:
    scene = Scene(preset("mixed", small=True).model_copy(update={"duration_s": count * settings.chunk_s}), seed=90210)
    samples = np.concatenate(list(scene.blocks()))
    length = settings.chunk_samples(scene.settings.sample_rate_hz)
    return [samples[k * length : (k + 1) * length] for k in range(count)], scene.settings.sample_rate_hz, scene.center_hz


def _offline(registry: Registry, manifests: list[Manifest], settings: TileSettings, chunks: list[np.ndarray]) -> list[Found]:
    with tempfile.TemporaryDirectory() as scratch:
        engines = []
        for manifest in manifests:
            folder = Path(scratch) / manifest.name
            folder.mkdir()
            files = registry.fetch(manifest, folder)
            single = {1: files[manifest.model_file(1)]}
            engines.append((manifest, OnnxRuntimeEngine(single, manifest.signature, max_batch=1, threads=1)))
    found = []
    for chunk in chunks:
        tile = settings.front_end.to_uint8(torch.from_numpy(chunk)).numpy()[None, None].astype(np.float32) / 255
        found.append(_merged([one for manifest, engine in engines for one in _one_model(manifest, engine, tile)]))
    return found


def _one_model(manifest: Manifest, engine: OnnxRuntimeEngine, tile: np.ndarray) -> Found:
    outputs = {name: torch.from_numpy(values[0]) for name, values in engine.infer(tile).items() if values.ndim > 1}
    sure = outputs["scores"] > SCORE
    boxes, scores, labels = (outputs[name][sure] for name in ("boxes", "scores", "labels"))
    kept = batched_nms(boxes, scores, labels.long(), IOU).tolist()
    classes = manifest.signature.classes
    return [(manifest.name, classes[int(labels[k]) - 1], float(scores[k]), tuple(boxes[k].tolist())) for k in kept]


def _merged(found: Found) -> Found:
    kept: Found = []
    for one in sorted(found, key=lambda each: -each[2]):
        rivals = [other for other in kept if other[0] != one[0]]
        if all(float(box_iou(torch.tensor([one[3]]), torch.tensor([other[3]]))) <= IOU for other in rivals):
            kept.append(one)
    return sorted(kept)


def _live(port: int, chunk: np.ndarray, rate: float, center: float) -> Found:
    with Longhaul(f"http://127.0.0.1:{port}") as client:
        (answer,) = client.detect_iq(chunk, rate, center, deadline_s=60).chunks
    assert not answer.degraded, answer.models
    return sorted((one.model, one.label, one.score, one.box_px) for one in answer.detections)


def _equal(one: Found, other: Found) -> bool:
    return len(one) == len(other) and all(
        a[:2] == b[:2] and abs(a[2] - b[2]) < 1e-4 and np.allclose(a[3], b[3], rtol=0, atol=0.01)
        for a, b in zip(one, other, strict=True)
    )


if __name__ == "__main__":
    main()
