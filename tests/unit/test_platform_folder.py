"""The trap of the folder `platform/`: as a package it would shadow the standard library's module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from longhaul.cluster.jobs import check_platform_folder
from longhaul.errors import UserError

ROOT = Path(__file__).parents[2]
USE = "import platform, sys; platform.system(); print(platform.__file__)"


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -c` in a folder, which puts that folder before the standard library on `sys.path`."""
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def test_platform_is_a_source_root_and_no_package() -> None:
    assert (ROOT / "platform" / "longhaul" / "__init__.py").is_file()
    check_platform_folder(ROOT)


def test_the_standard_module_wins_in_the_top_folder() -> None:
    done = python(f"{USE}; import torch; torch.zeros(1)", ROOT)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == Path(subprocess.__file__).parent


def test_the_guard_is_red_when_a_package_is_put_there(tmp_path: Path) -> None:
    """The control: the same two checks, in a tree with the marker, fail."""
    (tmp_path / "platform").mkdir()
    assert python(USE, tmp_path).returncode == 0
    check_platform_folder(tmp_path)
    (tmp_path / "platform" / "__init__.py").touch()
    broken = python(USE, tmp_path)
    assert broken.returncode != 0
    assert "has no attribute 'system'" in broken.stderr
    with pytest.raises(UserError, match="shadows"):
        check_platform_folder(tmp_path)


@pytest.mark.parametrize("name", [".gitignore", ".rayignore"])
def test_neither_git_nor_a_job_takes_the_marker_along(name: str) -> None:
    assert "/platform/__init__.py" in (ROOT / name).read_text().splitlines()
