"""Each rule of tools/shape.py is seen red once, and the repository itself is in shape."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/shape.py"
PACKAGE = "platform/longhaul"
GOOD = '"""Module."""\n\n\ndef double(n: int) -> int:\n    """Twice n."""\n    return 2 * n\n'


def problems(root: Path) -> list[str]:
    spec = importlib.util.spec_from_file_location("shape", TOOL)
    assert spec is not None
    assert spec.loader is not None
    shape = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shape)
    return [str(finding) for finding in shape.check(root)]


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def long_function(lines: int) -> str:
    return '"""Module."""\n\n\ndef long() -> None:\n    """Long."""\n' + "    long\n" * (lines - 2)


def with_parameters(count: int) -> str:
    names = ", ".join(f"p{i}: int" for i in range(count))
    return f'"""Module."""\n\n\nclass C:\n    """C."""\n\n    def f(self, {names}) -> None:\n        """F."""\n'


PROTOCOL = '''"""Module."""


class P(Protocol):
    """P."""

    @property
    def size(self) -> int: ...

    def go(self) -> None: ...


class Q:
    """Q."""

    @property
    def size(self) -> int:
        return 1
'''
BROAD = '"""Module."""\n\ntry:\n    f()\nexcept {}\n    g()\n'


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("room/good.py", GOOD),
        ("room/full.py", GOOD + "#\n" * (400 - GOOD.count("\n"))),
        ("training/loop.py", GOOD + "#\n" * (300 - GOOD.count("\n"))),
        ("room/long.py", long_function(80)),
        ("room/parameters.py", with_parameters(8)),
        ("room/protocol.py", PROTOCOL),
        ("room/private.py", '"""Module."""\n\n\ndef _f() -> None: ...\n\n\nclass _C:\n    def f(self) -> None: ...\n'),
        ("room/reason.py", BROAD.format("Exception:  # a view must never end a training")),
        ("room/reason.py", BROAD.format("Exception:  # noqa: BLE001 - a view must never end a training")),
        ("room/reason.py", BROAD.format("Exception:\n    # a view must never end a training")),
        ("room/raises.py", BROAD.format("BaseException:").replace("g()", "g()\n    raise")),
        ("room/narrow.py", BROAD.format("OSError:")),
    ],
)
def test_in_shape(tmp_path: Path, path: str, text: str) -> None:
    write(tmp_path, f"{PACKAGE}/{path}", text)
    assert problems(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("room/full.py", GOOD + "#\n" * 400, "full.py:401: file of 406 lines, allowed are 400"),
        ("training/loop.py", GOOD + "#\n" * 295, "loop.py:301: file of 301 lines, allowed are 300"),
        ("room/long.py", long_function(81), "long.py:4: function long of 81 lines, allowed are 80"),
        ("room/parameters.py", with_parameters(9), "parameters.py:7: function f has 9 parameters, allowed are 8"),
        ("room/untyped.py", GOOD.replace("n: int", "n"), "untyped.py:4: parameter n of double has no type"),
        ("room/untyped.py", GOOD.replace("n: int", "*n"), "untyped.py:4: parameter n of double has no type"),
        ("room/untyped.py", GOOD.replace(" -> int", ""), "untyped.py:4: function double has no return type"),
        ("room/silent.py", GOOD.replace('"""Module."""', ""), "silent.py:1: module without a docstring"),
        ("room/silent.py", GOOD.replace('"""Twice n."""', ""), "silent.py:4: double has no docstring"),
        ("room/silent.py", '"""Module."""\n\n\nclass C:\n    x = 1\n', "silent.py:4: C has no docstring"),
        ("room/silent.py", with_parameters(1).replace('"""F."""', "..."), "silent.py:7: C.f has no docstring"),
        ("room/silent.py", PROTOCOL.replace("        return 1", "        x = 1\n        return x"), "Q.size has no docstring"),
        ("room/silent.py", PROTOCOL.replace("(Protocol)", "(Base)"), "P.size has no docstring"),
        ("room/broad.py", BROAD.format("Exception:"), "broad.py:5: broad except without a comment that says why"),
        ("room/broad.py", BROAD.format("Exception:  # noqa: BLE001"), "broad.py:5: broad except"),
        ("room/broad.py", BROAD.format(":").replace(" :", ":"), "broad.py:5: broad except"),
        ("room/star.py", '"""Module."""\n\nfrom os import *\n', "star.py:3: star import"),
        ("room/helpers.py", GOOD, "helpers.py:1: a drawer by its name"),
        ("utils/good.py", GOOD, "good.py:1: a drawer by its name"),
        ("data/order.py", GOOD + "#\n" * 600, "loop, checkpoint, order and a recipe have"),
    ],
)
def test_out_of_shape(tmp_path: Path, path: str, text: str, expected: str) -> None:
    write(tmp_path, "jobs/recipes/classification/one.yaml", "# a long recipe\n" * 400)
    write(tmp_path, f"{PACKAGE}/{path}", text)
    assert any(expected in problem for problem in problems(tmp_path)), problems(tmp_path)


def test_tests_answer_for_sizes_only(tmp_path: Path) -> None:
    write(tmp_path, "tests/test_x.py", "def test_x(fixture):\n    assert fixture\n")
    assert problems(tmp_path) == []
    write(tmp_path, "tests/test_x.py", long_function(81))
    assert len(problems(tmp_path)) == 1


def test_command_prints_and_exits_by_what_it_finds(tmp_path: Path) -> None:
    write(tmp_path, f"{PACKAGE}/room/good.py", GOOD)
    good = subprocess.run([sys.executable, TOOL, tmp_path], capture_output=True, text=True, check=False)
    assert (good.returncode, good.stdout) == (0, "shape: all in order\n")
    write(tmp_path, f"{PACKAGE}/room/misc.py", GOOD)
    bad = subprocess.run([sys.executable, TOOL, tmp_path], capture_output=True, text=True, check=False)
    assert bad.returncode == 1
    assert bad.stdout.startswith(f"{PACKAGE}/room/misc.py:1: a drawer")


def test_the_repository_is_in_shape() -> None:
    assert problems(ROOT) == []
