"""The lineage of a population: which member trained when, from whose weights, with which values.

    <sweep>/population/
        lineage.json           `Lineage`, written whole at each change
        member-02-001/         a run directory for each generation of each member

A generation is a stretch of training under one recipe. It begins at the start of the sweep, or with a copy of the donor's
checkpoint: weights, optimizer state, position in the data, random state; the step counter goes on.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from longhaul.errors import IntegrityError, UserError
from longhaul.recipe import Recipe
from longhaul.recipe.sweep import Choice, Domain, Integer, LogUniform, SearchSection
from longhaul.resilience.checkpoint import CheckpointStore
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.resilience.sweep_directory import SweepDirectory
from longhaul.tuning.history import Direction, Past, identity
from longhaul.tuning.search.search import draw

POPULATION = "population"
_FILE = "lineage.json"
_FACTORS = (0.8, 1.2)
CHANGEABLE = (
    "training.optimizer.lr", "training.optimizer.weight_decay", "training.optimizer.momentum", "training.optimizer.betas",
    "training.schedule", "training.clip_norm",
    "workload.label_smoothing", "data.augment", "model.drop_rate", "model.drop_path_rate",
)  # fmt: skip
"""Fields (and what lies below them) that may change on the way: neither the weights' shapes nor the optimizer's state nor the
position in the data depend on them. All others are drawn once, and copied with the weights."""
_DRAWN_ONCE = ("training.schedule.name",)


class Donor(BaseModel):
    """Whose checkpoint a generation begins with, and the donor's score there."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    member: int
    generation: int
    checkpoint: str
    score: float


class Generation(BaseModel):
    """A stretch of a member's training.

    Attributes:
        number: counted from 0 within its member.
        values: the search's fields and their values.
        since: the epoch at which it begins.
        donor: None for a member's first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    values: dict[str, Any]
    since: float = 0.0
    donor: Donor | None = None


class Member(BaseModel):
    """One member: its generations, and its scores at the comparisons as (epoch, value)."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    number: int
    generations: list[Generation]
    scores: list[tuple[float, float]] = []

    @property
    def newest(self) -> Generation:
        """The one that trains."""
        return self.generations[-1]

    @property
    def run_name(self) -> str:
        """Of its newest generation's run."""
        return run_name(self.number, self.newest.number)


class Best(BaseModel):
    """The best checkpoint of all generations; `run` is relative to the storage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    member: int
    generation: int
    run: str
    checkpoint: str
    score: float


class Lineage(BaseModel):
    """`lineage.json`.

    Attributes:
        compared: the epoch of the last comparison; 0 before the first.
        members: all of them.
        best: None before the first validation.
    """

    model_config = ConfigDict(extra="forbid")

    compared: float = 0.0
    members: list[Member] = []
    best: Best | None = None

    @classmethod
    def load(cls, directory: SweepDirectory) -> Lineage:
        """That of a sweep; an empty one where none was written yet.

        Raises:
            IntegrityError: the file is damaged.
        """
        try:
            return cls.model_validate_json(directory.storage.read_bytes(f"{POPULATION}/{_FILE}"))
        except FileNotFoundError:
            return cls()
        except ValidationError as error:
            where = f"{directory.storage.uri}/{POPULATION}/{_FILE}"
            raise IntegrityError(f"{where}: {error.errors()[0]['msg']}. Move {POPULATION}/ away to start over") from None

    def save(self, directory: SweepDirectory) -> None:
        """Replace the file."""
        directory.storage.write_bytes(f"{POPULATION}/{_FILE}", (self.model_dump_json(indent=1) + "\n").encode())

    def draw_members(self, search: SearchSection, direction: Direction) -> None:
        """Draw those that are missing, at random and each another one; TPE would have nothing to learn from yet.

        Raises:
            UserError: the space has fewer configurations, or the sweep had more members at its last call.
        """
        if len(self.members) > search.trials:
            problem = f"search.trials {search.trials}: the population has {len(self.members)} members already"
            raise UserError(problem, f"Set search.trials to {len(self.members)} or more, or begin another sweep")
        section = search.model_copy(update={"kind": "random"})
        drawn = [Past(member.generations[0].values, [], "running", str(member.number)) for member in self.members]
        while len(drawn) < search.trials:
            values = draw(section, direction, drawn)
            if values is None:
                problem = f"search.trials {search.trials}: search.space has no more than {len(drawn)} configurations"
                raise UserError(problem, "Ask for fewer members, or give a field more values")
            self.members.append(Member(number=len(drawn), generations=[Generation(number=0, values=values)]))
            drawn.append(Past(values, [], "running", str(len(drawn))))


def run_name(member: int, generation: int) -> str:
    """`member-02-001`."""
    return f"member-{member:02d}-{generation:03d}"


def run_of(directory: SweepDirectory, member: int, generation: int) -> RunDirectory:
    """A generation's run directory; it may not be there yet."""
    return RunDirectory(directory.storage.child(f"{POPULATION}/{run_name(member, generation)}"))


