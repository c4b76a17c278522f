"""`longhaul token`: who may ask a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

app = typer.Typer(help="Make, list and revoke the tokens that a server asks for.", no_args_is_help=True)

TokenPath = Annotated[Path, typer.Option("--file", help="The server's token file.")]
_DEFAULT = Path("tokens.json")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose it is, for the access log.", show_default=False)],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What it allows, predict or admin; repeatable. Default: predict.", show_default=False),
    ] = None,
    file: TokenPath = _DEFAULT,
) -> None:
    """Make a token and print it, this once: the file holds only its SHA-256.

    A server that runs with this file takes the token at once.

    Example: longhaul token new field-laptop --file tokens.json

    Example: longhaul token new operator --scope predict --scope admin
    """
    from longhaul.serving.http.tokens import TokenFile, new_token

    secret, entry = new_token(name, scope or ["predict"])
    TokenFile.change(file, lambda known: known.with_entry(entry), create=True)
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"token {escape(name)} ({', '.join(entry.scopes)}) is in {escape(str(file))}; it is shown this once:"
    )
    typer.echo(secret)


@app.command()
def ls(file: TokenPath = _DEFAULT) -> None:
    """List the tokens that are valid.

    Example: longhaul token ls --file tokens.json
    """
    from longhaul.serving.http.tokens import TokenFile

    table = Table("name", "scopes", "made", title=escape(str(file)))
    for entry in TokenFile.read(file).tokens:
        table.add_row(escape(entry.name), ", ".join(entry.scopes), f"{entry.created:%Y-%m-%d %H:%M} UTC")
    Console().print(table if table.row_count else f"no tokens in {escape(str(file))}; `longhaul token new NAME` makes one")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The token's name.", show_default=False)],
    file: TokenPath = _DEFAULT,
) -> None:
    """Take a token away; a server that runs with this file refuses it at once.

    Example: longhaul token revoke field-laptop --file tokens.json
    """
    from longhaul.serving.http.tokens import TokenFile

    TokenFile.change(file, lambda known: known.without(name))
    Console(highlight=False, soft_wrap=True).print(f"token {escape(name)} is no longer in {escape(str(file))}")
