"""The cells of a sweep: one recipe for each combination of what varies, addressed by its content.

A cell's key is a hash of what decides its result: the resolved recipe, the data, the code. Two sweeps that ask for the same
cell share its run directory; a cell that has finished is never trained again by anybody.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longhaul.errors import UserError
from longhaul.recipe import Recipe
from longhaul.recipe.load import put, resolved
from longhaul.recipe.paths import anchored, refuse_relative_paths
from longhaul.recipe.phases import resolve
from longhaul.recipe.sweep import SweepRecipe
from longhaul.storage import file_sha256
from longhaul.training.alone import can_train_alone
from longhaul.tuning.cells.code_version import CodeVersion, Sources, code_version
from longhaul.tuning.sizing.cost import CostBook
from longhaul.tuning.sizing.micro_batch import fit_micro_batch
from longhaul.workloads import build

FOLD = "data.fold"
NO_PART_OF_RESULT = (
    "name", "tracking", "export",  # what is done with it, and what it is called
    "scaling.gpu", "scaling.cpus_per_worker", "data.loader_workers", "validation.batch",  # how fast it is computed
    "resilience.hang_s", "resilience.poll_s", "resilience.budgets", "resilience.preflight",  # how it survives
    "checkpoints.keep_latest", "checkpoints.keep_best", "checkpoints.keep_every",  # what is kept; of keep_best 0 see `_content`
    "checkpoints.ephemeral", "checkpoints.ephemeral_min_s", "checkpoints.ephemeral_max_s",
    "data.root",  # where the data lie; what they are is in their fingerprint
)  # fmt: skip
"""Fields of a recipe that leave a cell the same cell."""
_IN_PART = ("data.root", "checkpoints.keep_best")  # other data are other cells all the same, and so is one that keeps no best


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        coordinates: dotted recipe fields and their values.
        recipe: its whole recipe.
        content: hash of recipe and data, in hexadecimal; `code`: what of the code its result hangs on.
    """

    coordinates: dict[str, Any]
    recipe: Recipe
    content: str
    code: CodeVersion

    @property
    def stem(self) -> str:
        """The key up to the code's version: cells that share it differ in the code alone."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.recipe.model.name)[:40]
        return f"{name}-{self.recipe.data.resolution}-{self.content[:14]}"

    @property
    def key(self) -> str:
        """Its address: the name of its run directory."""
        return f"{self.stem}-{self.code.sha256[:6]}"


@dataclass
class CellMaker:
    """Makes the cells of one sweep; looks at each data set once.

    Attributes:
        sweep: the sweep.
        folder: what relative paths in it are seen from.
        book: what has been counted of networks.
    """

    sweep: SweepRecipe
    folder: Path = field(default_factory=Path.cwd)
    book: CostBook = field(default_factory=CostBook)
    _fingerprints: dict[str, str] = field(default_factory=dict)
    _sources: Sources = field(default_factory=Sources)

    def grid(self) -> Iterator[Cell]:
        """All cells of the grid, in its order: the last field varies fastest, folds after it."""
        fields = {**self.sweep.grid, **self._folds()}
        for values in itertools.product(*fields.values()):
            yield self.cell(dict(zip(fields, values, strict=True)))

    def folded(self, coordinates: Mapping[str, Any]) -> list[Cell]:
        """The cells of one point of the space: one a fold."""
        return [self.cell({**coordinates, FOLD: fold}) for fold in self._folds()[FOLD]] if self.sweep.folds else [
            self.cell(coordinates)
        ]  # fmt: skip

    def cell(self, coordinates: Mapping[str, Any]) -> Cell:
        """The cell at these coordinates.

        Raises:
            UserError: they make no recipe, or data and model do not fit each other.
        """
        raw = copy.deepcopy(self.sweep.recipe)
        raw["name"] = "cell"
        if self.sweep.folds:
            put(raw, ["data", "folds"], self.sweep.folds, told="folds")
        for path, value in coordinates.items():
            put(raw, path.split("."), value, told=f"sweep field {path}")
        label = ", ".join(f"{path}={value}" for path, value in coordinates.items())
        recipe = anchored(resolved(raw, f"sweep {self.sweep.name}, cell {label}"), self.folder)
        refuse_relative_paths(recipe, within="recipe.")
        recipe = self._placed(recipe)
        return Cell(dict(coordinates), recipe, self._content(recipe), code_version(recipe, self._sources))

    def _folds(self) -> dict[str, tuple[int, ...]]:
        return {FOLD: tuple(range(self.sweep.folds))} if self.sweep.folds else {}

    def _placed(self, recipe: Recipe) -> Recipe:
        """With its own name, the cores that a trial has, and a micro-batch that fits."""
        resources = self.sweep.resources
        changes: dict[str, Any] = {}
        if can_train_alone(recipe):
            changes["scaling"] = recipe.scaling.model_copy(update={"cpus_per_worker": resources.cpus})
        if resources.micro_batch == "memory":
            counted = self.book.count(recipe)
            if counted is None:
                problem = f"resources.micro_batch memory: the memory of {recipe.model.name} cannot be told beforehand"
                raise UserError(problem, "Set resources.micro_batch to recipe")
            micro_batch = fit_micro_batch(recipe, counted, self._memory_gb(recipe))
            changes["training"] = recipe.training.model_copy(update={"micro_batch": micro_batch})
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", recipe.model.name)
        return recipe.model_copy(update={"name": f"{name}-{recipe.data.resolution}", **changes})

    def _memory_gb(self, recipe: Recipe) -> float:
        """Of a GPU what a worker of the cell has, in 10^9 bytes: all of it, or the share that the sweep names."""
        resources = self.sweep.resources
        shared = resources.gpus != "auto" and resources.gpus > 0 and can_train_alone(recipe)
        return resources.gpu_memory_gb * (float(resources.gpus) if shared else 1.0)

    def _content(self, recipe: Recipe) -> str:
        """Hash of the recipe without `NO_PART_OF_RESULT`, the data's fingerprints, and what weights it begins with.

        How many of the best checkpoints are kept changes nothing, but where it is none, the test is of what was saved last.
        """
        document = recipe.model_dump(mode="json")
        for phase in document["phases"]:
            phase["set"] = {path: value for path, value in phase["set"].items() if not _is_no_part(path)}
        for path in NO_PART_OF_RESULT:
            *sections, last = path.split(".")
            node = document
            for section in sections:
                node = node[section]
            node.pop(last, None)
        if recipe.model.weights is not None:
            document["model"]["weights"] = file_sha256(Path(recipe.model.weights).expanduser())
        phases = resolve(recipe)
        if any(phase.checkpoints.keep_best == 0 for phase in phases):
            document["without_best"] = [phase.checkpoints.keep_best == 0 for phase in phases]
        document["fingerprint"] = [self._fingerprint(phase) for phase in phases]
        return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def _fingerprint(self, recipe: Recipe) -> str:
        """Of the three splits; resolution and augmentation do not change which samples there are."""
        unseen = {"resolution", "augment", "loader_workers"}
        known = json.dumps([recipe.data.model_dump(mode="json", exclude=unseen), recipe.seed], sort_keys=True)
        if known not in self._fingerprints:
            splits = build(recipe).splits
            parts = (splits.train.fingerprint, splits.validation.fingerprint, splits.test.fingerprint)
            self._fingerprints[known] = hashlib.sha256("".join(parts).encode()).hexdigest()
        return self._fingerprints[known]


def other_code(cell: Cell, keys: Iterable[str]) -> list[str]:
    """Those of `keys` that differ from the cell's in the code alone."""
    return sorted(key for key in keys if content_of(key) == cell.stem and key != cell.key)


def content_of(key: str) -> str:
    """A key up to the code's version: the cell's `stem`."""
    return key.rpartition("-")[0]


def check_fields(sweep: SweepRecipe) -> None:
    """Refuse a field of the sweep that would make no other cells, or that names what another does.

    Raises:
        UserError: names the field.
    """
    for path in [*sweep.grid, *(sweep.search.space if sweep.search else ())]:
        if _is_no_part(path) and path not in _IN_PART:
            fix = "Vary a field that changes the result; cells that differ in this one alone would be one cell"
            raise UserError(f"sweep {sweep.name}, field {path}: does not change what a cell comes to", fix)
        if sweep.folds and path in (FOLD, "data.folds"):
            raise UserError(f"sweep {sweep.name}: folds and {path} name the same thing", "Remove one of them")


def _is_no_part(path: str) -> bool:
    """Whether a field is one of `NO_PART_OF_RESULT`, or within one."""
    return any(path == none or path.startswith(f"{none}.") for none in NO_PART_OF_RESULT)
