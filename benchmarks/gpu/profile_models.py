"""What networks cost on a GPU: latency, throughput, share of the card's speed, peak memory, beside what they cost on paper.

    PYTHONPATH=platform python benchmarks/gpu/profile_models.py [--models NAME ...] [--resolutions 224] [--batch 64] [--out x.csv]

Needs torch, torchvision, timm, pydantic and PyYAML; not Ray. It measures as `longhaul profile` does (`insight.profile`): CUDA
events, warm-up until times have settled, no p99 of fewer than 100 calls. Weights and images are random. TFLOP/s are the
network's operations (a multiply-add as two) times its images a second; their share of what the product of two large matrices
reaches, which is measured first, is the network's model FLOPs utilisation. In fp32 convolutions and matrix products, the
ceiling's too, run at one precision: IEEE, or TF32 with `--tf32`. (Torch's own setting mixes them: TF32 in convolutions alone.)

Prediction, before the first run, on an H100 in bf16, channels last, batch 64 at 224 px: ResNet-50 4,000 images/s and ViT-L
1,000 (a fifth of the matrix product's speed; autocast converts the weights in every call), ConvNeXt-L 700; one
image takes 4 to 8 ms in all of them, which is launching and no arithmetic, so that ResNet-101 is dearer than ViT-B there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from longhaul.insight.profile import PRECISIONS, Conditions, Precision, chosen_device, device_name, tf32_operations
from longhaul.insight.profile_table import BACKBONES, Row, check_names, rows, write
from longhaul.insight.timing import CpuWatch, CudaWatch, measure

HEAD = f"{'network':26} {'px':>4} {'params M':>9} {'GFLOPs':>8} {'p50 b1 ms':>10} {'p99 b1 ms':>10} {'p50 ms':>8} {'images/s':>9}"


def main() -> None:
    """Measure each network at each resolution and print a line as soon as it is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(BACKBONES))
    parser.add_argument("--resolutions", type=int, nargs="+", default=[224])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "fp16"], choices=PRECISIONS)
    parser.add_argument("--contiguous", action="store_true", help="images as (N, C, H, W); else channels last")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each batch size")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help=".csv, .json or .parquet; of several precisions all rows")
    parser.add_argument("--tf32", action="store_true", help="convolutions and matrix products of fp32 in TF32; else IEEE")
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        print("skipped: no CUDA device on this machine")
        sys.exit(0)
    check_names(arguments.models)
    device = chosen_device(arguments.device)
    set_fp32(tf32=arguments.tf32)
    print(f"{device_name(device)}, torch {torch.__version__}, batch {arguments.batch}")
    done: list[Row] = []
    for precision in arguments.precisions:
        conditions = Conditions(arguments.device, arguments.batch, precision, not arguments.contiguous, arguments.seconds)
        ceiling = matrix_tflops(device, precision)
        told = f"{precision} ({fp32_precision()})" if precision == "fp32" else precision
        print(f"\n{told}; the product of two large matrices runs at {ceiling:.4g} TFLOP/s")
        print(f"{HEAD} {'TFLOP/s':>8} {'share':>6} {'peak MiB':>9}")
        for row in rows(arguments.models, arguments.resolutions, 1000, conditions):
            print(line(row, ceiling), flush=True)
            done.append(row)
    if arguments.out:
        write(arguments.out, done)
        print(f"wrote {arguments.out}")


def set_fp32(*, tf32: bool) -> None:
    """One precision for float32 convolutions and matrix products, so that a network and its ceiling are the same arithmetic."""
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32" if tf32 else "ieee"  # type: ignore[attr-defined]


def fp32_precision() -> str:
    """What torch is set to: `IEEE`, `TF32`, or which of the two operations alone is in TF32."""
    operations = tf32_operations()
    return ("IEEE", f"TF32 in {operations[0] if operations else ''} alone", "TF32")[len(operations)]


def matrix_tflops(device: torch.device, precision: Precision) -> float:
    """TFLOP/s of a square matrix product: the ceiling that a network's speed is held against."""
    side = 8192 if device.type == "cuda" else 1024
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    left, right = torch.randn(2, side, side, device=device, dtype=torch.float32).to(kind)
    watch = CudaWatch() if device.type == "cuda" else CpuWatch()
    timing = measure(lambda: left @ right, 1, watch=watch, budget_s=1.0)
    return 2 * side**3 * timing.samples_per_s / 1e12


def line(row: Row, ceiling: float) -> str:
    """One network at one resolution; `~` marks times that had not settled."""
    if row.count is None or row.profile is None:
        return f"{row.model:26} {row.resolution:4d} {row.problem}"
    single, batched = row.profile.single, row.profile.batched
    p99 = "" if single.p99_ms is None else f"{single.p99_ms:.3f}"
    speed = batched.samples_per_s * row.count.flops / 1e12
    peak = "" if row.profile.peak_memory_mb is None else f"{row.profile.peak_memory_mb:.0f}"
    mark = "" if single.settled and batched.settled else " ~"
    paper = f"{row.model:26} {row.resolution:4d} {row.count.parameters / 1e6:9.2f} {row.count.flops / 1e9:8.2f}"
    times = f"{single.p50_ms:10.3f} {p99:>10} {batched.p50_ms:8.2f} {batched.samples_per_s:9.1f}"
    return f"{paper} {times} {speed:8.3g} {speed / ceiling:6.1%} {peak:>9}{mark}"


if __name__ == "__main__":
    main()
