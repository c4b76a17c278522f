"""What the repository promises in files that no code imports: the source root, versions, the README's commands."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib.metadata import version
from pathlib import Path

import click
import pytest
import typer.main
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from longhaul.errors import UserError
from longhaul.recipe.document import field_schema

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "STYLE.md"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def test_environment_variables_in_cluster_yaml_are_read_by_the_code() -> None:
    source = "".join(path.read_text() for path in (ROOT / "platform" / "longhaul").rglob("*.py"))
    named = set(re.findall(r"\bLONGHAUL_[A-Z_]+", (ROOT / "cluster.yaml").read_text()))
    assert named
    assert {name for name in named if f'"{name}"' not in source} == set()


def test_constraints_are_plain_exact_versions() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_]+", line), line


def test_constraints_fit_the_requirements_and_this_environment() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        if requirement.name != "longhaul":
            pinned = pins()[canonicalize_name(requirement.name)]
            assert pinned in requirement.specifier, f"{text}: constraints.txt says {pinned}"
            assert version(requirement.name) == pinned, f"run `make setup`: {requirement.name} is not at {pinned}"


def commands(root: click.Command, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    found = {path: root}
    for name, command in getattr(root, "commands", {}).items():
        found |= commands(command, (*path, name))
    return found


def shown_commands(document: str) -> list[list[str]]:
    """The command lines in a document's code blocks and inline code, comments and continued lines put right."""
    text = (ROOT / document).read_text()
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"(?<!`)`((?:longhaul|make|\.venv/bin/longhaul) [^`]+)`", text)
    return [words for line in [*lines, *inline] if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_show_only_commands_that_would_be_understood(document: str) -> None:
    from longhaul.cli.main import app

    known = commands(typer.main.get_command(app))
    for words in shown_commands(document):
        if words[0].removeprefix(".venv/bin/") != "longhaul":
            continue
        path = next(tuple(words[1:end]) for end in (3, 2, 1) if tuple(words[1:end]) in known)
        arguments = words[1 + len(path) :]
        if (default := getattr(known[path], "default", None)) is not None:  # a group whose one verb may be left out
            path = (*path, default)
        if arguments != ["--help"]:
            assert not hasattr(known[path], "commands"), f"{document}: no such verb: {' '.join(words)}"
            if arguments:  # none: the verb is only mentioned
                known[path].make_context(" ".join(path), arguments)  # raises where an argument or option is unknown


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_show_only_make_targets_and_files_that_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for words in shown_commands(document):
        if words[0] == "make":
            assert words[1] in targets, f"{document}: make {words[1]}"
    text = (ROOT / document).read_text()
    for path in re.findall(r"(?<![\w/.~<:])(?:jobs|tests|platform|benchmarks|serve_configs|tools|\.ci)/[\w./-]*[\w/]", text):
        if path == "platform/__init__.py":  # the one that must not exist
            continue
        assert (ROOT / path).exists() or (ROOT / "platform/longhaul" / path).exists(), f"{document}: {path}"
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / link).exists(), f"{document}: {link}"


def test_yaml_files_are_yaml() -> None:
    for path in [*(ROOT / "serve_configs").glob("*.yaml"), ROOT / "cluster.yaml"]:
        assert isinstance(yaml.safe_load(path.read_text()), dict), path


def stands_for_something(name: str) -> bool:
    """Whether a dotted name is a module, what one defines or a folder offers, or a field of a recipe."""
    place, parts = ROOT / "platform" / "longhaul", name.split(".")
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    if not parts:
        return True
    module = place / f"{parts[0]}.py"
    if module.is_file():
        return len(parts) == 1 or re.search(rf"\b{parts[1]}\b", module.read_text()) is not None
    if f'"{parts[0]}"' in (place / "__init__.py").read_text():
        return True
    try:
        field_schema(name)
    except UserError:
        return False
    return True


def test_comments_name_modules_where_they_are() -> None:
    package = ROOT / "platform" / "longhaul"
    rooms = "|".join(sorted(place.stem for place in package.iterdir() if not place.name.startswith("_")))
    named = re.compile(rf"`(?:longhaul\.)?((?:{rooms})(?:\.\w+)+)[`(]")
    gone = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in package.rglob("*.py")
        for name in named.findall(file.read_text())
        if not name.endswith((".yaml", ".json")) and not stands_for_something(name)
    }
    assert gone == set()
    assert [name for name in ("training.loop.train", "training.schedule", "recipe.diff") if not stands_for_something(name)] == []
    assert [name for name in ("training.nothing", "tuning.grid.cells.content_of") if stands_for_something(name)] == []
