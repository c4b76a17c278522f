"""What holds for every duration and every recipe."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

from hypothesis import example, given, settings
from hypothesis import strategies as st

from longhaul.recipe import Duration, diff, dump, parse

settings.register_profile("calm", deadline=None)  # a slow machine is no counterexample
settings.load_profile("calm")

UNITS = st.sampled_from(["steps", "epochs", "samples"])
BATCHES = st.integers(1, 1 << 20)
EPOCHS = st.integers(1, 1 << 40)


@st.composite
def durations(draw: st.DrawFn) -> tuple[Duration, Fraction]:
    """A duration read from a text, and its amount exactly as the text says."""
    unit = draw(UNITS)
    places = draw(st.integers(0, 6)) if unit == "epochs" else 0
    amount = Decimal(draw(st.integers(0, 10**9))).scaleb(-places)
    return Duration.model_validate(f"{amount:f} {unit}"), Fraction(amount)


@given(durations(), BATCHES, EPOCHS)
@example((Duration.model_validate("987654.321 epochs"), Fraction("987654.321")), 1, 1099511627001)  # past a float's 53 bits
def test_conversion_is_exact_rounded_up(read: tuple[Duration, Fraction], global_batch: int, epoch_samples: int) -> None:
    value, amount = read
    exact = amount * {"steps": global_batch, "epochs": epoch_samples, "samples": 1}[value.unit]
    samples = value.samples(global_batch=global_batch, epoch_samples=epoch_samples)
    steps = value.steps(global_batch=global_batch, epoch_samples=epoch_samples)
    assert samples == math.ceil(exact)
    assert (steps - 1) * global_batch < exact <= steps * global_batch or (steps == 0 and exact == 0)


@given(st.integers(0, 10**9), BATCHES, EPOCHS)
def test_steps_are_steps(count: int, global_batch: int, epoch_samples: int) -> None:
    assert Duration(amount=count, unit="steps").steps(global_batch=global_batch, epoch_samples=epoch_samples) == count


@given(durations())
def test_a_duration_reads_back_as_itself(read: tuple[Duration, Fraction]) -> None:
    value, _ = read
    assert Duration.model_validate(str(value)) == value


@given(st.floats(0, 1e300))
def test_any_finite_amount_of_epochs_reads_back(amount: float) -> None:
    value = Duration(amount=amount, unit="epochs")
    assert Duration.model_validate(str(value)) == value


SECTIONS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31 - 1),
        "training.global_batch": st.sampled_from([64, 128, 256]),
        "training.optimizer.lr": st.floats(1e-12, 10),
        "training.clip_norm": st.none() | st.floats(1e-6, 1e6),
        "validation.every": st.integers(1, 10**7).map(lambda n: f"{n} steps") | st.floats(0.001, 1e4),
        "scaling.workers": st.sampled_from([1, 2, 4, 8]),
        "tracking.trackers": st.lists(st.sampled_from(["wandb", "mlflow", "tensorboard"])),
        "tracking.project": st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1),
    }
)


@given(SECTIONS, SECTIONS)
def test_a_resolved_recipe_reads_back_as_itself_and_differs_where_it_differs(
    one: dict[str, object], other: dict[str, object]
) -> None:
    recipes = [_recipe(fields) for fields in (one, other)]
    for recipe in recipes:
        again = parse(dump(recipe))
        assert again == recipe
        assert again.sha256 == recipe.sha256
    changed = {change.field for change in diff(*recipes)}
    assert changed == {field for field in one if _resolved(recipes[0], field) != _resolved(recipes[1], field)}
    assert bool(changed) == (recipes[0].sha256 != recipes[1].sha256)


def _recipe(fields: dict[str, object]):
    import json

    base = "name: p\nmodel: {name: m}\ndata: {kind: digits}\ntraining: {epochs: 1}"
    return parse(base, overrides=[f"{name}={json.dumps(value)}" for name, value in fields.items()])


def _resolved(recipe, path: str) -> object:
    node = recipe.model_dump(mode="json")
    for key in path.split("."):
        node = node[key]
    return node
