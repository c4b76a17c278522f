"""The networks of the resolution grid, and the family of any network."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from longhaul.models.families import FAMILIES, family_of
from longhaul.models.zoo import build_image_model
from longhaul.recipe.networks import ModelSection

ALL = [name for names in FAMILIES.values() for name in names]
GRID = [
    *("vgg11", "vgg13", "vgg16"),
    *("resnet18", "resnet34", "resnet50", "resnet101"),
    *("mobilenetv2_100", "mobilenetv2_075", "mobilenetv3_small_100", "mobilenetv3_large_100"),
    *("simple_cnn", "tiny_cnn"),
]


def test_there_are_sixteen_in_five_families_and_the_grids_thirteen_are_among_them() -> None:
    assert len(GRID) == 13
    assert set(GRID) <= set(ALL)
    assert len(ALL) == len(set(ALL)) == 16
    assert list(FAMILIES) == ["vgg", "resnet", "mobilenet_v2", "mobilenet_v3", "cnn"]


@pytest.mark.parametrize("name", ALL)
def test_each_is_built_and_answers_from_32_pixels_up(name: str) -> None:
    """On the meta device: shapes are real, numbers are not."""
    with torch.device("meta"):
        model = build_image_model(ModelSection(name=name), 10, 224)
        for resolution in (32, 64, 224):
            assert model(torch.zeros(2, 3, resolution, resolution)).shape == (2, 10)


def test_each_familys_networks_stand_from_small_to_large() -> None:
    with torch.device("meta"):
        for names in FAMILIES.values():
            sizes = [sum(p.numel() for p in build_image_model(ModelSection(name=n), 10, 32).parameters()) for n in names]
            assert sizes == sorted(sizes)


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "mobilenetv2_075", "mobilenetv3_small_100", "tiny_cnn"])
def test_gradients_at_32_pixels_are_finite_and_reach_the_first_layer(name: str) -> None:
    """A VGG's maps are 1 x 1 there: timm spreads them over the 7 x 7 of its head."""
    torch.manual_seed(0)
    model = build_image_model(ModelSection(name=name), 10, 32)
    functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    gradients = [weight.grad for weight in model.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    assert gradients[0].any()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_network_is_of_the_family_that_lists_it_with_any_weights(family: str) -> None:
    for name in FAMILIES[family]:
        assert family_of(name) == family_of(f"{name}.some_weights") == family


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("convnext_large", "convnext"),
        ("vit_base_patch16_224", "vision_transformer"),
        ("efficientnet_b3", "efficientnet"),
        ("resnext50_32x4d", "resnet"),
        ("vgg11_bn", "vgg"),
        ("mobilenetv2_140", "mobilenet_v2"),
        ("tf_mobilenetv3_large_100", "mobilenet_v3"),
        ("mobilenetv4_conv_small", "mobilenet_v4"),
        ("fasterrcnn_resnet18_fpn", "faster_rcnn"),
        ("zzqqxx", "other"),
        ("hf_hub:somebody/something", "other"),
        ("", "other"),
    ],
)
def test_any_other_name_has_a_family_too(name: str, family: str) -> None:
    assert family_of(name) == family
