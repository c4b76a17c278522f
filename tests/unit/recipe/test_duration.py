"""Durations as people write them."""

from __future__ import annotations

import pydantic
import pytest

from longhaul.recipe import Duration
from longhaul.recipe.duration import duration


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (3, "3 epochs"),
        (0.5, "0.5 epochs"),
        ("1 epoch", "1 epochs"),
        ("200steps", "200 steps"),
        (" 12800 samples ", "12800 samples"),
        ("1e3 samples", "1000 samples"),
        (".25 epochs", "0.25 epochs"),
        ("1234567.5 epochs", "1234567.5 epochs"),
        ({"amount": 4, "unit": "steps"}, "4 steps"),
    ],
)
def test_forms(given: object, written: str) -> None:
    value = Duration.model_validate(given)
    assert str(value) == value.model_dump() == written
    assert Duration.model_validate(written) == value


@pytest.mark.parametrize(
    "given", ["", "epochs", "3 days", "1.2.3 steps", ".", "-1 step", "nan epochs", "0.5 steps", True, None, [1]]
)
def test_refused(given: object) -> None:
    with pytest.raises(pydantic.ValidationError):
        Duration.model_validate(given)


def test_decimals_mean_what_is_written() -> None:
    assert 0.07 * 100 > 7  # the trap: in binary the product lies above
    assert duration("0.07 epochs").samples(global_batch=8, epoch_samples=100) == 7
    assert duration("69.18 epochs").samples(global_batch=8, epoch_samples=273_100) == 18_893_058


def test_a_step_counts_when_its_samples_are_read() -> None:
    one = duration("1 epoch")
    assert one.steps(global_batch=32, epoch_samples=96) == 3
    assert one.steps(global_batch=32, epoch_samples=97) == 4
    assert duration("0 epochs").steps(global_batch=32, epoch_samples=97) == 0
