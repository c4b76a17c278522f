"""How fast a network answers on a device, and what it needs: latency, throughput, operations, memory.

Inference only: evaluation mode, no gradients, random images. Speed does not depend on the weights, so that a trained run is
profiled by a fresh network of its recipe.
"""

from __future__ import annotations

import contextlib
import copy
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from longhaul.errors import IntegrityError, UserError, first_line
from longhaul.insight.timing import Call, CpuWatch, CudaWatch, Timing, measure
from longhaul.models.counting import MIB, Count, count

if TYPE_CHECKING:  # a GPU machine without pyarrow can measure
    from longhaul.resilience.run_directory import RunDirectory

FILE = "profile.json"

Precision = Literal["fp32", "bf16", "fp16"]
"""fp32: as torch is set (`Profile.tf32`); bf16: autocast of float32 weights, which every call pays for; fp16: all in float16."""

PRECISIONS = get_args(Precision)

Operation = Literal["matmul", "cudnn.conv"]
"""Matrix products and convolutions, as `torch.backends` calls those whose precision is set apart."""


@dataclass(frozen=True)
class Conditions:
    """How a network is measured.

    Attributes:
        device: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:1`.
        batch: samples a call, beside batch 1.
        precision: see `Precision`.
        channels_last: images and weights laid out as (N, H, W, C).
        budget_s: about how long each batch size is measured.
    """

    device: str = "auto"
    batch: int = 32
    precision: Precision = "fp32"
    channels_last: bool = False
    budget_s: float = 3.0


class Profile(BaseModel):
    """A network at one resolution on one device.

    Attributes:
        shape: of one sample, (3, H, W).
        device: its name, such as `NVIDIA H200`; torch, threads, measured_s: version, threads of the CPU, Unix time.
        tf32: whether float32 convolutions or matrix products ran in TF32; tf32_of: which of the two. Torch's own setting is
            convolutions alone.
        single, batched: a call with one sample, and with `batched.batch`.
        peak_memory_mb: the most that weights, images and everything between took at once, in MiB, at the larger batch; by
            torch's allocator on a GPU, by the growth of a fresh process's resident memory on a CPU.
        no_peak_memory: why that is missing.
        count: what the network costs on paper.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[int, ...]
    device: str
    torch: str
    threads: int
    measured_s: float
    precision: Precision
    tf32: bool
    tf32_of: tuple[Operation, ...] = ()
    channels_last: bool
    single: Timing
    batched: Timing
    peak_memory_mb: float | None
    no_peak_memory: str | None
    count: Count


def profile(
    network: nn.Module, shape: Sequence[int], conditions: Conditions = Conditions(), counted: Count | None = None
) -> Profile:
    """Measure a network; it stays as it is, a copy goes to the device.

    Args:
        network: takes images (N, *shape) alone.
        shape: of one sample, such as (3, 224, 224).
        conditions: device, batch, precision, layout and time.
        counted: the network at this shape, where it has been counted already.

    Raises:
        UserError: there is no such device, or the network cannot work on it at this shape, batch or precision.
    """
    counted = counted or count(network, shape)
    device = chosen_device(conditions.device)
    on_gpu = device.type == "cuda"
    watch = CudaWatch() if on_gpu else CpuWatch()
    with _as_wanted(device):
        before = torch.cuda.memory_allocated(device) if on_gpu else 0
        try:
            model, images = place(network, shape, conditions, device)
            single = measure(_call(model, images[:1], conditions), 1, watch=watch, budget_s=conditions.budget_s)
            batched = measure(_call(model, images, conditions), len(images), watch=watch, budget_s=conditions.budget_s)
            peak = (_peak_bytes(_call(model, images, conditions)) - before) / MIB if on_gpu else None
        except (AssertionError, RuntimeError, ValueError) as error:  # RuntimeError: out of memory and missing kernels too
            raise _cannot(shape, conditions, device, error) from None
    in_tf32 = tf32_operations() if on_gpu and conditions.precision == "fp32" else ()
    return Profile(
        shape=tuple(shape),
        device=device_name(device),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        measured_s=time.time(),
        precision=conditions.precision,
        tf32=bool(in_tf32),
        tf32_of=in_tf32,
        channels_last=conditions.channels_last,
        single=single,
        batched=batched,
        peak_memory_mb=peak,
        no_peak_memory=None if on_gpu else "on a CPU it takes a process of its own",
        count=counted,
    )


def profile_run(run: RunDirectory, conditions: Conditions = Conditions()) -> Profile:
    """Measure the network of a run's recipe, of a run in phases at the one whose weights are exported.

    Raises:
        UserError: the run is none of classification, or its data are gone.
    """
    from longhaul.insight.trained_recipe import trained_recipe
    from longhaul.workloads import build

    recipe = trained_recipe(run)
    if recipe.workload.kind != "classification":
        raise UserError(f"run {run.name}: profiles are of classifiers, and it trains {recipe.workload.kind}", "Give another run")
    workload = build(recipe)
    side = recipe.data.resolution
    return profile(workload.build_model(initial=False), (3, side, side), conditions)


def save_profile(run: RunDirectory, profile: Profile) -> None:
    """Write `profile.json` into a run's directory."""
    run.storage.write_bytes(FILE, (profile.model_dump_json(indent=1) + "\n").encode())


