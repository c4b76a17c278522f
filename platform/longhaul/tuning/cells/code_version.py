"""The code that a cell's numbers depend on, as one hash: a cell is trained again when this changes, and only then.

Found by reading sources (`ast`), nothing is imported: from the loop, the engine, the workload and the network of the recipe,
along their imports, within the rooms that decide numbers (`_ROOMS`). The other rooms stay out on purpose:

* `recipe`: what it decides is in the cell's resolved recipe, which is hashed beside this; all but `_DECIDERS`, whose functions
  are called while a run trains.
* `resilience`, `storage`: keep, find and move what was computed; a resumed run equals the straight one, which tests hold. What
  they decide beyond that (rolling back from a spike) acts on runs that have gone wrong.
* `errors`, `insight`, `export`, `tuning` and all above: talk about numbers, and change none.

`_RECORDERS` names what lies in those rooms and only records, talks or draws.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.version import InvalidVersion, Version

import longhaul
from longhaul.models.zoo import own_module
from longhaul.recipe import Recipe
from longhaul.recipe.phases import resolve

_PACKAGE = "longhaul"
_ROOMS = ("data", "models", "signals", "workloads", "training")
_RECORDERS = frozenset(
    f"{_PACKAGE}.{module}"
    for module in (
        # What a run writes about itself, for people and trackers.
        "training.record.record",
        "training.record.logbook",
        "training.record.trackers",
        "training.record.tracker_feed",
        "training.record.busy",
        "training.recovery.quarantine",
        # When a run hears from outside, and what it tells Ray.
        "training.pulse",
        "training.on_ray.preemption",
        "training.on_ray.report",
        # How its state is put away, bit for bit, for whatever number of workers; what is loaded from it is in `resuming`.
        "training.checkpoints.saving",
        "training.checkpoints.host_copy",
        "training.checkpoints.reshard",
        "training.checkpoints.universal",
        # What is made of a trained network: exports and pictures.
        "models.static_detector",
        "workloads.detection_pictures",
    )
)
_DECIDERS = frozenset(f"{_PACKAGE}.recipe.{module}" for module in ("duration", "phases"))
"""How a length becomes samples and steps, and a phase its recipe."""
_ENGINES = {True: f"{_PACKAGE}.training.engine.torch_engine", False: f"{_PACKAGE}.training.engine.deepspeed_engine"}
_WORKLOADS = {kind: f"{_PACKAGE}.workloads.{kind}" for kind in ("classification", "detection")}
_DATA = {kind: f"{_PACKAGE}.data.{kind}" for kind in ("digits", "cifar10")}  # image folders need no module of their own
_CHOSEN = frozenset([*_ENGINES.values(), *_WORKLOADS.values(), *_DATA.values()])
"""Modules that the recipe chooses among: an import of one that it does not choose counts for nothing."""
_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow")  # Pillow decodes images


@dataclass(frozen=True)
class CodeVersion:
    """What a cell was, or would be, computed by.

    Attributes:
        sha256: hash of the rest.
        modules: SHA-256 of each module's code, without docstrings, comments and layout.
        libraries: version of each, as major.minor.patch; local parts such as `+cu130` are left out.
    """

    sha256: str
    modules: dict[str, str]
    libraries: dict[str, str]


class Sources:
    """The package's sources; each file is read once, so that one object serves a whole grid at the cost of one cell.

    Args:
        root: the package's folder; left out, that of the running one.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root or Path(longhaul.__file__).parent
        self._read: dict[str, tuple[str, frozenset[str]] | None] = {}

    def closure(self, roots: list[str], unchosen: frozenset[str]) -> dict[str, str]:
        """Hash of every module that `roots` reach, by name.

        Raises:
            OSError: a source cannot be read.
            SyntaxError: one is no Python.
        """
        found: dict[str, str] = {}
        waiting = list(roots)
        while waiting:
            module = waiting.pop()
            if module in found or module in unchosen or not _decides(module):
                continue
            source = self._source(module)
            if source is None:
                continue
            found[module], imported = source
            waiting += [*imported, module.rpartition(".")[0]]  # importing a module runs its package first
        return dict(sorted(found.items()))

    def _source(self, module: str) -> tuple[str, frozenset[str]] | None:
        """Hash and imports of a module; None where no module is called so."""
        if module not in self._read:
            place = self._root.joinpath(*module.split(".")[1:])
            file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            if file.is_file():
                tree = ast.parse(file.read_bytes())
                package = module if place.is_dir() else module.rpartition(".")[0]
                self._read[module] = (_hash_of(tree), frozenset(_imports(tree, package)))
            else:
                self._read[module] = None
        return self._read[module]

    @property
    def readable(self) -> bool:
        """Whether there are source files: not so in a zip file, or where only byte code is installed."""
        return (self._root / "training" / "loop.py").is_file()


