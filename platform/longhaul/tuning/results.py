"""`table.parquet`: one row a cell, for whoever wants to go on with pandas, DuckDB or a spreadsheet."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from longhaul.models.families import family_of
from longhaul.recipe import parse
from longhaul.resilience.sweep_directory import SweepDirectory, SweepState


def results_table(directory: SweepDirectory, state: SweepState) -> pa.Table:
    """One row a cell, in the sweep's order.

    Columns: `key`, `run` (address of its run directory), `family`, `model`, `resolution`, one for each coordinate by its dotted
    name, `standing`, `reason`, `score` (the goal's best on the validation split), `epochs`, `steps`, `seconds`, `cost` (predicted
    operations of the whole training), and one for each result on the test split, such as `test/top1`. A coordinate whose
    values are not all of one plain kind is JSON text.
    """
    rows = [_row(directory, state, place) for place in range(len(state.cells))]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _row(directory: SweepDirectory, state: SweepState, place: int) -> dict[str, Any]:
    record = state.cells[place]
    recipe = parse(record.recipe, source=record.key)
    return {
        "key": record.key,
        "run": directory.run(record.key).uri,
        "family": family_of(recipe.model.name),
        "model": recipe.model.name,
        "resolution": recipe.data.resolution,
        **record.coordinates,
        "standing": record.standing,
        "reason": record.reason,
        "score": record.score,
        "epochs": record.scores[-1][0] if record.scores else 0.0,
        "steps": record.steps,
        "seconds": record.seconds,
        "cost": record.cost,
        **record.results,
    }


def _column(values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    plain = kinds <= {int, float} or (len(kinds) == 1 and kinds <= {str, bool})
    if plain:
        return pa.array([float(value) if kinds == {int, float} and value is not None else value for value in values])
    return pa.array([None if value is None else json.dumps(value) for value in values])
