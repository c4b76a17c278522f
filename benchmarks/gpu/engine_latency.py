"""Latency of a detector on a GPU, by what runs it: torch as trained, torch as a static graph, TensorRT.

    PYTHONPATH=platform python benchmarks/gpu/engine_latency.py [--tile 1024] [--batches 1 4 8] [--rounds 30]

Needs torch, torchvision, timm and pydantic; not Ray. TensorRT is measured where tensorrt, onnx, onnxscript and onnxruntime
are there, and its line says what is missing where not. Weights are random and tiles noise: a static graph costs the same whatever
it sees; torch as trained costs more the more it finds. Times are of CUDA events around a call on tiles that are on the GPU
already, after warm-up; in float32, TF32 is allowed. TensorRT runs as it serves: its times hold the way of the answers to the
host and back, and its plan is replayed as a CUDA graph. `flag` must be 0, or a suppression was not exact.

Prediction, before the first run, on an H200: ResNet-50 as trained is bound by launches and waits, 25 ms for one tile and 60 ms
for eight; as a static graph in half precision, replayed as a CUDA graph, 4 ms and 16 ms (0.42 TFLOP a tile at 300 TFLOP/s, and
as much again for pooling, sorting and suppression); `where` pools in one kernel a level and beats the 16 gathers in torch;
TensorRT, which fuses the gathers, is a fifth below both.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from longhaul.models.faster_rcnn import Detections, Detector, build_detector
from longhaul.models.roi_gather import Pool
from longhaul.models.static_detector import Precision, StaticDetector
from longhaul.recipe.networks import DetectorName, DetectorSection

NAMES: tuple[DetectorName, ...] = ("fasterrcnn_resnet18_fpn", "fasterrcnn_resnet50_fpn")
POOLS: tuple[Pool, ...] = ("where", "gather")
CLASSES = 3
WARM_UP = 5

Run = Callable[[], Detections]


@dataclass(frozen=True)
class Engine:
    """One way to run a detector.

    Attributes:
        name: as it is printed.
        prepare: tiles (N, 1, T, T) on the GPU -> a call that detects on them.
    """

    name: str
    prepare: Callable[[Tensor], Run]


def main() -> None:
    """Measure both backbones at each batch size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--networks", nargs="+", default=list(NAMES), choices=NAMES)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: no CUDA device on this machine")
        sys.exit(0)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, tiles of {arguments.tile} px, {arguments.rounds} calls")
    print(f"{'network':26} {'engine':34} {'batch':>5} {'ms':>8} {'(min)':>8} {'ms/tile':>8} {'MiB':>7} {'flag':>5}")
    for name in arguments.networks:
        torch.manual_seed(0)
        detector = build_detector(DetectorSection(name=name), CLASSES, arguments.tile).eval().requires_grad_(False)
        for engine in _engines(detector):
            for batch in arguments.batches:
                _measure(name, engine, torch.rand(batch, 1, arguments.tile, arguments.tile, device="cuda"), arguments.rounds)


def _engines(detector: Detector) -> Iterator[Engine]:
    on_gpu = _copied(detector)
    yield Engine("torch as trained, fp32", lambda image: lambda: on_gpu(image))
    choices: tuple[tuple[Precision, Pool], ...] = (("fp32", "where"), ("fp16", "where"), ("fp16", "gather"))
    for precision, pool in choices:
        static = StaticDetector(detector, precision=precision, pool=pool).cuda()
        yield Engine(f"torch static, {precision}, {pool}", _plain(static))
    for pool in POOLS:
        static = StaticDetector(detector, precision="fp16", pool=pool).cuda().to(memory_format=torch.channels_last)
        yield Engine(f"torch static, fp16, {pool}, NHWC", _plain(static))
        yield Engine("  and as a CUDA graph", _captured(static))
    missing = [name for name in ("tensorrt", "onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"{'':26} TensorRT: not measured, {', '.join(missing)} not installed")
        return
    for precision, pool in choices:
        yield Engine(f"TensorRT, {precision}, {pool}", _tensorrt(detector, precision, pool))


def _copied(detector: Detector) -> Detector:
    """On the GPU; the original stays on the CPU, where static graphs are made."""
    return copy.deepcopy(detector).cuda()


def _plain(static: StaticDetector) -> Callable[[Tensor], Run]:
    return lambda image: lambda: static(image)


def _captured(static: StaticDetector) -> Callable[[Tensor], Run]:
    def prepare(image: Tensor) -> Run:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # algorithms are chosen before the capture
            for _ in range(WARM_UP):
                static(image)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs: Detections = static(image)

        def replay() -> Detections:
            graph.replay()
            return outputs

        return replay

    return prepare


def _tensorrt(detector: Detector, precision: Precision, pool: Pool) -> Callable[[Tensor], Run]:
    from longhaul.engines.engine_module import EngineModule
    from longhaul.engines.tensorrt_engine import TensorRTEngine
    from longhaul.export.onnx_model import export_onnx
    from longhaul.export.tensorrt_plan import build_plan
    from longhaul.workloads.base import Signature, TensorSpec

    most, side = detector.max_detections, detector.tile
    outputs: Sequence[tuple[str, str, tuple[int, ...]]] = (
        ("boxes", "float32", (most, 4)),
        ("scores", "float32", (most,)),
        ("labels", "int32", (most,)),
        ("flag", "float32", ()),
    )
    signature = Signature(
        task="detection",
        inputs=(TensorSpec(name="image", dtype="float32", shape=(1, side, side)),),
        outputs=tuple(TensorSpec.model_validate({"name": n, "dtype": d, "shape": s}) for n, d, s in outputs),
    )

    def prepare(image: Tensor) -> Run:
        batch = len(image)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            static = StaticDetector(detector, precision=precision, pool=pool)
            (file,) = export_onnx(static, signature, folder, max_batch=batch, opset=18, batches=[batch])
            plan = build_plan(file, signature, folder, max_batch=batch, batch=batch, precision=precision)
            assert plan is not None
            engine = TensorRTEngine({batch: folder / plan.file}, plan.builder, signature, max_batch=batch)
        engine.warm_up()
        model = EngineModule(engine)
        return lambda: cast(Detections, model(image))

    return prepare


@torch.inference_mode()
def _measure(network: str, engine: Engine, image: Tensor, rounds: int) -> None:
    torch.cuda.reset_peak_memory_stats()
    run = engine.prepare(image)
    times = []
    for count in range(WARM_UP + rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        outputs = run()
        end.record()
        end.synchronize()
        if count >= WARM_UP:
            times.append(begin.elapsed_time(end))
    middle, memory = statistics.median(times), torch.cuda.max_memory_allocated() / 2**20
    print(
        f"{network:26} {engine.name:34} {len(image):5} {middle:8.2f} {min(times):8.2f} {middle / len(image):8.2f} "
        f"{memory:7.0f} {float(outputs[3].max()):5.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
