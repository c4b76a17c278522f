"""The layer that Grad-CAM looks at, family by family; the networks are on torch's meta device: shapes without numbers."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from longhaul.errors import UserError
from longhaul.insight.explain.layers import grad_cam_layer, tapped
from longhaul.models.zoo import build_image_model
from longhaul.recipe.networks import ModelSection

FAMILIES = [
    ("vgg11", 224, "features", 7),
    ("vgg11", 384, "features", 12),  # its head has a map of 6 x 6 here, which is no map of features
    ("vgg11", 32, "features.14", 4),  # the last convolution before the map shrinks to 2 x 2
    ("resnet18", 224, "layer4", 7),
    ("resnet50", 64, "layer3", 4),  # layer4 is 2 x 2, and the map inside its first block has a way around it
    ("mobilenetv2_100", 224, "bn2", 7),
    ("mobilenetv3_large_100", 224, "blocks", 7),  # what follows is 1 x 1
    ("efficientnet_b0", 224, "bn2", 7),
    ("convnext_tiny", 224, "stages", 7),
    ("densenet121", 224, "features", 7),
]


@pytest.mark.parametrize(("name", "resolution", "layer", "side"), FAMILIES)
def test_the_last_map_of_features_that_everything_passes_is_found(name: str, resolution: int, layer: str, side: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10)
    found = grad_cam_layer(model, resolution)
    assert (found.name, found.layout, found.side) == (layer, "channels first", side)


@pytest.mark.parametrize(("name", "side"), [("simple_cnn", 8), ("tiny_cnn", 16)])
def test_our_own_networks_have_one(name: str, side: int) -> None:
    found = grad_cam_layer(build_image_model(ModelSection(name=name), 10, 64), 64)
    assert (found.name, found.side) == ("features", side)


@pytest.mark.parametrize(
    ("name", "layer", "side", "prefix"),
    [
        ("vit_tiny_patch16_224", "blocks.11.norm1", 14, 1),
        ("deit_tiny_distilled_patch16_224", "blocks.11.norm1", 14, 2),
        ("mixer_s32_224", "blocks.7.norm1", 7, 0),
        ("xcit_nano_12_p16_224", "blocks.11.norm1", 14, 0),  # its class token comes in after these blocks
        ("cait_xxs24_224", "blocks.23.norm1", 14, 0),
    ],
)
def test_tokens_become_a_grid_without_those_of_the_class(name: str, layer: str, side: int, prefix: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10)
    found = grad_cam_layer(model, 224)
    assert (found.name, found.layout, found.side, found.prefix) == (layer, "tokens", side, prefix)


def test_tokens_that_make_no_grid_are_refused() -> None:
    with torch.device("meta"):
        model = timm.create_model("pit_ti_224", num_classes=10)
    with pytest.raises(UserError, match="no norm1 in a last block"):
        grad_cam_layer(model, 224)
    with torch.device("meta"):
        model = timm.create_model("mixer_s32_224", num_classes=10)
    model.num_prefix_tokens = 3
    with pytest.raises(UserError, match=r"49 tokens in blocks.7.norm1, which make no square grid"):
        grad_cam_layer(model, 224)


def test_a_layer_that_is_named_is_taken_at_every_resolution_that_it_suits() -> None:
    with torch.device("meta"):
        model = timm.create_model("resnet18", num_classes=10)
    assert [grad_cam_layer(model, side).name for side in (32, 64, 128)] == ["layer2", "layer3", "layer4"]
    found = [grad_cam_layer(model, side, named="layer2") for side in (32, 64, 128)]
    assert [(one.name, one.side) for one in found] == [("layer2", 4), ("layer2", 8), ("layer2", 16)]
    with pytest.raises(UserError, match=r"at 32 px has no map of 4 x 4 cells or more in layer3 "):
        grad_cam_layer(model, 32, named="layer3")
    with pytest.raises(UserError, match=r"in layer2\.0\.conv1 that its whole answer passes"):
        grad_cam_layer(model, 64, named="layer2.0.conv1")


def test_maps_with_channels_last_are_found_and_turned() -> None:
    with torch.device("meta"):
        model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=10)
    found = grad_cam_layer(model, 224)
    assert (found.name, found.layout, found.side) == ("norm", "channels last", 7)
    seen: list[tuple[int, ...]] = []
    with tapped(found) as tap:
        tap.register_forward_hook(lambda _module, _inputs, output: seen.append(tuple(output.shape)))
        model(torch.zeros(2, 3, 224, 224, device="meta"))
    assert seen == [(2, 768, 7, 7)]


def test_a_branch_beside_the_way_of_the_answer_is_not_taken() -> None:
    class _Branched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.branch, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

        def forward(self, images: Tensor) -> Tensor:
            trunk = self.trunk(images)
            answer: Tensor = self.head((trunk + self.branch(trunk)).mean(dim=(2, 3)))
            return answer

    assert grad_cam_layer(_Branched(), 8).name == "trunk"


def test_what_passes_the_tap_is_what_the_network_computes_without_it() -> None:
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **options).eval()
    images = torch.randn(2, 3, 32, 32)
    want = model(images)
    with tapped(grad_cam_layer(model, 32)):
        torch.testing.assert_close(model(images), want)
