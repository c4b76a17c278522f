"""The report's HTML: templates beside this file, in which everything that is put in is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

PAGE, CELL = "page.html.j2", "cell.html.j2"


def render(template: str, context: Mapping[str, Any]) -> bytes:
    """A template with its values put in, as UTF-8.

    Args:
        template: `PAGE` or `CELL`.
        context: the values by name; one that the template wants and that is missing is an error.
    """
    environment = Environment(loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(template).render(context).encode()
