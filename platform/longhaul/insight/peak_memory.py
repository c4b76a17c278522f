"""How much memory a classifier takes on a CPU, by a fresh process that does nothing else.

In a process that has worked before, freed memory is used again and the growth says nothing. So a new one imports torch, warms
its kernels up on a small network, notes its resident memory, builds the network and answers two batches; the peak in answering
(`VmHWM` of Linux, set back by `/proc/self/clear_refs` after the building) less what was noted is the figure. It scatters by
about 10 MiB, as allocators do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from longhaul.errors import LonghaulError
from longhaul.insight.profile import Conditions, place, run_once
from longhaul.models.counting import MIB
from longhaul.models.zoo import build_image_model
from longhaul.recipe.networks import ModelSection

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_LIMIT_S = 600.0


class Task(BaseModel):
    """What the fresh process shall build and run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    section: ModelSection
    classes: int
    resolution: int
    conditions: Conditions
    threads: int


def cpu_peak_mb(section: ModelSection, classes: int, resolution: int, conditions: Conditions) -> float:
    """The most that weights, images and everything between take at once on a CPU, in MiB; takes some seconds.

    Args:
        section: the network; published weights are not fetched.
        classes: its outputs.
        resolution: side of the images.
        conditions: batch, precision and layout count here.

    Raises:
        LonghaulError: the process failed, such as for want of memory, or this is no Linux.
    """
    if not _CLEAR.exists():
        raise LonghaulError("peak memory on a CPU is read from Linux's /proc, which is not here")
    bare = section.model_copy(update={"pretrained": False, "weights": None})
    task = Task(section=bare, classes=classes, resolution=resolution, conditions=conditions, threads=torch.get_num_threads())
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "longhaul.insight.peak_memory", task.model_dump_json()]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise LonghaulError(f"measuring the peak memory took over {_LIMIT_S:g} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise LonghaulError(f"the process that measures the peak memory failed ({last})")
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mb"])


def _main(argument: str) -> None:
    """In the fresh process: measure, and print the figure as JSON."""
    task = Task.model_validate_json(argument)
    torch.set_num_threads(task.threads)
    cpu = torch.device("cpu")
    small = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8)
    )
    run_once(*place(small, (3, 32, 32), task.conditions, cpu), task.conditions)
    before = _status_bytes("VmRSS")
    model = build_image_model(task.section, task.classes, task.resolution)
    placed, images = place(model, (3, task.resolution, task.resolution), task.conditions, cpu)
    del model
    _CLEAR.write_text("5", encoding="ascii")
    for _ in range(2):
        run_once(placed, images, task.conditions)
    sys.stdout.write(json.dumps({"peak_mb": (_status_bytes("VmHWM") - before) / MIB}) + "\n")


def _status_bytes(name: str) -> int:
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    _main(sys.argv[1])
