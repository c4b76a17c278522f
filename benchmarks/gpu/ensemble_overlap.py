"""Three detectors on one STFT on a GPU: does an ensemble take as long as its slowest member, or as long as all together?

    PYTHONPATH=platform python benchmarks/gpu/ensemble_overlap.py
    PYTHONPATH=platform python benchmarks/gpu/ensemble_overlap.py --devices cuda:0 cuda:1 cuda:1
    PYTHONPATH=platform python benchmarks/gpu/ensemble_overlap.py --devices cpu cpu cpu --tile 64 --samples 20000 --narrow

The last one tries whether it runs at all.

Needs torch, torchvision, timm and pydantic; not Ray. The engines are TensorRT's where tensorrt, onnx, onnxscript and onnxruntime
are there; else torch's, a static graph under CUDA graphs, stand in, and the output says so. Weights are random: a static graph
costs the same whatever it sees. Times are of the host's clock, from a batch of tiles on the GPU to named arrays on the host,
after warm-up. `sum`: one engine after another in one thread. `parallel`: each in its own thread, on its own stream; what they
answer then must be what they answer alone.
overlap = (sum - parallel) / (sum - slowest): 1 is as fast as the slowest alone, 0 is no gain. `chunk` adds what comes before:
samples in pinned memory of the host -> GPU -> tiles, once for all engines.

Prediction, before the first run, on an H100 with torch engines in half precision: a ResNet-50 fills the GPU from 4 tiles on, so
overlap is 0.6 for one tile, where launches and small kernels leave room, 0.25 for four and 0.15 for eight; parallel over slowest
is then 1.5 to 1.9, above the aim of 1.15, which takes a GPU for each engine. Eight tiles and the STFT take 60 ms.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longhaul.engines.inference import Array, InferenceEngine
from longhaul.engines.tensorrt_engine import TensorRTEngine
from longhaul.engines.torch_engine import TorchEngine
from longhaul.models.faster_rcnn import Detector, build_detector
from longhaul.models.static_detector import StaticDetector
from longhaul.recipe.networks import DetectorName, DetectorSection
from longhaul.signals.front_end import FrontEnd
from longhaul.workloads.base import Signature, TensorSpec

NETWORKS: tuple[DetectorName, ...] = ("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet18_fpn")
CLASSES = 3
WARM_UP = 5


def main() -> None:
    """Measure every batch size and print a table, then one line of JSON."""
    arguments = _arguments()
    names = arguments.devices
    if any(name.startswith("cuda") for name in names) and not torch.cuda.is_available():
        print("skipped: no CUDA device on this machine")
        sys.exit(0)
    first = torch.device(names[0])
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    where = torch.cuda.get_device_name(first) if first.type == "cuda" else "CPU"
    bandwidth, products = _copy_bandwidth(first), _matrix_products(first)
    ceilings = f"copies {bandwidth / 1e12:.2f} TB/s, bfloat16 products {products / 1e12:.1f} TFLOP/s"
    print(f"{where}, torch {torch.__version__}: {ceilings}; tiles of {arguments.tile} px, {arguments.rounds} calls")
    missing = _missing(first)
    if missing:
        print(f"TensorRT is not measured, {', '.join(missing)} is missing; torch engines stand in, with CUDA graphs on a GPU")
    front_end = FrontEnd(nfft=min(4096, arguments.tile * 4), hop=min(2048, arguments.tile * 2), tile=arguments.tile)
    engines = [
        _engine(_detector(network, arguments), device, arguments, use_torch=bool(missing))
        for network, device in zip(arguments.networks, names, strict=True)
    ]
    labels = [f"{network} on {device}" for network, device in zip(arguments.networks, names, strict=True)]
    for label, engine in zip(labels, engines, strict=True):
        engine.warm_up()
        captured = getattr(engine, "captured", ())
        print(f"  {label}: {engine.kind}, CUDA graphs for batches {list(captured)}")
    heads = ("sum", "parallel", "p99", "/slowest", "overlap", "chunk", "p99")
    print(f"{'tiles':>5} {'each, ms':>24} {' '.join(f'{head:>8}' for head in heads)}")
    rows = [_measure(engines, front_end, first, tiles, arguments) for tiles in arguments.batches]
    for engine in engines:
        engine.close()
    print(
        json.dumps(
            {
                "device": where,
                "torch": torch.__version__,
                "copy_bytes_per_s": bandwidth,
                "bf16_flop_per_s": products,
                "engine": engines[0].kind,
                "members": labels,
                "tile": arguments.tile,
                "precision": arguments.precision,
                "rounds": arguments.rounds,
                "rows": rows,
            }
        )
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=4_000_000, help="IQ samples of a tile")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp16")
    parser.add_argument("--networks", nargs=3, choices=sorted(set(NETWORKS)), default=list(NETWORKS))
    parser.add_argument("--devices", nargs=3, default=["cuda:0"] * 3, help="where each engine runs; tiles are made on the first")
    parser.add_argument("--narrow", action="store_true", help="tiny networks, to try the script")
    parser.add_argument("--no-graphs", action="store_true", help="launch kernel by kernel")
    return parser.parse_args()


def _detector(network: DetectorName, arguments: argparse.Namespace) -> Detector:
    torch.manual_seed(0)
    section = DetectorSection(name=network)
    if arguments.narrow:
        section = DetectorSection(
            name=network, stages=(1, 2, 3), fpn_channels=32, head_width=64, anchor_px=8, candidates=100, proposals=30,
            max_detections=10,
        )  # fmt: skip
    return build_detector(section, CLASSES, arguments.tile).eval().requires_grad_(False)


def _engine(detector: Detector, device: str, arguments: argparse.Namespace, *, use_torch: bool) -> InferenceEngine:
    graphs, most = not arguments.no_graphs, max(arguments.batches)
    signature = _signature(detector)
    if use_torch:
        static = StaticDetector(detector, precision=arguments.precision, pool="where")
        return TorchEngine(static, signature, max_batch=most, device=device, batches=arguments.batches, graphs=graphs)
    from longhaul.export.onnx_model import export_onnx
    from longhaul.export.tensorrt_plan import build_plan

    static = StaticDetector(detector, precision=arguments.precision)
    with tempfile.TemporaryDirectory() as scratch, torch.cuda.device(device):
        folder, plans, builder = Path(scratch), {}, ""
        for batch in arguments.batches:
            (file,) = export_onnx(static, signature, folder, max_batch=batch, opset=18, batches=[batch])
            plan = build_plan(file, signature, folder, max_batch=batch, batch=batch, precision=arguments.precision)
            assert plan is not None
            plans[batch], builder = folder / plan.file, plan.builder
        return TensorRTEngine(plans, builder, signature, max_batch=most, device=device, graphs=graphs)


def _signature(detector: Detector) -> Signature:
    most, side = detector.max_detections, detector.tile
    return Signature(
        task="detection",
        inputs=(TensorSpec(name="image", dtype="float32", shape=(1, side, side)),),
        outputs=(
            TensorSpec(name="boxes", dtype="float32", shape=(most, 4)),
            TensorSpec(name="scores", dtype="float32", shape=(most,)),
            TensorSpec(name="labels", dtype="int32", shape=(most,)),
            TensorSpec(name="flag", dtype="float32", shape=()),
        ),
    )


def _measure(
    engines: Sequence[InferenceEngine], front_end: FrontEnd, device: torch.device, tiles: int, arguments: argparse.Namespace
) -> dict[str, object]:
    """One batch size: every way to run it, `rounds` times each; prints a line."""
    generator = torch.Generator().manual_seed(tiles)
    iq = torch.complex(*torch.randn(2, tiles, arguments.samples, generator=generator).unbind())
    iq = iq.pin_memory() if device.type == "cuda" else iq

    def make_tiles() -> Tensor:
        image = front_end.to_uint8(iq.to(device, non_blocking=True)).float().div_(255).unsqueeze(1)
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # what engines ask of a batch on a GPU
        return image

    image = make_tiles()
    rounds = arguments.rounds
    each = [statistics.median(_times(lambda engine=engine: engine.infer(image), rounds)) for engine in engines]  # type: ignore[misc]
    together = statistics.median(_times(lambda: [engine.infer(image) for engine in engines], rounds))
    front = _times(make_tiles, rounds)
    with ThreadPoolExecutor(len(engines)) as threads:

        def run(image: Tensor) -> list[dict[str, Array]]:
            futures = [threads.submit(engine.infer, image) for engine in engines]
            return [future.result() for future in futures]

        for alone, beside in zip([engine.infer(image) for engine in engines], run(image), strict=True):
            for name, values in alone.items():
                np.testing.assert_allclose(beside[name], values, rtol=1e-3, atol=1e-3, err_msg=f"{name} differs in parallel")
        parallel = _times(lambda: run(image), rounds)
        chunk = _times(lambda: run(make_tiles()), rounds)
    middle, slowest = statistics.median(parallel), max(each)
    overlap = (together - middle) / (together - slowest)
    print(
        f"{tiles:5} {' '.join(f'{one * 1e3:7.2f}' for one in each):>24} {together * 1e3:8.2f} {middle * 1e3:8.2f} "
        f"{_p99(parallel) * 1e3:8.2f} {middle / slowest:8.2f} {overlap:8.2f} "
        f"{statistics.median(chunk) * 1e3:8.2f} {_p99(chunk) * 1e3:8.2f}",
        flush=True,
    )
    return {
        "tiles": tiles,
        "each_s": each,
        "sum_s": together,
        "slowest_s": slowest,
        "parallel_p50_s": middle,
        "parallel_p99_s": _p99(parallel),
        "parallel_over_slowest": middle / slowest,
        "overlap": overlap,
        "stft_p50_s": statistics.median(front),
        "chunk_p50_s": statistics.median(chunk),
        "chunk_p99_s": _p99(chunk),
    }


def _times(work: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each call, which ends when its results are there."""
    times = []
    for count in range(WARM_UP + rounds):
        since = time.perf_counter()
        work()
        if count >= WARM_UP:
            times.append(time.perf_counter() - since)
    return times


def _p99(times: Sequence[float]) -> float:
    return sorted(times)[min(len(times) - 1, int(0.99 * len(times)))]


def _missing(device: torch.device) -> list[str]:
    """What TensorRT engines lack here."""
    if device.type != "cuda":
        return ["a CUDA device"]
    return [name for name in ("tensorrt", "onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]


def _copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a large copy on the device."""
    source = torch.empty(2**30 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _best(lambda: target.copy_(source), device)


def _matrix_products(device: torch.device) -> float:
    """Operations a second of a large matrix product in bfloat16."""
    side = 8192 if device.type == "cuda" else 512
    factor = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    return 2 * side**3 / _best(lambda: factor @ factor, device)


def _best(work: Callable[[], object], device: torch.device) -> float:
    best = float("inf")
    for _ in range(10):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        since = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - since)
    return best


if __name__ == "__main__":
    main()
