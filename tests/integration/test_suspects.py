"""The search for offending samples on two ranks, with every engine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("suspect_ranks.py")
PLATFORM = Path(__file__).parents[2] / "platform"


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("suspects")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(PLATFORM), "DS_ACCELERATOR": "cpu"}
    commands = [[sys.executable, str(SCRIPT), str(root), str(rank), "2", str(port)] for rank in range(2)]
    processes = [subprocess.Popen(c, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) for c in commands]
    ends = [process.communicate()[1].decode(errors="replace") for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(ends)[-4000:]
    return root


@pytest.mark.parametrize("engine", ["torch", "zero1", "zero2", "zero3"])
def test_all_ranks_find_the_same_samples_and_training_goes_on_as_if_nobody_had_looked(answers: Path, engine: str) -> None:
    first, second = (json.loads((answers / f"{engine}-{rank}.json").read_text()) for rank in range(2))
    assert first["found"] == second["found"] == {"nonfinite": [101, 106], "sigma": [104], "sound": []}
    assert first["tensors"] == 11
    assert first["same"]
