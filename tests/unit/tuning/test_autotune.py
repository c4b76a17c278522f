"""The auto-tune rule at every one of its boundaries, and how what is given wins over it."""

from __future__ import annotations

import pytest

from longhaul.errors import UserError
from longhaul.tuning.autotune import autotune


@pytest.mark.parametrize(
    ("samples", "epochs"),
    [(1, 100), (49, 100), (50, 75), (199, 75), (200, 50), (499, 50), (500, 30), (1999, 30), (2000, 20), (10**6, 20)],
)
def test_epochs(samples: int, epochs: int) -> None:
    assert autotune(samples).epochs == epochs


@pytest.mark.parametrize(
    ("samples", "folds"), [(1, 0), (29, 0), (30, 3), (99, 3), (100, 5), (299, 5), (300, 7), (999, 7), (1000, 10), (10**6, 10)]
)
def test_folds(samples: int, folds: int) -> None:
    assert autotune(samples).folds == folds


@pytest.mark.parametrize(("samples", "batch"), [(1, 4), (99, 4), (100, 8), (499, 8), (500, 16), (10**6, 16)])
def test_batch(samples: int, batch: int) -> None:
    assert autotune(samples).batch == batch


@pytest.mark.parametrize(("samples", "rate"), [(1, 1e-4), (99, 1e-4), (100, 3e-4), (10**6, 3e-4)])
def test_learning_rate(samples: int, rate: float) -> None:
    assert autotune(samples).lr == rate


@pytest.mark.parametrize(
    ("samples", "patience"),
    [(1, 5), (99, 5), (100, 5), (119, 5), (120, 6), (139, 6), (140, 7), (299, 14), (300, 15), (319, 15), (320, 15), (10**6, 15)],
)
def test_patience(samples: int, patience: int) -> None:
    assert autotune(samples).patience == patience


def test_no_samples_are_refused() -> None:
    with pytest.raises(UserError, match="0 labelled samples"):
        autotune(0)


def test_what_is_given_wins_field_by_field() -> None:
    plain = autotune(240).overrides([], micro_batch=4)
    assert "training.epochs=50" in plain
    assert "data.folds=5" in plain
    given = autotune(240).overrides(["training.epochs=7", "data.folds = 2"], micro_batch=4)
    assert given[-2:] == ["training.epochs=7", "data.folds = 2"]
    assert not [text for text in given[:-2] if text.startswith(("training.epochs", "data.folds", "training.steps"))]
    assert "training.global_batch=8" in given


def test_a_length_in_steps_takes_the_place_of_epochs() -> None:
    assert not [text for text in autotune(240).overrides(["training.steps=9"], 4) if text.startswith("training.epochs")]
    assert "training.steps=null" in autotune(240).overrides([], 4)  # the recipe's own length gives way to the rule


def test_the_micro_batch_shrinks_with_the_batch() -> None:
    assert "training.micro_batch=4" in autotune(40).overrides([], micro_batch=8)
    assert not [text for text in autotune(240).overrides([], micro_batch=8) if "micro_batch" in text]
