"""From a recipe to both runs of a drill: the user has the last word, the twin never has the poisoned sample."""

from __future__ import annotations

from pathlib import Path

import pytest

from longhaul.drill.faults import KINDS
from longhaul.drill.preparation import prepare
from longhaul.errors import UserError
from longhaul.recipe import diff

DIGITS = Path(__file__).parents[3] / "jobs" / "recipes" / "classification" / "digits.yaml"

pytestmark = pytest.mark.usefixtures("digits_root")


def test_the_twin_differs_in_the_poisoned_sample_alone() -> None:
    prepared = prepare(DIGITS, [], 20, 1)
    assert [change.field for change in diff(prepared.recipe, prepared.twin)] == ["data.excluded"]
    assert len(prepared.twin.data.excluded) == 1
    poisoned = next(fault.sample for fault in prepared.faults if fault.kind == "poisoned-sample")
    assert prepared.order.excluded == {poisoned}


def test_the_users_overrides_come_after_the_drills() -> None:
    prepared = prepare(DIGITS, ["training.steps=400", "resilience.hang_s=30"], 2, 1, ["kill-worker"])
    assert prepared.steps == 400
    assert prepared.recipe.resilience.hang_s == 30
    assert {fault.kind for fault in prepared.faults} == {"kill-worker"}


@pytest.mark.parametrize(
    ("overrides", "kinds", "problem"),
    [
        ([], ["earthquake"], f"'earthquake': not known.*{KINDS[0]}"),
        (["scaling.workers=[1, 2]"], [], "of the same size"),
        (["training.steps=30"], [], "20 faults do not fit into 30 steps"),
    ],
)
def test_what_cannot_be_drilled_is_refused(overrides: list[str], kinds: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        prepare(DIGITS, overrides, 20, 1, kinds)
