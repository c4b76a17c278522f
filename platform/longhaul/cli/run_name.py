"""The run that a verb is given by name; a sweep's name is taken for one often enough to say where its runs are."""

from __future__ import annotations

import shlex

from longhaul.errors import UserError
from longhaul.insight.runs import resolve_run
from longhaul.resilience.run_directory import RunDirectory
from longhaul.resilience.sweep_directory import CELLS, SweepDirectory
from longhaul.storage import Storage


def named_run(run: str, storage: str) -> RunDirectory:
    """`insight.runs.resolve_run`, which a sweep is told apart from.

    Raises:
        UserError: there is no such run, or it is a sweep.
    """
    try:
        return resolve_run(run, storage)
    except UserError:
        folder, _, name = run.rstrip("/").rpartition("/")
        root = folder or storage.rstrip("/")
        if not SweepDirectory(root, Storage.open(f"{root}/{name}")).exists:
            raise
    fix = f"`longhaul sweep status {name} --storage {shlex.quote(root)} --runs` names its runs; give one of them"
    raise UserError(f"{name} is a sweep, not a run", f"{fix}, and --storage {shlex.quote(f'{root}/{CELLS}')}")
