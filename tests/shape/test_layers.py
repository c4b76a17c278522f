"""The contracts on imports hold, and break when somebody imports upwards or takes Ray into a room that must do without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--config", "pyproject.toml", "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(root / "platform")}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "platform", tmp_path / "platform", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return tmp_path


def test_contracts_hold(copy: Path) -> None:
    result = lint_imports(copy)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("room", "line", "contract"),
    [
        ("recipe", "import longhaul.models", "Imports go down only"),
        ("data", "def f(): import longhaul.workloads", "Imports go down only"),
        ("serving", "import longhaul.insight", "Imports go down only"),
        ("serving", "import longhaul.training", "Serving does without training"),
        ("data", "import ray", "Ray stays in the rooms that run things"),
        ("insight", "def f(): from ray import train", "Ray stays in the rooms that run things"),
    ],
)
def test_contracts_break(copy: Path, room: str, line: str, contract: str) -> None:
    (copy / f"platform/longhaul/{room}/intruder.py").write_text(line + "\n")
    result = lint_imports(copy)
    assert result.returncode == 1
    assert f"{contract} BROKEN" in result.stdout


def test_a_room_without_a_place_breaks(copy: Path) -> None:
    (copy / "platform/longhaul/attic").mkdir()
    (copy / "platform/longhaul/attic/__init__.py").touch()
    result = lint_imports(copy)
    assert "Imports go down only BROKEN" in result.stdout


def test_rooms_below_training_do_without_ray() -> None:
    rooms = ["recipe", "data", "models", "workloads", "resilience", "export", "insight"]
    modules = [
        ".".join(path.relative_to(ROOT / "platform").with_suffix("").parts).removesuffix(".__init__")
        for room in rooms
        for path in sorted((ROOT / "platform/longhaul" / room).rglob("*.py"))
    ]
    code = f"import importlib, sys\nsys.modules['ray'] = None\nfor name in {modules!r}: importlib.import_module(name)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
