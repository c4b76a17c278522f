"""`longhaul recipe`: look at recipes before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

app = typer.Typer(help="Show, compare and document recipes (the YAML files that describe runs).", no_args_is_help=True)

RecipePath = Annotated[
    Path, typer.Argument(help="A recipe, such as jobs/recipes/classification/digits.yaml.", show_default=False)
]
Overrides = Annotated[
    list[str],
    typer.Option("--set", "-s", metavar="FIELD=VALUE", help="Override a field, e.g. --set training.epochs=3; repeatable."),
]
RunName = Annotated[
    str | None, typer.Option("--name", help="Name of the run; an existing name resumes that run. Default: recipe and time.")
]


@app.command()
def show(path: RecipePath, overrides: Overrides = []) -> None:  # noqa: B006 - typer copies it
    """Print the resolved recipe: every field, defaults included, after validation.

    Example: longhaul recipe show jobs/recipes/classification/digits.yaml --set training.engine=zero2
    """
    from longhaul.recipe import dump, load
    from longhaul.recipe.phases import resolve

    recipe = load(path, overrides)
    console, text = Console(), dump(recipe)
    if console.is_terminal:
        console.print(Syntax(text, "yaml", background_color="default", word_wrap=True))
    else:  # into a file or a pipe: exactly the recipe, which can be read again
        console.file.write(text)
    beside = Console(stderr=True)
    if recipe.phases:
        table = Table("phase", "resolution", "share", "length", "begins with", "gate", title="phases", title_justify="left")
        for place, (phase, its) in enumerate(zip(recipe.phases, resolve(recipe), strict=True)):
            begins = f"the {phase.carry} weights before" if place else "fresh weights"
            length, gate = str(its.training.length), str(phase.gate) if phase.gate else "none"
            table.add_row(phase.name, str(its.data.resolution), f"{its.data.share:g}", length, begins, gate)
        beside.print(table)
    beside.print(f"[dim]sha256 {recipe.sha256}[/]")


@app.command()
def diff(before: RecipePath, after: RecipePath) -> None:
    """Print the fields in which two recipes differ, defaults resolved.

    Example: longhaul recipe diff runs/a/recipe.yaml runs/b/recipe.yaml
    """
    from longhaul.recipe import diff as differences
    from longhaul.recipe import load

    rows = differences(load(before), load(after))
    if not rows:
        Console().print("no difference")
        return
    table = Table("field", before.name, after.name, title=f"{before} -> {after}")
    for row in rows:
        table.add_row(row.field, str(row.before), str(row.after))
    Console().print(table)


@app.command()
def schema(field: Annotated[str, typer.Argument(help="Only what is below this path, e.g. training.")] = "") -> None:
    """Print what a recipe may hold, as JSON Schema: fields, types, defaults, meaning.

    Example: longhaul recipe schema training.schedule
    """
    from longhaul.recipe import field_schema

    Console().print_json(json.dumps(field_schema(field)))


@app.command()
def models(pattern: Annotated[str, typer.Argument(help="Only names that contain this text, e.g. convnext.")] = "") -> None:
    """Print the names that the field model.name takes.

    Example: longhaul recipe models resnet
    """
    from longhaul.errors import UserError
    from longhaul.models.zoo import model_names

    names = model_names(pattern)
    if not names:
        raise UserError(f"no model's name contains {pattern!r}", "Run `longhaul recipe models` for all of them")
    Console(soft_wrap=True, highlight=False).print("\n".join(names))
