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

RecipePath = Annotated[Path, typer.Argument(help="A recipe, such as jobs/recipes/classification/digits.yaml.", show_default=False)]
Overrides = Annotated[
    list[str], typer.Option("--set", "-s", metavar="FIELD=VALUE", help="Override a field, e.g. --set training.epochs=3; repeatable.")
]


@app.command()
def show(path: RecipePath, overrides: Overrides = []) -> None:  # noqa: B006 - typer copies it
    """Print the resolved recipe: every field, defaults included, after validation.

    Example: longhaul recipe show jobs/recipes/classification/digits.yaml --set training.engine=zero2
    """
    from longhaul.recipe import dump, load

    recipe = load(path, overrides)
    Console().print(Syntax(dump(recipe), "yaml", background_color="default"))
    Console(stderr=True).print(f"[dim]sha256 {recipe.sha256}[/]")


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
def schema(field: Annotated[str, typer.Argument(help="Only the section below this path, e.g. training.")] = "") -> None:
    """Print what a recipe may hold, as JSON Schema: fields, types, defaults, meaning."""
    from longhaul.errors import UserError
    from longhaul.recipe import Recipe

    document = Recipe.model_json_schema()
    node = document
    for key in filter(None, field.split(".")):
        node = node.get("properties", {}).get(key)
        if node is None:
            raise UserError(f"recipe field {field!r}: unknown", "Run `longhaul recipe schema` for all of them")
        if "$ref" in node:
            node = document["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    Console().print_json(json.dumps(node))
