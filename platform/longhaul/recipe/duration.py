"""Lengths of training in steps, epochs or samples, as people write them in a recipe."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_serializer, model_validator
from pydantic.annotated_handlers import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

Unit = Literal["steps", "epochs", "samples"]
_PATTERN = re.compile(r"\s*(?P<amount>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*(?P<unit>step|epoch|sample)s?\s*")

_FORMS = "write '5 epochs', '200 steps' or '12800 samples'; a bare number means epochs"


class Duration(BaseModel):
    """A length such as `5 epochs`, `200 steps` or `12800 samples`; a bare number means epochs.

    Attributes:
        amount: how many, not negative; epochs may be fractions.
        unit: what is counted. A step is one optimizer step on one global batch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    amount: float
    unit: Unit

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float | str | dict):
            raise ValueError(f"{value!r} is no duration; {_FORMS}")
        if isinstance(value, int | float):
            value = f"{value} epochs"
        if isinstance(value, str):
            match = _PATTERN.fullmatch(value)
            if match is None:
                raise ValueError(f"{value!r} is no duration; {_FORMS}")
            value = {"amount": float(match["amount"]), "unit": f"{match['unit']}s"}
        return value

    @model_validator(mode="after")
    def _check(self) -> Duration:
        if not math.isfinite(self.amount) or self.amount < 0:
            raise ValueError("must be finite and not negative")
        if self.unit != "epochs" and not self.amount.is_integer():
            raise ValueError(f"{self.unit} must be whole")
        return self

    @model_serializer
    def _write(self) -> str:
        return f"{repr(self.amount).removesuffix('.0')} {self.unit}"

    def __str__(self) -> str:
        return self._write()

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """What a recipe may hold here: a number of epochs, or a text."""
        text = {"type": "string", "pattern": f"^{_PATTERN.pattern.replace('?P<amount>', '?:').replace('?P<unit>', '?:')}$"}
        return {"description": _FORMS, "anyOf": [text, {"type": "number", "minimum": 0}], "examples": ["5 epochs", "200 steps"]}

    def samples(self, *, global_batch: int, epoch_samples: int) -> int:
        """This length in samples, for an epoch of `epoch_samples` and steps of `global_batch` samples; rounded up."""
        per_unit = {"steps": global_batch, "epochs": epoch_samples, "samples": 1}[self.unit]
        return math.ceil(Fraction(str(self.amount)) * per_unit)  # of the decimal as written: 0.07 epochs of 100 are 7, not 8

    def steps(self, *, global_batch: int, epoch_samples: int) -> int:
        """This length in optimizer steps: the first step at which at least `samples` have been read."""
        return -(-self.samples(global_batch=global_batch, epoch_samples=epoch_samples) // global_batch)


def duration(text: str) -> Duration:
    """`Duration` of a text, for defaults: `duration("1 epoch")`."""
    return Duration.model_validate(text)
