"""What a network costs on paper: against published figures, closed forms, and a real forward pass."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from longhaul.errors import UserError
from longhaul.models.counting import count, count_image_model
from longhaul.models.zoo import build_image_model
from longhaul.recipe.networks import ModelSection

# Parameters and GMACs at 224 px, 1000 classes, as torchvision documents its models (`ResNet50_Weights.IMAGENET1K_V1.meta` ...).
PUBLISHED = {
    "resnet50": (25_557_032, 4.09),
    "vgg16": (138_357_544, 15.47),
    "mobilenetv2_100": (3_504_872, 0.30),
    "convnext_large": (197_767_336, 34.36),
    "vit_large_patch16_224": (304_326_632, 61.55),
    # timm's own figures; a parameter, the class token, is an input of their blocks
    "cait_xxs24_224": (11_956_264, 2.53),
    "pit_ti_224": (4_847_272, 0.71),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_exact_and_operations_within_two_percent_of_what_is_published(name: str) -> None:
    counted = count_image_model(ModelSection(name=name), 1000, 224)
    parameters, gmacs = PUBLISHED[name]
    assert counted.parameters == parameters
    assert counted.macs / 1e9 == pytest.approx(gmacs, rel=0.02)
    assert counted.flops == 2 * counted.macs


def test_a_built_network_never_holds_a_weight() -> None:
    built: list[nn.Module] = []

    def build() -> nn.Module:
        built.append(build_image_model(ModelSection(name="vit_large_patch16_224"), 10, 224))
        return built[0]

    count(build, (3, 224, 224))
    assert {tensor.device.type for tensor in (*built[0].parameters(), *built[0].buffers())} == {"meta"}


def small_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def test_a_small_network_has_the_operations_of_the_closed_form() -> None:
    counted = count(small_net, (3, 12, 20))
    first = 2 * 3 * 3 * 3 * 8 * 12 * 20
    second = 2 * 3 * 3 * (8 // 2) * 16 * 6 * 10  # each output sees the channels of its group alone
    assert counted.flops == first + second + 2 * 16 * 5
    assert counted.parameters == 216 + 16 + (4 * 9 * 16 + 16) + (16 * 5 + 5)
    assert counted.buffers == 8 + 8 + 1
    assert counted.size_mb == (4 * counted.parameters + 4 * 16 + 8) / 2**20
    assert counted.feature_width == 16


def test_operations_are_those_of_inference_where_a_norm_needs_no_second_image() -> None:
    counted = count(lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Conv2d(3, 7, 1)), (3, 8, 8))
    assert counted.macs == 21


def test_operations_grow_with_the_batch_and_nothing_else() -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small_net().eval()(torch.rand(7, 3, 12, 20))
    assert counter.get_total_flops() == 7 * count(small_net, (3, 12, 20)).flops


class Attention(nn.Module):
    """Images (N, T, 3 * D) as queries, keys and values of `heads` heads."""

    def __init__(self, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = (self.scale * x).reshape(n, tokens, 3, self.heads, width // 3 // self.heads).permute(2, 0, 3, 1, 4)
        return functional.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)


def test_attention_is_counted_and_its_matrix_is_not_kept() -> None:
    tokens, heads, width = 512, 4, 32
    counted = count(lambda: Attention(heads), (tokens, 3 * width))
    assert counted.flops == 2 * (2 * tokens * tokens * width)
    matrix = 4 * heads * tokens * tokens
    assert counted.activation_bytes < matrix < count(lambda: Attention(heads, 0.1), (tokens, 3 * width)).activation_bytes


def test_what_backward_needs_is_the_closed_form_of_a_small_network() -> None:
    """The convolution keeps its input, the ReLU its output; the linear layer's input is that same output."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16 * 16, 5))

    assert count(build, (3, 16, 16)).activation_bytes == 4 * (3 + 8) * 16 * 16


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "mobilenetv3_small_050"])
def test_what_backward_needs_is_what_a_real_pass_on_a_cpu_keeps(name: str) -> None:
    model = timm.create_model(name, num_classes=10).train()
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}

    def kept(samples: int) -> int:
        found: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            answer = model(torch.rand(samples, 3, 160, 160))
        del answer
        return sum(tensor.untyped_storage().nbytes() for place, tensor in found.items() if place not in own)

    assert count(model, (3, 160, 160)).activation_bytes == pytest.approx((kept(5) - kept(3)) / 2, rel=0.01)


def test_a_network_that_was_given_stays_as_it_is() -> None:
    model = small_net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    by_module, by_builder = count(model, (3, 12, 20)), count(small_net, (3, 12, 20))
    assert by_module == by_builder
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_which_parameters_are_learnt_stays_as_it_was_where_the_network_is_built_without_data() -> None:
    built: list[nn.Sequential] = []

    def build() -> nn.Module:
        model = small_net()
        model[0].weight.requires_grad_(requires_grad=False)  # type: ignore[call-arg]
        built.append(model)
        return model

    count(build, (3, 12, 20))
    assert [parameter.requires_grad for parameter in built[0].parameters()] == [False, True, True, True, True, True, True]


def test_a_tensor_that_two_layers_share_is_counted_once() -> None:
    def build() -> nn.Module:
        first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        second.weight = first.weight
        return nn.Sequential(first, second)

    assert count(build, (4,)).parameters == 16
    assert count(build(), (4,)).parameters == 16


def test_a_file_size_leaves_out_what_is_not_saved() -> None:
    class WithTable(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 2)
            self.register_buffer("table", torch.zeros(1000), persistent=False)

    counted = count(WithTable, (4,))
    assert (counted.buffers, counted.size_mb) == (0, 4 * 10 / 2**20)


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("convnext_tiny", 768), ("mobilenetv3_large_100", 960)])
def test_the_width_is_what_the_body_gives_to_the_head(name: str, width: int) -> None:
    assert count_image_model(ModelSection(name=name), 10, 64).feature_width == width


def test_a_network_without_a_linear_layer_has_no_width() -> None:
    assert count(lambda: nn.Conv2d(3, 4, 3), (3, 8, 8)).feature_width is None


def test_a_shape_that_does_not_fit_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"cannot be counted at 4 x 12 x 20 \(") as caught:
        count(small_net, (4, 12, 20))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="resolution 16: model 'vgg16' cannot work at it"):
        count_image_model(ModelSection(name="vgg16"), 10, 16)
