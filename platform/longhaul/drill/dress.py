"""What a drill puts around a workload inside each worker: notes of every sample seen, and the faults that come from within."""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ray
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from longhaul.data.order import SampleOrder
from longhaul.data.samples import Batch, SampleSet, Splits
from longhaul.drill.board import Board, Note, Plan, Worker
from longhaul.drill.faults import IN_WORKER, Fault
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.course import Course
from longhaul.training.ranks import Ranks
from longhaul.workloads import Goal, Signature, Workload
from longhaul.workloads.base import Precision

FILE_LIMIT = 256 << 10
"""Bytes; what a file may have where a full disk can only be imitated: more than a log, less than a checkpoint."""


def dress(folder: str, workload: Workload, ranks: Ranks, run: RunDirectory) -> Workload:
    """`training.on_ray.ray_worker.Dress` of a drill whose board is `folder`."""
    board, recipe, train = Board(Path(folder)), run.recipe(), workload.splits.train
    plan = board.plan()
    attempt: int = ranks.from_first(time.time_ns())
    node = ray.get_runtime_context().get_node_id()
    worker = Worker(attempt=attempt, rank=ranks.rank, world_size=ranks.world_size, pid=os.getpid(), node=node)
    order = SampleOrder(len(train), train.fingerprint, recipe.seed)
    # Leave room behind the end: samples that are stepped over make a run use later positions.
    end = Course(recipe, len(train)).total_samples + len(train)
    positions = {order.sample_seed(position): position for position in range(end)}
    poisoned = frozenset(fault.sample for fault in plan.faults if fault.sample is not None)
    splits = DressedSplits(DressedSamples(train, positions, poisoned), workload.splits.validation, workload.splits.test)
    return DressedWorkload(workload, splits, Watch(board, plan, worker, recipe.training.global_batch // ranks.world_size))


@dataclass(frozen=True)
class DressedSamples:
    """Training samples that know their position in the global order; poisoned ones are all NaN.

    Attributes:
        positions: by the seed of the augmentation, which no two positions share.
    """

    inner: SampleSet
    positions: dict[int, int]
    poisoned: frozenset[int]

    @property
    def ids(self) -> Sequence[str]:
        return self.inner.ids

    @property
    def fingerprint(self) -> str:
        return self.inner.fingerprint

    def __len__(self) -> int:
        return len(self.inner)

    def read(self, index: int, seed: int | None) -> dict[str, Tensor]:
        """The sample, with its `position`; -1 outside training."""
        sample = self.inner.read(index, seed)
        if index in self.poisoned:
            sample = {name: torch.full_like(v, torch.nan) if v.is_floating_point() else v for name, v in sample.items()}
        return {**sample, "position": torch.tensor(-1 if seed is None else self.positions[seed])}


@dataclass(frozen=True)
class DressedSplits:
    """Only training is dressed."""

    train: SampleSet
    validation: SampleSet
    test: SampleSet


@dataclass
class Watch:
    """This process's notes and faults."""

    board: Board
    plan: Plan
    worker: Worker
    share: int
    """Samples of a step on one rank."""
    _turn: int = 0
    _next: int = 0
    _mine: list[Fault] = field(default_factory=list)
    _disk: Fault | None = None

    def __post_init__(self) -> None:
        within = [fault for fault in self.plan.faults if fault.kind in IN_WORKER]
        self._mine = [fault for fault in within if self._whom(fault) in (None, self.worker.rank)]
        path = self.board.notes / f"{self.worker.attempt}-{self.worker.rank:05d}.jsonl"
        self._file = path.open("a", buffering=1)  # a line at a time: a SIGKILL leaves whole lines
        self._file.write(self.worker.model_dump_json() + "\n")

    def seen(self, batch: Batch) -> None:
        """Note the samples of a forward pass, before it."""
        positions, indices = batch["position"].tolist(), batch["index"].tolist()
        self._turn += positions[0] < self._next
        self._next = positions[0] + len(positions) * self.worker.world_size  # the least that comes when nothing goes back
        pace_s = self.plan.slow_s if self.board.slow else self.plan.pace_s
        pause_s = pace_s * len(indices) / self.share
        note = Note(time_s=time.time(), pause_s=pause_s, turn=self._turn, positions=positions, indices=indices)
        self._file.write(note.model_dump_json() + "\n")
        time.sleep(pause_s)

    def due(self, batch: Batch) -> Iterator[Fault]:
        """The faults that strike this forward pass; each once."""
        for fault in list(self._mine):
            ready = self.board.has("armed", fault)
            if fault.kind == "poisoned-sample":  # it does not wait for its turn, it is in the data
                ready = fault.sample in batch["index"].tolist()
            if ready:
                self._mine.remove(fault)
                if self.board.set("fired", fault):
                    yield fault

    def _whom(self, fault: Fault) -> int | None:
        """The rank that a fault strikes; None for whichever comes to it."""
        if fault.kind == "poisoned-sample":
            return None
        if fault.kind == "full-disk" and self.plan.full_disk is None:
            return 0  # the limit on files lets the small ones of other ranks pass
        return fault.rank % self.worker.world_size

    def fill_disk(self, fault: Fault) -> None:
        """From now on there is no space for temporary files."""
        self._disk = fault
        if self.plan.full_disk is not None:
            tempfile.tempdir = self.plan.full_disk
        else:
            _limit_files(FILE_LIMIT)

    def empty_disk(self) -> None:
        """There is space again, if the fault has been lifted."""
        if self._disk is not None and self.board.has("lifted", self._disk):
            self._disk = None
            tempfile.tempdir = None
            _limit_files(resource.RLIM_INFINITY)


@dataclass(frozen=True)
class DressedWorkload:
    """The workload with a watch on its training loss; fulfils `workloads.Workload`."""

    inner: Workload
    splits: Splits
    watch: Watch

    @property
    def goal(self) -> Goal:
        return self.inner.goal

    @property
    def metric_names(self) -> tuple[str, ...]:
        return self.inner.metric_names

    def build_model(self, *, initial: bool = True) -> nn.Module:
        """As the inner one."""
        return self.inner.build_model(initial=initial)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The inner loss; in training, noted and struck by what is due."""
        if not model.training:  # the search for offending samples
            return self.inner.loss(model, batch)
        self.watch.seen(batch)
        self.watch.empty_disk()
        due = {fault.kind: fault for fault in self.watch.due(batch)}
        if "hung-rank" in due:
            while True:
                time.sleep(60)
        if "out-of-memory" in due:
            raise torch.OutOfMemoryError("out of memory, said the drill")
        if "full-disk" in due:
            self.watch.fill_disk(due["full-disk"])
        value = self.inner.loss(model, batch)
        if "nan-gradient" in due:
            value.register_hook(lambda gradient: gradient * torch.nan)
        return value

    def metrics(self) -> MetricCollection:
        """As the inner one."""
        return self.inner.metrics()

    def measure(self, model: nn.Module, batch: Batch, metrics: MetricCollection) -> None:
        """As the inner one."""
        self.inner.measure(model, batch, metrics)

    def pictures(self, model: nn.Module) -> dict[str, bytes]:
        """As the inner one."""
        return self.inner.pictures(model)

    def exportable(self, model: nn.Module, precision: Precision) -> nn.Module:
        """As the inner one."""
        return self.inner.exportable(model, precision)

    def signature(self) -> Signature:
        """As the inner one."""
        return self.inner.signature()


def _limit_files(size: int) -> None:
    """The largest file that this process may write: beyond it `write` fails (EFBIG, as ENOSPC does on a full disk)."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size if size != resource.RLIM_INFINITY else hard, hard))
