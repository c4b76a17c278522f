"""Does a registered detector give what its run's network gives, on every tile of the data set and at every batch size?

    python benchmarks/same_detections.py wifi_bluetooth_small

The run or cross-validation lies below runs/, its model below models/, as README's commands leave them.

`longhaul export` asks the same of up to a hundred held-out tiles; this also takes those that it was trained on. ONNX Runtime on
the CPU against eager torch; pairs are same label and IoU of at least 0.9. Prediction: every detection has its partner.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import cast

import torch

from longhaul.data.loader import batches
from longhaul.engines.engine_module import EngineModule
from longhaul.engines.onnxruntime_engine import OnnxRuntimeEngine
from longhaul.errors import UserError
from longhaul.export.decisions import BOUNDS, THRESHOLDS, Tally
from longhaul.export.registry import Registry
from longhaul.insight.runs import resolve_run
from longhaul.models.faster_rcnn import Detections
from longhaul.resilience.checkpoint import load_weights
from longhaul.workloads import build


@torch.no_grad()
def main() -> None:
    """Compare and print a line a batch size and threshold."""
    name = sys.argv[1] if len(sys.argv) > 1 else "wifi_bluetooth_small"
    try:
        run = resolve_run(name, "runs")
    except UserError as error:
        print(f"skipped: {error}")
        return
    recipe = run.recipe()
    workload, registry = build(recipe), Registry("models")
    manifest = registry.resolve(recipe.export.model_name or recipe.name)
    model = workload.build_model(initial=False)
    model.load_state_dict(load_weights(run, "best").state)
    model.eval()
    splits = [workload.splits.train, workload.splits.validation, workload.splits.test]
    images = torch.cat([batch["image"] for samples in splits for batch in batches(samples, 8)])
    expected = cast(Detections, tuple(torch.cat(part) for part in zip(*(model(some) for some in images.split(8)), strict=True)))
    print(f"{manifest.name}@{manifest.version} against {run.name}: {len(images)} tiles")
    with tempfile.TemporaryDirectory() as scratch:
        files = registry.fetch(manifest, Path(scratch))
        for size in manifest.batches:
            file, threads = files[manifest.model_file(size)], torch.get_num_threads()
            engine = OnnxRuntimeEngine({size: file}, workload.signature(), max_batch=size, threads=threads)
            found = cast(Detections, EngineModule(engine)(images))
            for threshold in THRESHOLDS:
                tally = Tally(threshold)
                tally.add(expected, found)
                one = tally.record(BOUNDS["fp32"])
                counts = f"{one.reference} by torch, {one.exported} exported, {one.matched} paired"
                within = f"boxes within {one.box_max_px:.1e} px, scores within {one.score_max:.1e}"
                print(f"batch {size}, score > {threshold:g}: {counts}; {one.differing_tiles} tiles differ; {within}")


if __name__ == "__main__":
    main()
