"""Checks the shape of the code: sizes, annotations, docstrings, broad excepts, names of files. STYLE.md gives the reasons.

Run as `python tools/shape.py [ROOT]`; prints one line a finding and exits with 1 when there is any. Needs no package.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FILE_LINES, LOOP_LINES, FUNCTION_LINES, PARAMETERS, STORY_LINES = 400, 300, 80, 8, 1000
DRAWERS = frozenset({"misc", "helpers", "helper", "utils", "util", "common"})
NO_REASON = re.compile(r"noqa(: *[A-Z]+[0-9]+(, *[A-Z]+[0-9]+)*)?|[^A-Za-z]")
PACKAGE = Path("platform/longhaul")
LOOP = PACKAGE / "training/loop.py"
STORY = (LOOP, PACKAGE / "resilience/checkpoint.py", PACKAGE / "data/order.py")
SIZED = ("platform", "jobs", "tools", "benchmarks", "tests")  # tests answer for sizes and names only

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Finding(NamedTuple):
    """One broken rule: file relative to the root, line, and what is wrong."""

    path: Path
    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.problem}"


def check(root: Path) -> list[Finding]:
    """Everything that is out of shape below the repository's `root`."""
    paths = sorted(p.relative_to(root) for folder in SIZED for p in (root / folder).rglob("*.py"))
    texts = {path: (root / path).read_text(encoding="utf-8") for path in paths}
    trees = {path: ast.parse(text, str(path)) for path, text in texts.items()}
    promised = {name for tree in trees.values() for name in _protocol_members(tree)}
    findings = list(_story(root))
    for path, tree in trees.items():
        findings += _sizes(path, texts[path], tree)
        if path.parts[0] != "tests":
            findings += _annotations(path, tree)
            findings += _docstrings(path, tree, promised)
            findings += _imports_and_excepts(path, texts[path].splitlines(), tree)
    return findings


def _story(root: Path) -> Iterator[Finding]:
    """The files that tell how a long run works, with the longest recipe, stay readable in one sitting."""
    lengths = [_lines(root / path) for path in STORY if (root / path).exists()]
    recipes = [_lines(path) for path in (root / "jobs/recipes").rglob("*.yaml")]
    total = sum(lengths) + max(recipes, default=0)
    if total >= STORY_LINES:
        yield Finding(LOOP, 1, f"loop, checkpoint, order and a recipe have {total} lines together, allowed are {STORY_LINES - 1}")


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def _sizes(path: Path, text: str, tree: ast.Module) -> Iterator[Finding]:
    limit = LOOP_LINES if path == LOOP else FILE_LINES
    length = len(text.splitlines())
    if length > limit:
        yield Finding(path, limit + 1, f"file of {length} lines, allowed are {limit}")
    if DRAWERS & {part.removesuffix(".py") for part in path.parts}:
        yield Finding(path, 1, "a drawer by its name; name the file for what it holds")
    for node in _functions(tree):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > FUNCTION_LINES:
            yield Finding(path, node.lineno, f"function {node.name} of {length} lines, allowed are {FUNCTION_LINES}")
        count = len(_parameters(node))
        if count > PARAMETERS:
            yield Finding(path, node.lineno, f"function {node.name} has {count} parameters, allowed are {PARAMETERS}")


def _annotations(path: Path, tree: ast.Module) -> Iterator[Finding]:
    for node in _functions(tree):
        for parameter in _parameters(node):
            if parameter.annotation is None:
                yield Finding(path, node.lineno, f"parameter {parameter.arg} of {node.name} has no type")
        if node.returns is None:
            yield Finding(path, node.lineno, f"function {node.name} has no return type")


def _docstrings(path: Path, tree: ast.Module, promised: set[str]) -> Iterator[Finding]:
    if ast.get_docstring(tree) is None:
        yield Finding(path, 1, "module without a docstring")
    for node in tree.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            yield Finding(path, node.lineno, f"{node.name} has no docstring")
        if isinstance(node, ast.ClassDef) and not _is_protocol(node):
            for member in node.body:
                if isinstance(member, Function) and not member.name.startswith("_") and not _told_elsewhere(member, promised):
                    yield Finding(path, member.lineno, f"{node.name}.{member.name} has no docstring")


def _told_elsewhere(node: Function, promised: set[str]) -> bool:
    """Documented here, or a setter, or a property of one line that a protocol documents."""
    marks = {ast.unparse(mark) for mark in node.decorator_list}
    one_line_property = bool(marks & {"property", "cached_property"}) and len(node.body) == 1 and node.name in promised
    return ast.get_docstring(node) is not None or one_line_property or any(m.endswith((".setter", "overload")) for m in marks)


def _imports_and_excepts(path: Path, lines: list[str], tree: ast.Module) -> Iterator[Finding]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            yield Finding(path, node.lineno, "star import")
        if isinstance(node, ast.ExceptHandler) and not any(isinstance(n, ast.Raise) and n.exc is None for n in ast.walk(node)):
            caught = ast.unparse(node.type) if node.type else ""
            comments = [line.partition("#")[2] for line in lines[node.lineno - 1 : node.body[0].lineno]]
            if caught in {"", "Exception", "BaseException"} and not any(NO_REASON.sub("", c) for c in comments):
                yield Finding(path, node.lineno, "broad except without a comment that says why")


def _functions(tree: ast.Module) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def _parameters(node: Function) -> list[ast.arg]:
    """All parameters but `self` and `cls`."""
    a = node.args
    every = [*a.posonlyargs, *a.args, *([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else [])]
    return [parameter for parameter in every if parameter.arg not in {"self", "cls"}]


def _is_protocol(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).partition("[")[0].endswith("Protocol") for base in node.bases)


def _protocol_members(tree: ast.Module) -> set[str]:
    protocols = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and _is_protocol(node)]
    return {member.name for node in protocols for member in node.body if isinstance(member, Function)}


if __name__ == "__main__":
    found = check(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1])
    print("\n".join(map(str, found)) or "shape: all in order")
    sys.exit(bool(found))
