"""The schema of a sweep: one base recipe, what varies in it, and how much of it to train.

A sweep is a document of its own (`longhaul sweep FILE`). Every combination of what varies is a cell: a recipe of its own.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from longhaul.recipe.schema import RunName
from longhaul.recipe.section import NonNegative, Number, Positive, PositiveFloat, Section

Probability = Annotated[float, Field(gt=0, lt=1), Number]


class Uniform(Section):
    """Any number between two bounds, all equally likely."""

    uniform: tuple[float, float]
    """Lower and upper bound."""

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.uniform[0] >= self.uniform[1]:
            raise ValueError(f"uniform {list(self.uniform)}: the lower bound comes first")
        return self


class LogUniform(Section):
    """Any number between two bounds, its logarithm equally likely: for learning rates and decays."""

    log_uniform: tuple[PositiveFloat, PositiveFloat]
    """Lower and upper bound, above 0."""

    @model_validator(mode="after")
    def _ordered(self) -> LogUniform:
        if self.log_uniform[0] >= self.log_uniform[1]:
            raise ValueError(f"log_uniform {list(self.log_uniform)}: the lower bound comes first")
        return self


class Integer(Section):
    """Any whole number from the first to the second bound, both included."""

    integer: tuple[int, int]
    """Lower and upper bound."""

    @model_validator(mode="after")
    def _ordered(self) -> Integer:
        if self.integer[0] >= self.integer[1]:
            raise ValueError(f"integer {list(self.integer)}: the lower bound comes first")
        return self


class Choice(Section):
    """One of several values, of any kind."""

    choice: Annotated[tuple[Any, ...], Field(min_length=1)]
    """The values."""


DOMAINS = ("uniform", "log_uniform", "integer", "choice")
"""The fields by which the kinds of domain are told."""


def _domain(value: Any) -> str | None:
    if isinstance(value, dict):
        return next((kind for kind in DOMAINS if kind in value), None)
    kinds: dict[type[Section], str] = {Uniform: "uniform", LogUniform: "log_uniform", Integer: "integer", Choice: "choice"}
    return kinds.get(type(value))


Domain = Annotated[
    Annotated[Uniform, Tag("uniform")]
    | Annotated[LogUniform, Tag("log_uniform")]
    | Annotated[Integer, Tag("integer")]
    | Annotated[Choice, Tag("choice")],
    Discriminator(
        _domain,
        custom_error_type="domain",
        custom_error_message="write {uniform: [0, 1]}, {log_uniform: [1e-4, 1e-1]}, {integer: [1, 9]} or {choice: [a, b]}",
    ),
]


class SearchSection(Section):
    """Trials whose fields are drawn from a space."""

    kind: Literal["random", "tpe"] = "tpe"
    """Independent draws, or the tree-structured Parzen estimator (TPE), which learns from the trials before."""
    trials: Positive = 20
    """How many."""
    space: Annotated[dict[str, Domain], Field(min_length=1)]
    """Recipe fields and where their values come from, such as `training.optimizer.lr: {log_uniform: [1e-4, 1e-1]}`."""
    startup: Positive = 10
    """TPE draws so many trials at random before it begins to learn."""
    seed: Annotated[int, Field(ge=0, lt=2**31), Number] = 0
    """Decides what is drawn."""

    @field_validator("space", mode="before")
    @classmethod
    def _dotted(cls, value: Any) -> Any:
        return dotted_fields(value, DOMAINS) if isinstance(value, dict) else value


class NoStopping(Section):
    """Every trial trains to its end."""

    kind: Literal["none"] = "none"


class AshaStopping(Section):
    """Asynchronous successive halving (Li et al., 2020): at rungs, only the best share of the trials goes on."""

    kind: Literal["asha"]
    least_epochs: PositiveFloat = 1.0
    """The first rung; each later one is `reduction` times as far. Of trials that have not begun to learn, chance decides."""
    reduction: Annotated[float, Field(gt=1), Number] = 3.0
    """One of so many trials goes on at a rung."""


class MedianStopping(Section):
    """A trial ends when its best is below the median of the others' means at that epoch (Golovin et al., 2017)."""

    kind: Literal["median"]
    least_epochs: PositiveFloat = 1.0
    """No trial ends before."""
    least_trials: Positive = 3
    """So many others must have come that far."""


class PbtStopping(Section):
    """Population based training (Jaderberg et al., 2017): the worst members go on from the best ones' weights."""

    kind: Literal["pbt"]
    every_epochs: PositiveFloat = 2.0
    """Distance between comparisons."""
    quantile: Annotated[float, Field(gt=0, le=0.5), Number] = 0.25
    """The share of the members that is replaced by copies of as many of the best."""
    resample: Annotated[float, Field(ge=0, le=1), Number] = 0.25
    """How often a copied member's field is drawn anew; else it is changed by a fifth."""


StoppingSection = Annotated[NoStopping | AshaStopping | MedianStopping | PbtStopping, Field(discriminator="kind")]


