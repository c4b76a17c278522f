"""Training steps of the detectors on a GPU: tiles a second, and model FLOPs utilisation (MFU) against the measured ceiling.

    PYTHONPATH=platform python benchmarks/gpu/detector_training.py
    PYTHONPATH=platform python benchmarks/gpu/detector_training.py --device cpu --tile 128 --batch 2     (does it run at all)

Needs torch, torchvision, timm and pydantic; not Ray. Random tiles with 20 boxes each; forward, backward and AdamW in bfloat16
autocast (boxes in float32). Operations are counted by `torch.utils.flop_counter` in one real step, multiply and add as two.

Prediction, before the first run: ResNet-50 at 1024 px is 3 x 2 x 230 GMAC = 1.4 TFLOP a tile; at 25 % of 790 TFLOP/s that is
140 tiles/s. What holds it back are the float32 heads, the loops over tiles in proposal matching, and launches: 60 to 100 tiles/s,
MFU 10 to 18 %.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import cast

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from longhaul.models.faster_rcnn import Detector, build_detector
from longhaul.recipe.networks import DetectorName, DetectorSection

NAMES: tuple[DetectorName, ...] = ("fasterrcnn_resnet18_fpn", "fasterrcnn_resnet50_fpn")
BOXES, WARM_UP, STEPS = 20, 5, 15


def main() -> None:
    """Measure both backbones and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("skipped: no CUDA device on this machine")
        sys.exit(0)
    torch.set_float32_matmul_precision("high")
    ceiling = _ceiling(device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}; bfloat16 matrix product: {ceiling / 1e12:.1f} TFLOP/s")
    print(f"tiles of {arguments.tile} px, batches of {arguments.batch}, {STEPS} steps after {WARM_UP}")
    print(f"{'network':28} {'GFLOP/tile':>10} {'ms/step':>9} {'(min)':>8} {'tiles/s':>8} {'MFU':>6}")
    for name in NAMES:
        torch.manual_seed(0)
        detector = build_detector(DetectorSection(name=name), 2, arguments.tile).to(device).train()
        image, targets = _batch(arguments.batch, arguments.tile, device)
        optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-5)
        with FlopCounterMode(display=False) as counter:
            _step(detector, optimizer, image, targets)
        operations = counter.get_total_flops() / arguments.batch
        times = [_timed(detector, optimizer, image, targets) for _ in range(WARM_UP + STEPS)][WARM_UP:]
        middle = statistics.median(times)
        rate = arguments.batch / middle
        print(
            f"{name:28} {operations / 1e9:10.0f} {middle * 1e3:9.1f} {min(times) * 1e3:8.1f} {rate:8.1f} "
            f"{operations * rate / ceiling:6.1%}"
        )


def _step(detector: Detector, optimizer: torch.optim.Optimizer, image: Tensor, targets: list[dict[str, Tensor]]) -> None:
    with torch.autocast(image.device.type, dtype=torch.bfloat16):
        losses = cast("dict[str, Tensor]", detector(image, targets))
        total = torch.stack(list(losses.values())).sum()
    total.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _timed(detector: Detector, optimizer: torch.optim.Optimizer, image: Tensor, targets: list[dict[str, Tensor]]) -> float:
    if image.device.type != "cuda":
        since = time.perf_counter()
        _step(detector, optimizer, image, targets)
        return time.perf_counter() - since
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    _step(detector, optimizer, image, targets)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _batch(count: int, tile: int, device: torch.device) -> tuple[Tensor, list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(count, 1, tile, tile, generator=generator).to(device)
    targets = []
    for _ in range(count):
        corner = torch.rand(BOXES, 2, generator=generator) * tile * 0.8
        size = (0.02 + 0.15 * torch.rand(BOXES, 2, generator=generator)) * tile
        labels = torch.randint(1, 3, (BOXES,), generator=generator)
        targets.append({"boxes": torch.cat([corner, corner + size], 1).to(device), "labels": labels.to(device)})
    return image, targets


def _ceiling(device: torch.device) -> float:
    """Operations a second of a large matrix product in bfloat16, the best of several."""
    side = 8192 if device.type == "cuda" else 512
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(10):
        if device.type == "cuda":
            torch.cuda.synchronize()
        since = time.perf_counter()
        _ = a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - since)
    return 2 * side**3 / best


if __name__ == "__main__":
    main()
