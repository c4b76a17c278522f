"""Do the detectors' graphs parse and build, at full size? On any machine: the RTX builder needs no GPU.

    python benchmarks/tensorrt_builds.py                     all three recipes, batches 1, 4 and 8
    python benchmarks/tensorrt_builds.py wifi_bluetooth_small

Weights are random: operators and shapes are the same with trained ones. What the plan decides is judged by `longhaul export`.
Prediction, from an earlier prototype of such graphs: 8 to 21 s and 70 to 180 MB a plan.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from longhaul.export.onnx_model import export_onnx
from longhaul.export.tensorrt_plan import build_plan, find_builder
from longhaul.models.faster_rcnn import build_detector
from longhaul.models.static_detector import StaticDetector
from longhaul.recipe import load
from longhaul.recipe.inputs import SpectrogramData
from longhaul.recipe.networks import DetectorSection
from longhaul.workloads.detection import detector_signature

RECIPES = Path(__file__).parents[1] / "jobs" / "recipes" / "detection"


def main() -> None:
    """Export and build each recipe's detector at each of its batch sizes, and print a table."""
    names = sys.argv[1:] or ["creamy_chicken", "wifi_bluetooth", "lte_uplink"]
    builder = find_builder()
    if builder is None:
        print("skipped: no builder is installed; pip install longhaul[rtx]")
        return
    table = Table("recipe", "batch", "precision", "export s", "ONNX MB", "build s", "plan MB", title=f"by {builder}")
    for name in names:
        recipe = load(RECIPES / f"{name}.yaml")
        network, data, export = recipe.model, recipe.data, recipe.export
        assert isinstance(network, DetectorSection)
        assert isinstance(data, SpectrogramData)
        torch.manual_seed(0)
        plain = network.model_copy(update={"pretrained": False})
        detector = build_detector(plain, len(data.classes), data.resolution).eval()
        static = StaticDetector(detector, precision=export.precision)
        signature = detector_signature(data, network)
        for batch in export.batches:
            with tempfile.TemporaryDirectory() as scratch:
                folder, since = Path(scratch), time.perf_counter()
                files = export_onnx(static, signature, folder, max_batch=batch, opset=export.opset, batches=(batch,))
                exported_s, since = time.perf_counter() - since, time.perf_counter()
                plan = build_plan(files[0], signature, folder, max_batch=batch, batch=batch, precision=export.precision)
                built_s = time.perf_counter() - since
                assert plan is not None
                sizes = (sum(file.stat().st_size for file in files) / 1e6, (folder / plan.file).stat().st_size / 1e6)
                row = (exported_s, sizes[0], built_s, sizes[1])
                table.add_row(name, str(batch), export.precision, *(f"{value:.1f}" for value in row))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
