"""The base of every part of a recipe, and the short types that parts share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _number(value: Any) -> Any:
    """Refuse `yes` and `true`, which Python (and so pydantic) would take for 1."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {str(value).lower()}")
    return value


Number = BeforeValidator(_number)  # the last of a number's annotations, so that its bounds stay visible in the schema
Positive = Annotated[int, Field(gt=0), Number]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False), Number]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), Number]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), Number]


class Section(BaseModel):
    """Frozen, closed to unknown fields; an attribute's docstring is its description in `longhaul recipe schema`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)
