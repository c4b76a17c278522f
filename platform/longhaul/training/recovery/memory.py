"""Running out of memory: found on the first minute where it can be, and answered with half the micro-batch.

A rank that runs out of memory in the middle of a step leaves the others waiting in a collective, from which nobody can be
called back. So it ends with an error of its own kind; the group restarts from the newest checkpoint with half the micro-batch
and twice the accumulation, and the optimizer sees the same global batch.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
from collections.abc import Callable, Generator, Iterator

import torch

from longhaul.data.loader import BatchPlan, StepBatch
from longhaul.errors import IntegrityError, LonghaulError, UserError
from longhaul.recipe import Recipe
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.engine.engine import Engine, LossFunction
from longhaul.training.ranks import Ranks

log = logging.getLogger(__name__)

EVENT = "micro_batch"


class MemoryExhaustedError(LonghaulError):
    """A rank ran out of memory at `micro_batch` samples a pass."""

    def __init__(self, micro_batch: int, detail: str) -> None:
        super().__init__(f"out of memory with micro-batches of {micro_batch}: {detail}")
        self.micro_batch = micro_batch

    def __reduce__(self) -> tuple[type[MemoryExhaustedError], tuple[int, str]]:
        """Exceptions pickle their formatted message; this one has two arguments."""
        return type(self), (self.micro_batch, str(self).split(": ", 1)[1])


@contextlib.contextmanager
def memory_guard(micro_batch: int) -> Iterator[None]:
    """Turn torch's ways of saying "no memory left" into `MemoryExhaustedError`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryExhaustedError(micro_batch, _first_line(error)) from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # the CPU's allocator has no class of its own
            raise
        raise MemoryExhaustedError(micro_batch, _first_line(error)) from None


def preflight(
    build: Callable[[], Engine], stream: Generator[StepBatch, None, None], loss: LossFunction, micro_batch: int
) -> None:
    """One whole step (forward, backward, collectives, optimizer state) on an engine that is thrown away.

    Raises:
        MemoryExhaustedError: it does not fit.
    """
    with memory_guard(micro_batch):
        build().step(next(stream).micro_batches, loss, 0.0)
    stream.close()
    give_back()


def give_back() -> None:
    """Let go of what nobody uses any more; call it outside of any `except`, whose exception would hold the frames."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def plan_batches(run: RunDirectory, recipe: Recipe, ranks: Ranks) -> BatchPlan:
    """How these workers cut the global batch: as the recipe says, or finer after an out-of-memory.

    Raises:
        UserError: the batch cannot be shared by so many workers.
    """
    training = recipe.training
    try:
        BatchPlan.derive(training.global_batch, training.micro_batch, ranks.rank, ranks.world_size)
    except ValueError as error:
        raise UserError(f"training.global_batch: {error}", "Change scaling.workers or the global batch") from None
    micro_batch = ranks.from_first(_decided(run, training.micro_batch) if ranks.is_first else 0)
    return BatchPlan.derive(training.global_batch, micro_batch, ranks.rank, ranks.world_size)


def halve(run: RunDirectory, error: MemoryExhaustedError, *, segment: int, step: int) -> None:
    """Let the next start of the workers take half the micro-batch that did not fit; of one sample, there is no half."""
    if error.micro_batch > 1:
        smaller = error.micro_batch // 2
        text = f"micro-batch {error.micro_batch} -> {smaller}, accumulation to match: {error}"
        run.add_event(EVENT, text, segment=segment, step=step, micro_batch=smaller)


def _decided(run: RunDirectory, wanted: int) -> int:
    """The largest micro-batch to use: what the recipe wants, or what the last out-of-memory left."""
    try:
        rows = [row for row in run.events().to_pylist() if row["kind"] == EVENT]
    except IntegrityError as error:  # a damaged record is no reason not to train; at worst memory runs out once more
        log.warning("the events cannot be read: %s", error)
        rows = []
    return min([wanted, *(int(json.loads(row["detail"])["micro_batch"]) for row in rows)])


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