def load_profile(run: RunDirectory) -> Profile | None:
    """The profile in a run's directory; None where there is none.

    Raises:
        IntegrityError: it was cut short or changed.
    """
    try:
        data = run.storage.read_bytes(FILE)
    except FileNotFoundError:
        return None
    try:
        return Profile.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise IntegrityError(f"{run.uri}/{FILE}: {where}: {first['msg']}; delete it and profile the run again") from None


def chosen_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:1` as a device.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r}: is none", "Give auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"device {name}: not on this machine", "Give auto or cpu")
    return device


def device_name(device: torch.device) -> str:
    """Such as `NVIDIA H200`, or the CPU's name as Linux gives it."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def place(network: nn.Module, shape: Sequence[int], conditions: Conditions, device: torch.device) -> tuple[nn.Module, Tensor]:
    """A copy of the network in evaluation mode, and random images (batch, *shape), both as the conditions want them there."""
    model = copy.deepcopy(network).eval().to(device)
    images = torch.randn(conditions.batch, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    if conditions.precision == "fp16":
        model, images = model.half(), images.half()
    if conditions.channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    return model, images


def _call(model: nn.Module, images: Tensor, conditions: Conditions) -> Call:
    return lambda: run_once(model, images, conditions)


def run_once(model: nn.Module, images: Tensor, conditions: Conditions) -> object:
    """What `place` gave, run as a server would: no gradients, and autocast, where it is wanted, converts the weights anew."""
    autocast = torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=conditions.precision == "bf16")
    with torch.inference_mode(), autocast:
        return model(images)


def _peak_bytes(call: Call) -> int:
    """The most that torch's allocator held on the current GPU in one more call, after the choosing of kernels is over."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated())


@contextlib.contextmanager
def _as_wanted(device: torch.device) -> Iterator[None]:
    """The device is the current one, and convolutions are tried out before one is chosen, as suits one shape again and again."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        with torch.cuda.device(device):
            yield
    finally:
        torch.backends.cudnn.benchmark = before


def tf32_operations() -> tuple[Operation, ...]:
    """What runs in TF32 as torch is set; by operator, since `allow_tf32` raises where recurrent layers are set apart."""
    convolutions = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]  # torch puts an object there
    products = torch.backends.cuda.matmul.fp32_precision
    set_to: tuple[tuple[Operation, str], ...] = (("matmul", products), ("cudnn.conv", convolutions))
    return tuple(operation for operation, precision in set_to if precision == "tf32")


def _cannot(shape: Sequence[int], conditions: Conditions, device: torch.device, error: Exception) -> UserError:
    what = f"batch {conditions.batch} of {' x '.join(map(str, shape))} in {conditions.precision} on {device}"
    fix = "Give a smaller batch" if isinstance(error, torch.OutOfMemoryError) else "Give another resolution or precision"
    return UserError(f"a network cannot be profiled with {what} ({first_line(error)})", fix)
