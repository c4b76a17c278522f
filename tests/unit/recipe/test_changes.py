"""Changes to the recipe of a run that has begun."""

from __future__ import annotations

import re

import pytest

from longhaul.errors import UserError
from longhaul.recipe import Recipe, diff, parse
from longhaul.recipe.changes import changed, covers, fields

TEXT = """
name: tiny
model: {name: resnet10t}
data: {kind: digits}
training: {epochs: 2, ema_decay: 0.9}
"""


@pytest.fixture
def recipe() -> Recipe:
    return parse(TEXT, overrides=["training.global_batch=64"])


def test_a_change_applies_to_the_saved_recipe(recipe: Recipe) -> None:
    """What --set made of it the first time stays."""
    after = changed(recipe, ["training.epochs=220", "training.optimizer.lr=0.01"], source="saved")
    assert [change.field for change in diff(recipe, after)] == ["training.epochs", "training.optimizer.lr"]
    assert (after.training.epochs, after.training.global_batch) == (220, 64)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("seed=3", "initial weights"),
        ("model.name=resnet18", "weights"),
        ("model.drop_rate=0.1", "weights"),
        ("data={kind: imagefolder, root: /data, resolution: 32}", "position in the data"),
        ("data.root=/data", "position in the data"),
        ("data.resolution=16", "same task"),
        ("data.excluded=[a.png]", "have been seen"),
        ("training.engine=zero2", "optimizer's state"),
        ("training.optimizer.name=sgd", "optimizer's state"),
        ("training.optimizer.weight_decay=0.1", "optimizer's state"),
        ("training.ema_decay=null", "moving average"),
        ("training.precision=fp16", "loss scale"),
    ],
)
def test_what_checkpoints_depend_on_cannot_change(recipe: Recipe, change: str, why: str) -> None:
    with pytest.raises(UserError, match=rf"cannot change in a run that has checkpoints; .*{why}.*\. Train a new run") as caught:
        changed(recipe, [change], source="saved")
    assert str(caught.value).startswith(f"--change {change.partition('=')[0]}")
    assert changed(recipe, [change], source="saved", begun=False) != recipe  # nothing depends on it yet


@pytest.mark.parametrize(
    "change", ["training.ema_decay=0.99", "training.micro_batch=8", "data.loader_workers=0", "scaling.workers=2"]
)
def test_what_checkpoints_do_not_depend_on_can(recipe: Recipe, change: str) -> None:
    assert len(diff(recipe, changed(recipe, [change], source="saved"))) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("training.epochs", "--change 'training.epochs': not of the form field.path=value"),
        ("training.epoch=3", "saved with --change: training.epoch: unknown field; did you mean 'epochs'?"),
        ("training.steps=3", "give exactly one of epochs, steps and samples"),
    ],
)
def test_a_change_that_makes_no_recipe_is_refused(recipe: Recipe, change: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        changed(recipe, [change], source="saved")


def test_a_named_section_covers_its_fields_and_nothing_beside_them() -> None:
    named = fields(["training.schedule={name: cosine}", "training.epochs=3"])
    assert covers(named, "training.schedule.warmup")
    assert covers(named, "training.epochs")
    assert not covers(named, "training.epochs_more")
    assert not covers(named, "training")
