"""A network taken apart, against the real one."""

from __future__ import annotations

import pytest
import torch

from longhaul.errors import UserError
from longhaul.insight.sweep_report.layers import anatomy
from longhaul.models.zoo import build_image_model
from longhaul.recipe.networks import ModelSection


@pytest.mark.parametrize("name", ["tiny_cnn", "resnet10t", "mobilenetv3_small_050"])
def test_layers_are_those_of_the_real_network(name: str) -> None:
    taken = anatomy(ModelSection(name=name), 10, 32)
    real = build_image_model(ModelSection(name=name), 10, 32).eval()
    assert sum(layer.parameters for layer in taken.layers) == sum(p.numel() for p in real.parameters())
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in taken.layers:
        real.get_submodule(layer.name).register_forward_hook(
            lambda _m, _i, output, name=layer.name: shapes.__setitem__(name, tuple(output.shape[1:]))
        )
    with torch.no_grad():
        real(torch.zeros(1, 3, 32, 32))
    assert {layer.name: layer.shape for layer in taken.layers if layer.shape is not None} == shapes
    assert f"parameters            {taken.count.parameters:,}" in taken.text()


def test_parameters_outside_of_any_layer_are_listed_too() -> None:
    section = ModelSection(name="test_vit")
    taken = anatomy(section, 10, 32)
    real = build_image_model(section, 10, 32)
    assert sum(layer.parameters for layer in taken.layers) == sum(p.numel() for p in real.parameters())


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(UserError, match="unknown model"):
        anatomy(ModelSection(name="resnot18"), 10, 32)
