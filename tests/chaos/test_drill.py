"""`longhaul drill` on a real cluster: faults are survived, a run that does not survive is told so, and nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from interruptible import interruptible

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LONGHAUL = str(Path(sys.executable).with_name("longhaul"))
START_S = 180.0


class Drills:
    """Runs drills in a folder for temporary files of their own."""

    def __init__(self, folder: Path, reports: Path) -> None:
        self.folder, self.report = folder, reports / "report.json"
        self._environment = os.environ | {"TMPDIR": str(folder), "RAY_AUTH_MODE": "token", "COLUMNS": "200"}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [LONGHAUL, "drill", "jobs/recipes/classification/digits.yaml", "--report", str(self.report), *arguments]
        pipe, output = subprocess.PIPE, subprocess.STDOUT
        command = interruptible(*command)
        return subprocess.Popen(
            command, cwd=ROOT, env=self._environment, stdout=pipe, stderr=output, text=True, start_new_session=True
        )

    def found(self) -> dict[str, Any]:
        return json.loads(self.report.read_text())

    def left(self) -> list[str]:
        """Files and processes that should be gone."""
        processes = [f"{p.pid} {p.name()}" for p in psutil.process_iter() if _variable(p, "TMPDIR").startswith(str(self.folder))]
        return processes + [str(path) for path in self.folder.iterdir()]


def _variable(process: psutil.Process, name: str) -> str:
    try:
        return process.environ().get(name, "") if process.status() != psutil.STATUS_ZOMBIE else ""
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


@pytest.fixture
def drills(tmp_path: Path) -> Iterator[Drills]:
    folder = Path(tempfile.mkdtemp(prefix="d", dir="/tmp"))  # short: paths of sockets are limited to 107 bytes
    yield Drills(folder, tmp_path)
    shutil.rmtree(folder, ignore_errors=True)


def test_a_short_drill_is_survived_and_leaves_nothing_behind(drills: Drills) -> None:
    kinds = ("--kinds", "kill-node,flipped-bit,nan-gradient", "--faults", "3", "--seed", "1", "--set", "training.steps=42")
    output, _ = (drill := drills.start(*kinds)).communicate()
    assert drill.returncode == 0, output
    report = drills.found()
    assert {outcome["state"] for outcome in report["outcomes"]} == {"survived"}
    notes = {outcome["fault"]["kind"]: outcome["note"] for outcome in report["outcomes"]}
    assert "SHA-256" in notes["flipped-bit"] or "seal" in notes["flipped-bit"]
    checks = {check["name"]: check for check in report["checks"]}
    assert all(check["passed"] for check in checks.values())
    assert "equal bit for bit" in checks["final weights"]["finding"]
    assert checks["sample stream (disturbed)"]["finding"] == "42 steps, each sample exactly once an epoch"
    assert report["results"]["test/top1"][0] == report["results"]["test/top1"][1]
    assert drills.left() == []


@pytest.mark.exhaustive
def test_a_run_that_ends_by_a_fault_fails_the_drill(drills: Drills) -> None:
    fatal = ("--kinds", "kill-worker", "--faults", "1", "--set", "training.steps=22", "--set", "resilience.budgets={lost: 0}")
    output, _ = (drill := drills.start(*fatal)).communicate()
    assert drill.returncode == 1, output
    assert [outcome["state"] for outcome in drills.found()["outcomes"]] == ["lost"]
    assert "0 of 1 faults survived" in output


@pytest.mark.exhaustive
def test_an_interrupted_drill_leaves_nothing_behind(drills: Drills) -> None:
    drill = drills.start("--kinds", "kill-worker", "--faults", "1")
    assert drill.stdout is not None
    until = time.monotonic() + START_S
    while "undisturbed" not in drill.stdout.readline():
        assert time.monotonic() < until
    time.sleep(5.0)  # its driver is starting workers by now
    drill.send_signal(signal.SIGINT)
    output, _ = drill.communicate(timeout=60)
    assert drill.returncode == 130, output
    assert drills.left() == []
