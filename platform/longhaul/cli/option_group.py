"""Options of a verb that belong together, as one dataclass: Typer reads a verb's signature and knows no groups."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, get_type_hints


def with_options(group: type[Any], parameter: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator for a verb: the fields of a dataclass become options, and the verb gets them as one object.

    Args:
        group: a dataclass whose fields have types as a verb's parameters do, `Annotated[..., typer.Option(...)]`, and defaults.
        parameter: the verb's keyword parameter that takes the object.
    """
    types = get_type_hints(group, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    options = [inspect.Parameter(one.name, keyword, default=one.default, annotation=types[one.name]) for one in fields(group)]

    def decorated(verb: Callable[..., None]) -> Callable[..., None]:
        @wraps(verb)
        def packed(**given: Any) -> None:
            chosen = group(**{option.name: given.pop(option.name) for option in options})
            verb(**given, **{parameter: chosen})

        signature = inspect.signature(verb, eval_str=True)
        own = [one for one in signature.parameters.values() if one.name != parameter]
        packed.__dict__["__signature__"] = signature.replace(parameters=[*own, *options])
        return packed

    return decorated
