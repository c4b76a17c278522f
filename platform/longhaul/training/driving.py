"""Around whatever trains a run: one driver at a time, and how it began and ended in the run's record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

from longhaul.errors import LonghaulError
from longhaul.recipe import Recipe
from longhaul.resilience.flight import flights
from longhaul.resilience.incidents import record_incident
from longhaul.resilience.lease import Lease, lease
from longhaul.resilience.ledger import mark
from longhaul.resilience.requests import answered
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.record.flops import flops_per_sample
from longhaul.workloads import build


@contextlib.contextmanager
def driving(recipe: Recipe, run: RunDirectory, owner: str | None = None) -> Iterator[Lease]:
    """Hold the run while the block trains it; on behalf of `owner` (`lease`).

    Raises:
        UserError: another driver holds the run.
        Exception: what the block raises, written down as the run's end; of one of Ray's, what it was raised from.
    """
    with lease(run, owner) as held:
        run.save_recipe(recipe)
        answered(run)  # whatever was asked of the run before: training it is asked for now
        _note_a_dead_driver(run)
        mark(run, "began", segment=run.summary().segment)
        _count_operations(recipe, run)
        try:
            yield held
        except Exception as error:
            cause = error if isinstance(error, LonghaulError) else error.__cause__ or error
            _close(run, "failed", (str(cause).splitlines() or [type(cause).__name__])[0])
            raise
        except (KeyboardInterrupt, SystemExit):
            _close(run, "stopped", "interrupted")
            raise
        summary = run.summary()
        mark(run, "paused" if summary.status == "paused" else "ended", segment=summary.segment, step=summary.step)


def _count_operations(recipe: Recipe, run: RunDirectory) -> None:
    """Once a run; of one with phases, which differ, none is told."""
    summary = run.summary()
    if summary.flops_per_sample is None and not recipe.phases:
        run.write_summary(summary.model_copy(update={"flops_per_sample": flops_per_sample(build(recipe))}))


def _note_a_dead_driver(run: RunDirectory) -> None:
    """A run that calls itself running, and whose lease nobody holds: its last driver ended without a word."""
    summary = run.summary()
    if summary.status == "running" and summary.segment:
        first = next(iter(flights(run)), None)
        what = "the driver ended without a word; the run was started again"
        record_incident(run, "driver", what, segment=summary.segment, first=first, retried=True)


def _close(run: RunDirectory, status: Literal["failed", "stopped"], reason: str) -> None:
    run.write_summary(run.summary().model_copy(update={"status": status, "error": reason}))
    run.add_event(status, reason, segment=run.summary().segment, step=run.summary().step)
    mark(run, "ended", segment=run.summary().segment)