def may_change(field: str) -> bool:
    """Whether a field may change on the way."""
    below = any(field == path or field.startswith(f"{path}.") for path in CHANGEABLE)
    return below and field not in _DRAWN_ONCE


def explore(space: Mapping[str, Domain], values: Mapping[str, Any], resample: float, draw: random.Random) -> dict[str, Any]:
    """The donor's values, those that may change changed: drawn anew with probability `resample`, else by a fifth.

    A number stays within its bounds (Ray's own `_explore` lets it leave them); a choice moves to a neighbour in its list.
    """
    changed = dict(values)
    for field, domain in space.items():
        if may_change(field):
            anew = draw.random() < resample
            changed[field] = _drawn(domain, draw) if anew else _neighbour(domain, values[field], draw)
    return changed


def _drawn(domain: Domain, draw: random.Random) -> Any:
    if isinstance(domain, Choice):
        return draw.choice(domain.choice)
    if isinstance(domain, Integer):
        return draw.randint(*domain.integer)
    if isinstance(domain, LogUniform):
        low, high = domain.log_uniform
        return min(max(float(low * (high / low) ** draw.random()), low), high)
    return draw.uniform(*domain.uniform)


def _neighbour(domain: Domain, value: Any, draw: random.Random) -> Any:
    if isinstance(domain, Choice):
        known = [identity(choice) for choice in domain.choice]
        if identity(value) not in known:
            return draw.choice(domain.choice)
        place = known.index(identity(value))
        near = [domain.choice[i] for i in (place - 1, place + 1) if 0 <= i < len(known)]
        return draw.choice(near) if near else value
    for factor in draw.sample(_FACTORS, 2):
        moved = _moved(domain, value, factor)
        if moved != value:
            return moved
    return _drawn(domain, draw)  # 0 times anything is 0


def _moved(domain: Domain, value: float, factor: float) -> float:
    if isinstance(domain, Integer):
        low, high = domain.integer
        step = max(round(abs(value) * abs(factor - 1)), 1)
        return min(max(int(value) + (step if factor > 1 else -step), low), high)
    bounds = domain.log_uniform if isinstance(domain, LogUniform) else domain.uniform  # type: ignore[union-attr]  # no choice
    return min(max(value * factor, bounds[0]), bounds[1])


def begin_generation(run: RunDirectory, recipe: Recipe, donor: RunDirectory, checkpoint: str) -> None:
    """Make `run` one that resumes from a copy of the donor's checkpoint, under `recipe`.

    What stands there is of an attempt that ended half-way, and goes.

    Raises:
        IntegrityError: the donor's checkpoint is damaged; nothing is left of the new run.
    """
    run.storage.delete_dir("")
    run.save_recipe(recipe)
    source = CheckpointStore(donor).folder(checkpoint)
    target = CheckpointStore(run).folder(checkpoint)
    files = source.files()
    for file in sorted(files, key=lambda name: (name.startswith("manifest-"), name)):  # complete only with its manifests
        if target.is_local:
            target.filesystem.create_dir(target.path(file).rpartition("/")[0], recursive=True)
        target.filesystem.copy_file(source.path(file), target.path(file))  # on S3 the server copies
    problems = CheckpointStore(run).problems(checkpoint)
    if problems:
        run.storage.delete_dir("")
        raise IntegrityError(f"{donor.uri}: checkpoint {checkpoint}: {problems[0]}")
    kept = donor.summary().model_dump(
        include={"workload", "goal", "goal_direction", "flops_per_sample", "step", "epoch", "samples"}
    )
    run.write_summary(Summary(status="paused", **kept))  # its default would say that its workers were lost
