"""Operations are counted as in the literature: forward, and twice that backward, but for the first layer's input."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from longhaul.data.samples import Batch
from longhaul.recipe import parse
from longhaul.training.record.flops import flops_per_sample
from longhaul.workloads import build
from longhaul.workloads.classification import Classification

RECIPE = "{name: r, model: {name: MODEL}, data: {kind: digits, resolution: SIDE}, training: {steps: 9}}"


def recipe(model: str, side: int) -> str:
    return RECIPE.replace("MODEL", model).replace("SIDE", str(side))


def test_resnet50_has_the_operations_that_its_paper_gives() -> None:
    """4.09e9 multiply-adds forward at 224 px (K. He et al., 2016, with stride in the 3 x 3, as timm has it)."""
    stem = 2 * 64 * 3 * 7 * 7 * 112 * 112  # of the first layer nobody wants the gradient of its input
    assert flops_per_sample(build(parse(recipe("resnet50", 224)))) == pytest.approx(3 * 2 * 4.089e9 - stem, rel=0.002)


def test_a_linear_layer_is_counted_exactly() -> None:
    class Linear(Classification):
        def build_model(self, *, initial: bool = True) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 20), nn.Linear(20, 10))

    first, second = 2 * 768 * 20, 2 * 20 * 10
    assert flops_per_sample(Linear(parse(recipe("test_resnet", 16)))) == 2 * first + 3 * second


def test_a_model_that_cannot_be_counted_costs_a_figure_and_no_run() -> None:
    class Stubborn(Classification):
        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            return super().loss(model, batch) * float(batch["image"].sum())  # data that the meta device does not have

    assert flops_per_sample(Stubborn(parse(recipe("test_resnet", 16)))) is None