class PruningSection(Section):
    """Cheap cells first; a dear one is left out where what was measured so far says that it cannot win."""

    along: str = "data.resolution"
    """The grid's field along which cells grow dear; cells that differ in it alone are compared."""
    risk: Probability = 0.05
    """The chance, over the whole grid, that something left out would have won."""
    least_common: Annotated[int, Field(ge=3), Number] = 3
    """So many cells must be measured at both values of `along` before their rank correlation counts."""


class BudgetSection(Section):
    """Where the sweep ends, at the latest; what runs then is paused, and goes on when the budget is raised."""

    trials: Positive | None = None
    """Cells that this sweep has begun, over all its calls; every fold is one. What other sweeps have trained is free."""
    hours: PositiveFloat | None = None
    """Hours that the sweep has run, those of earlier calls included."""
    dollars: PositiveFloat | None = None
    """What the cells' time has cost at the rates below."""
    dollars_per_gpu_hour: NonNegative = 0.0
    """Price of one GPU; a cell that takes half of one costs half."""
    dollars_per_cpu_hour: NonNegative = 0.0
    """Price of one CPU core."""

    @model_validator(mode="after")
    def _priced(self) -> BudgetSection:
        if self.dollars is not None and not self.dollars_per_gpu_hour and not self.dollars_per_cpu_hour:
            raise ValueError("dollars needs a price; set dollars_per_gpu_hour or dollars_per_cpu_hour")
        return self


class ResourcesSection(Section):
    """What a cell takes of the cluster while it trains; cells of several workers take `scaling` of the recipe instead."""

    cpus: PositiveFloat = 1.0
    """CPU cores; also the threads that torch uses, rounded down, at least one."""
    gpus: Annotated[float, Field(ge=0, le=1), Number] | Literal["auto"] = "auto"
    """GPU, or a share of one; auto takes a quarter, a half or a whole one by the memory that the cell needs, none where there is
    none."""
    gpu_memory_gb: PositiveFloat = 16.0
    """Memory of one GPU, for `auto` and for `micro_batch`."""
    micro_batch: Literal["recipe", "memory"] = "recipe"
    """As the recipe says, or the largest that fits into `gpu_memory_gb` at the cell's resolution; the global batch stays."""
    parallel: Positive | None = None
    """At most so many cells at once; left out, as many as the cluster has room for."""


class SweepRecipe(Section):
    """One sweep, completely described."""

    name: RunName
    """Names the sweep unless `--name` says otherwise."""
    recipe: dict[str, Any]
    """The base recipe, all fields that do not vary; checked with every cell."""
    grid: dict[str, tuple[Any, ...]] = {}
    """Recipe fields and their values, such as `data.resolution: [32, 64]`: every combination is a cell."""
    search: SearchSection | None = None
    """In place of a grid."""
    folds: Annotated[int, Field(ge=0, le=100), Number] = 0
    """Every cell once for each of so many folds (`data.folds`); 0 for one split."""
    stopping: StoppingSection = NoStopping()
    """Which cells end before their time."""
    pruning: PruningSection | None = None
    """Which cells of a grid are not trained at all."""
    budget: BudgetSection = BudgetSection()
    resources: ResourcesSection = ResourcesSection()

    @field_validator("grid", mode="before")
    @classmethod
    def _dotted(cls, value: Any) -> Any:
        return dotted_fields(value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _check(self) -> SweepRecipe:
        if bool(self.grid) == (self.search is not None):
            raise ValueError("give exactly one of grid and search")
        if self.folds == 1:
            raise ValueError("folds 1 leaves nothing to train on; set folds to 2 or more, or to 0 for one split")
        for field, values in self.grid.items():
            if not values:
                raise ValueError(f"grid.{field} is empty; give it at least one value")
            if len({repr(value) for value in values}) < len(values):
                raise ValueError(f"grid.{field} names a value twice; give each once")
        if self.pruning is not None and (self.search is not None or self.pruning.along not in self.grid):
            raise ValueError(
                f"pruning goes along {self.pruning.along!r}, which is no field of the grid; set pruning.along to one"
            )
        if isinstance(self.stopping, PbtStopping) and self.search is None:
            raise ValueError("stopping.kind pbt changes fields of a search; give search instead of grid")
        if isinstance(self.stopping, PbtStopping) and self.folds:
            raise ValueError("stopping.kind pbt cannot be folded; set folds to 0")
        return self


def dotted_fields(node: dict[str, Any], leaves: tuple[str, ...] = ()) -> dict[str, Any]:
    """A nested mapping as dotted paths, down to lists, plain values and the mappings that hold one of `leaves`.

    (`flatten.flat` goes into lists as well, which here are the values of a field.)

    Raises:
        ValueError: a path is written twice, in two ways.
    """
    fields: dict[str, Any] = {}
    for key, value in node.items():
        nested = isinstance(value, dict) and value and not any(leaf in value for leaf in leaves)
        inner = {f"{key}.{path}": one for path, one in dotted_fields(value, leaves).items()} if nested else {str(key): value}
        for path, one in inner.items():
            if path in fields:
                raise ValueError(f"{path} is written twice, dotted and nested; write it once")
            fields[path] = one
    return fields
