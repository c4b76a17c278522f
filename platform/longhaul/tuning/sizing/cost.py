"""What a cell will cost: operations of its whole training, and memory; from shapes alone, before anything is trained."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from longhaul.errors import UserError
from longhaul.models.counting import Count, count
from longhaul.recipe import Recipe
from longhaul.recipe.phases import resolve
from longhaul.training.course import Course
from longhaul.tuning.sizing.memory_estimate import memory_gb
from longhaul.tuning.sizing.micro_batch import largest_share
from longhaul.workloads import Workload, build

log = logging.getLogger(__name__)

_BACKWARD = 2  # a layer's backward is two products (for its weights and its input) where its forward is one
_NO_SAMPLES = {"resolution", "augment", "loader_workers"}  # fields of the data that leave the number of samples as it is


@dataclass(frozen=True)
class Cost:
    """What training a cell takes.

    Attributes:
        operations: floating-point operations of all forward and backward passes, a multiplication and an addition as two.
            With early stopping: of the whole length, which it may not need.
        counted: False where the network cannot be counted and resolution^2 x parameters stands in for its forward pass.
        memory_gb: of one worker's GPU, in 10^9 bytes (`memory_estimate`); None where the network cannot be counted.
        parameters: numbers that are learnt.
    """

    operations: float
    counted: bool
    memory_gb: float | None
    parameters: int


@dataclass(frozen=True)
class _Sizes:
    train: int
    validation: int
    test: int
    classes: int


@dataclass(frozen=True)
class _Network:
    """Without data (on the meta device), and what it counts at `side` pixels."""

    model: nn.Module
    side: int
    count: Count


@dataclass
class CostBook:
    """Costs of many cells: each data set is looked at once, each network built and counted in full once.

    At other resolutions its operations are counted again, and its activations taken to grow with the area, unless `count` has
    counted it there.
    """

    _networks: dict[str, _Network | None] = field(default_factory=dict)
    _counts: dict[tuple[str, int], Count] = field(default_factory=dict)
    _sizes: dict[str, _Sizes] = field(default_factory=dict)

    def cost(self, recipe: Recipe) -> Cost:
        """See `Cost`; phases add up, memory is the largest of them.

        Raises:
            UserError: data or model of the recipe are not there, or not in order.
        """
        phases = resolve(recipe)
        operations, memory, counted, parameters = 0.0, 0.0, True, 0
        for number, phase in enumerate(phases):
            sizes = self._sizes_of(phase)
            found = self._count_of(phase, sizes.classes)
            if found is None:
                counted = False
                parameters = _parameters(build(phase))
                forward = float(parameters * phase.data.resolution**2)
            else:
                forward, parameters = found.flops, found.parameters
                memory = max(memory, _memory_of(phase, found))
            course = Course(phase, sizes.train)
            validations = -(-course.total_samples // max(course.samples(phase.validation.every), 1))
            measured = validations * sizes.validation + (sizes.test if number == len(phases) - 1 else 0)
            operations += forward * ((1 + _BACKWARD) * course.total_samples + measured)
        return Cost(operations, counted, memory if counted else None, parameters)

    def count(self, recipe: Recipe) -> Count | None:
        """The recipe's network, counted in full at its resolution whatever else has been counted; None where it cannot be.

        Raises:
            UserError: data or model of the recipe are not there, or not in order.
        """
        key = (_network_key(recipe, self._sizes_of(recipe).classes), recipe.data.resolution)
        if key not in self._counts:
            network = _counted(recipe)
            if network is None:
                return None
            self._counts[key] = network.count
        return self._counts[key]

    def _sizes_of(self, recipe: Recipe) -> _Sizes:
        key = json.dumps([recipe.workload.kind, recipe.seed, recipe.data.model_dump(mode="json", exclude=_NO_SAMPLES)])
        if key not in self._sizes:
            workload = build(recipe)
            splits = workload.splits
            classes = len(workload.signature().classes)
            self._sizes[key] = _Sizes(len(splits.train), len(splits.validation), len(splits.test), classes)
        return self._sizes[key]

    def _count_of(self, recipe: Recipe, classes: int) -> Count | None:
        key, side = _network_key(recipe, classes), recipe.data.resolution
        if (key, side) in self._counts:
            return self._counts[key, side]
        if key not in self._networks:
            self._networks[key] = _counted(recipe)
        known = self._networks[key]
        if known is None or known.side == side:
            return None if known is None else known.count
        try:
            flops = _forward_flops(known.model, side)
        except (AssertionError, RuntimeError, ValueError):  # built for one resolution, as transformers are
            other = _counted(recipe)
            return None if other is None else other.count
        scaled = round(known.count.activation_bytes * (side / known.side) ** 2)
        return known.count.model_copy(update={"flops": flops, "activation_bytes": scaled})


def training_cost(recipe: Recipe, book: CostBook | None = None) -> Cost:
    """What training `recipe` takes; for many cells, share one `book`.

    Raises:
        UserError: data or model of the recipe are not there, or not in order.
    """
    return (book or CostBook()).cost(recipe)


def _network_key(recipe: Recipe, classes: int) -> str:
    section = recipe.model.model_dump(mode="json", exclude={"pretrained", "weights"})
    return json.dumps([recipe.workload.kind, section, classes])


def _counted(recipe: Recipe) -> _Network | None:
    """The recipe's network, built and counted at its resolution; None for one that needs data to find its way: a detector."""
    if recipe.workload.kind == "detection":
        return None
    side, workload = recipe.data.resolution, build(recipe)
    with torch.device("meta"):
        model = workload.build_model(initial=False)
    try:
        return _Network(model, side, count(model, (3, side, side)))
    except UserError as error:
        log.info("%s; resolution^2 x parameters stands in for its operations", error.problem)
        return None


def _forward_flops(model: nn.Module, side: int) -> float:
    """Operations of one picture's forward pass on the meta device."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, 3, side, side))
    return float(counter.get_total_flops())


def _memory_of(recipe: Recipe, counted: Count) -> float:
    training = recipe.training
    at_once = min(training.micro_batch, largest_share(recipe))
    return memory_gb(counted, at_once, training.optimizer, training.precision, average=training.ema_decay is not None)


def _parameters(workload: Workload) -> int:
    with torch.device("meta"):
        model = workload.build_model(initial=False)
    return sum(parameter.numel() for parameter in model.parameters())