def code_version(recipe: Recipe, sources: Sources | None = None) -> CodeVersion:
    """The code that training `recipe` runs and that decides its numbers.

    Where sources cannot be read, the package's version stands for all of them.

    Args:
        recipe: its workload, engine and network decide what counts.
        sources: share one among the cells of a grid.
    """
    sources = sources or Sources()
    phases = resolve(recipe)
    plain = {phase.training.engine == "torch" for phase in phases}
    chosen = {_WORKLOADS[recipe.workload.kind], *(_ENGINES[torch] for torch in plain)}
    chosen |= {_DATA[phase.data.kind] for phase in phases if phase.data.kind in _DATA}
    network = own_module(recipe.model.name)
    entries = [f"{_PACKAGE}.training.loop", f"{_PACKAGE}.training.phases", *sorted(_DECIDERS)]
    roots = [*entries, *sorted(chosen), *([network] if network else [])]
    modules = sources.closure(roots, _CHOSEN - chosen) if sources.readable else {_PACKAGE: longhaul.__version__}
    names = [*_LIBRARIES, *(() if plain == {True} else ("deepspeed",))]
    libraries = {name: _library(name) for name in names}
    text = json.dumps([modules, libraries], sort_keys=True, separators=(",", ":"))
    return CodeVersion(hashlib.sha256(text.encode()).hexdigest(), modules, libraries)


def changed(before: CodeVersion, now: CodeVersion) -> list[str]:
    """The modules and libraries that differ, are new or are gone, such as `longhaul.data.order` and `torch 2.14.0 -> 2.15.0`."""
    modules = [name for name in _names(before.modules, now.modules) if before.modules.get(name) != now.modules.get(name)]
    libraries = [
        f"{name} {before.libraries.get(name, 'none')} -> {now.libraries.get(name, 'none')}"
        for name in _names(before.libraries, now.libraries)
        if before.libraries.get(name) != now.libraries.get(name)
    ]
    return modules + libraries


def _names(before: dict[str, str], now: dict[str, str]) -> list[str]:
    return sorted({*before, *now})


def _decides(module: str) -> bool:
    parts = module.split(".")
    in_a_room = parts[0] == _PACKAGE and len(parts) > 1 and parts[1] in _ROOMS
    return module in _DECIDERS or (in_a_room and module not in _RECORDERS)


def _library(name: str) -> str:
    """major.minor.patch of an installed library; `none` where it is not installed."""
    try:
        found = version(name)
        return ".".join(map(str, (*Version(found).release, 0, 0)[:3]))
    except PackageNotFoundError:
        return "none"
    except InvalidVersion:  # a build of somebody's own numbering
        return found


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Every module that may be imported, also inside functions; of `from a import b`, both `a` and `a.b`."""
    for node in _run_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _run_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`, which never run."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in (_last_name(node.test),)
        waiting += node.orelse if isinstance(node, ast.If) and typing_only else ast.iter_child_nodes(node)


def _last_name(node: ast.AST) -> str | None:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def _hash_of(tree: ast.AST) -> str:
    return hashlib.sha256(json.dumps(_shape(tree), separators=(",", ":")).encode()).hexdigest()


def _shape(node: object) -> object:
    """A syntax tree as lists, without docstrings, positions and empty fields: the same for every version of Python.

    (`ast.dump` is not: newer versions add empty fields to old nodes.)
    """
    if isinstance(node, ast.AST):
        fields = [[name, _shape(value)] for name, value in ast.iter_fields(node) if name not in ("kind", "type_comment")]
        return [type(node).__name__, [field for field in fields if field[1] != []]]
    if isinstance(node, list):
        return [_shape(child) for child in node if not _is_text(child)]
    return [] if node is None else [type(node).__name__, repr(node)]


def _is_text(node: object) -> bool:
    """A bare string as a statement: a docstring of a module, class, function or attribute."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
