"""What a cell is predicted to cost: operations against torch's own count of a training step, memory by its formula."""

from __future__ import annotations

from pathlib import Path

import pytest

from longhaul.errors import UserError
from longhaul.models.counting import Count
from longhaul.recipe import Recipe, parse
from longhaul.recipe.schema import OptimizerSection
from longhaul.training.record.flops import flops_per_sample
from longhaul.tuning.sizing.cost import CostBook, training_cost
from longhaul.tuning.sizing.memory_estimate import memory_gb
from longhaul.tuning.sizing.micro_batch import fit_micro_batch, largest_share
from longhaul.workloads import build

COUNT = Count(parameters=10**6, buffers=0, size_mb=4.0, flops=1e9, activation_bytes=10**8, feature_width=None)


def _recipe(root: Path, model: str = "resnet10t", resolution: int = 32, training: str = "epochs: 2", more: str = "") -> Recipe:
    text = f"""
name: cell
model: {{name: {model}}}
data: {{kind: imagefolder, root: {root}, resolution: {resolution}}}
training: {{{training}, global_batch: 8, micro_batch: 8}}
{more}
"""
    return parse(text, source="test")


@pytest.mark.parametrize("model", ["resnet10t", "tiny_cnn"])
def test_operations_are_those_of_torch_s_count_of_a_training_step(few_digits: Path, model: str) -> None:
    recipe = _recipe(few_digits, model)
    a_sample = flops_per_sample(build(recipe))
    assert a_sample is not None
    forward = a_sample / 3
    cost = training_cost(recipe)  # 40 training samples twice, 24 validation samples twice, 24 test samples once
    assert cost.counted
    # The first layer's input wants no gradient, for which torch's count of a step is smaller.
    assert cost.operations == pytest.approx(a_sample * 80 + forward * 72, rel=0.12)


def test_the_same_book_gives_the_same_costs_at_every_resolution_and_builds_each_network_once(few_digits: Path) -> None:
    book = CostBook()
    for model in ("tiny_cnn", "vit_tiny_patch16_224"):
        for side in (32, 64):
            recipe = _recipe(few_digits, model, side)
            shared, alone = book.cost(recipe), training_cost(recipe)
            assert shared.operations == alone.operations
            assert shared.memory_gb == pytest.approx(alone.memory_gb, rel=0.01)
            assert shared.parameters == alone.parameters
    assert len(book._networks) == 2


def test_phases_add_up_and_shares_of_the_data_count(few_digits: Path) -> None:
    phases = "phases: [{name: few, set: {data.share: 0.5, training.epochs: 4}}, {name: all, set: {data.resolution: 64}}]"
    whole = training_cost(_recipe(few_digits, "tiny_cnn", more=phases)).operations
    few = training_cost(_recipe(few_digits, "tiny_cnn", training="samples: 80")).operations
    large = training_cost(_recipe(few_digits, "tiny_cnn", 64)).operations
    a_pass = large / (3 * 80 + 72)
    # 80 samples at 32 px with four validations and no test, then all at 64 px.
    assert whole == pytest.approx(few * (3 * 80 + 4 * 24) / (3 * 80 + 72) + a_pass * (3 * 80 + 72), rel=0.01)


def test_a_larger_picture_costs_in_proportion_to_its_area(few_digits: Path) -> None:
    small, large = (training_cost(_recipe(few_digits, "tiny_cnn", side)).operations for side in (32, 64))
    assert large / small == pytest.approx(4, rel=0.01)


def test_memory_is_the_formula_s() -> None:
    adam, sgd = OptimizerSection(), OptimizerSection(name="sgd", momentum=0.0)
    assert memory_gb(COUNT, 8, adam, "fp32") == pytest.approx(0.8 + 0.016 + 1.0)
    assert memory_gb(COUNT, 8, sgd, "fp32") == pytest.approx(0.8 + 0.008 + 1.0)
    assert memory_gb(COUNT, 8, adam, "bf16", average=True) == pytest.approx(0.8 + 0.022 + 0.5)


def test_the_micro_batch_is_the_largest_equal_part_that_fits_and_the_recipe_s_own_is_no_bound(few_digits: Path) -> None:
    recipe = _recipe(few_digits)
    assert fit_micro_batch(recipe, COUNT, 16.0) == 8
    assert fit_micro_batch(recipe, COUNT, 1.65) == 4  # five would fit, and do not cut eight
    raised = recipe.model_copy(update={"training": recipe.training.model_copy(update={"micro_batch": 1})})
    assert fit_micro_batch(raised, COUNT, 16.0) == 8
    of_two = recipe.model_copy(update={"scaling": recipe.scaling.model_copy(update={"workers": 2})})
    assert fit_micro_batch(of_two, COUNT, 16.0) == largest_share(of_two) == 4


def test_a_gpu_on_which_not_one_sample_fits_is_refused_with_both_sizes(few_digits: Path) -> None:
    with pytest.raises(UserError, match=r"resnet10t at 32 px: one sample needs 1\.05 GB of 1"):
        fit_micro_batch(_recipe(few_digits), COUNT, 1.0)


def test_an_unknown_network_or_a_resolution_that_it_cannot_take_is_refused(few_digits: Path) -> None:
    with pytest.raises(UserError, match="unknown model"):
        training_cost(_recipe(few_digits, "resnet999"))
    book = CostBook()
    book.cost(_recipe(few_digits, "vit_tiny_patch16_224", 32))
    with pytest.raises(UserError, match=r"data.resolution 8"):
        book.cost(_recipe(few_digits, "vit_tiny_patch16_224", 8))
