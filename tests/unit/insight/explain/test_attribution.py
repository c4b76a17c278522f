"""Heat maps against closed forms, autograd and the grad-cam package."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import timm
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from longhaul.errors import UserError
from longhaul.insight.explain.attribution import Integration, explain, probabilities
from longhaul.insight.explain.layers import grad_cam_layer

CLASSES, COUNT = 5, 3
TARGETS = torch.tensor([1, 0, 4])


def _images(side: int) -> Tensor:
    return torch.randn(COUNT, 3, side, side, generator=torch.Generator().manual_seed(3))


class _SmallVgg(nn.Module):
    """Convolutions with in-place activations and pooling, then a linear head."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 8), (8, 16), (16, 24)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(24 * 4 * 4, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.classifier(self.features(images).flatten(1))
        return answer


def _resnet() -> nn.Module:
    return timm.create_model("resnet10t", num_classes=CLASSES)


def _vit() -> nn.Module:
    options = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **options)


def _tokens_to_grid(tokens: Tensor) -> Tensor:
    return tokens[:, 1:].reshape(len(tokens), 8, 8, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("build", "side", "layer", "reshape"),
    [
        (_resnet, 128, "layer4", None),
        (_SmallVgg, 32, "features", None),
        (_vit, 32, "blocks.2.norm1", _tokens_to_grid),
    ],
)
def test_grad_cam_is_that_of_the_grad_cam_package(
    build: Callable[[], nn.Module], side: int, layer: str, reshape: Callable[[Tensor], Tensor] | None
) -> None:
    torch.manual_seed(1)
    model, images = build().eval(), _images(side)
    ours = explain(model, images, TARGETS, "gradcam")
    assert ours.layer == layer
    assert grad_cam_layer(model, side).name == layer
    asked = [ClassifierOutputTarget(int(target)) for target in TARGETS]
    with GradCAM(model, [model.get_submodule(layer)], reshape_transform=reshape) as package:
        scaled = package(input_tensor=images, targets=asked)
        seen, gradients = (
            parts[0].numpy() for parts in (package.activations_and_grads.activations, package.activations_and_grads.gradients)
        )
        coarse = np.maximum(package.get_cam_image(images, model.get_submodule(layer), asked, seen, gradients), 0)
    theirs = np.stack([cv2.resize(one, (side, side)) for one in coarse])
    assert np.any(theirs > 0, axis=(1, 2)).sum() >= 2  # a map may be empty: nothing speaks for the class
    np.testing.assert_allclose(ours.values, theirs, rtol=1e-4, atol=1e-6 * theirs.max())
    for one, other in zip(ours.values, scaled, strict=True):  # what the package shows: every map scaled to 0..1
        np.testing.assert_allclose((one - one.min()) / max(np.ptp(one), 1e-12), other, atol=1e-3)


def test_integrated_gradients_of_a_linear_model_are_its_weights_times_the_way_from_the_baseline() -> None:
    torch.manual_seed(2)
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES)), _images(8)
    for baseline in (0.0, -1.5):
        maps = explain(model, images, TARGETS, "integrated_gradients", Integration(baseline=baseline))
        weights = model[1].weight.detach()[TARGETS].view(COUNT, 3, 8, 8)
        torch.testing.assert_close(
            torch.from_numpy(maps.values), (weights * (images - baseline)).sum(dim=1), atol=1e-5, rtol=1e-5
        )
        assert maps.complete is not None
        assert maps.complete.all()


class _Quadratic(nn.Module):
    """Logit c is the sum of a_c x²."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(CLASSES, 3, 8, 8) + 0.5)

    def forward(self, images: Tensor) -> Tensor:
        return torch.einsum("nijk,cijk->nc", images**2, self.scale)


def test_integrated_gradients_of_a_quadratic_are_its_closed_form() -> None:
    torch.manual_seed(2)
    model, images, baseline = _Quadratic(), _images(8), 0.7
    maps = explain(model, images, TARGETS, "integrated_gradients", Integration(baseline=baseline))
    want = (model.scale.detach()[TARGETS] * (images**2 - baseline**2)).sum(dim=1)
    torch.testing.assert_close(torch.from_numpy(maps.values), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("build", "side"), [(_SmallVgg, 32), (_vit, 32)])
def test_a_map_of_integrated_gradients_sums_up_to_the_rise_of_the_logit_within_one_percent(
    build: Callable[[], nn.Module], side: int
) -> None:
    torch.manual_seed(4)
    model, images = build().eval(), _images(side)
    maps = explain(model, images, TARGETS, "integrated_gradients")
    with torch.no_grad():
        rise = (model(images) - model(torch.zeros_like(images)))[range(COUNT), TARGETS].numpy()
    assert maps.error is not None
    assert maps.complete is not None
    assert maps.complete.all()
    np.testing.assert_array_less(np.abs(maps.values.sum(axis=(1, 2)) - rise), 0.01 * np.abs(rise))
    np.testing.assert_allclose(np.abs(maps.values.sum(axis=(1, 2)) - rise) / np.abs(rise), maps.error, atol=1e-4)


def test_a_map_that_misses_completeness_says_so_and_took_the_most_steps() -> None:
    class _Step(nn.Module):
        """A jump of the logit that no gradient sees."""

        def forward(self, images: Tensor) -> Tensor:
            total = images.sum(dim=(1, 2, 3))
            return torch.stack([total, total + 100 * (total > 0)], dim=1)

    images = torch.ones(2, 3, 4, 4)
    how = Integration(first_steps=8, most_steps=32)
    maps = explain(_Step(), images, torch.tensor([0, 1]), "integrated_gradients", how)
    assert maps.complete is not None
    assert maps.steps is not None
    assert maps.error is not None
    assert maps.complete.tolist() == [True, False]
    assert maps.steps.tolist() == [8, 32]  # only the one that missed was taken again
    assert maps.error[1] == pytest.approx(100 / 148)


def test_saliency_is_the_largest_absolute_gradient_of_the_channels() -> None:
    torch.manual_seed(5)
    model, images = _resnet().eval(), _images(32)
    maps = explain(model, images, TARGETS, "saliency")
    watched = images.clone().requires_grad_()
    model(watched)[range(COUNT), TARGETS].sum().backward()
    assert watched.grad is not None
    np.testing.assert_allclose(maps.values, watched.grad.abs().amax(dim=1).numpy(), rtol=1e-4, atol=1e-7)


def test_images_in_several_passes_give_the_maps_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    model, images = _SmallVgg().eval(), _images(32)
    whole = [explain(model, images, TARGETS, method).values for method in ("gradcam", "integrated_gradients", "saliency")]
    monkeypatch.setattr("longhaul.insight.explain.attribution.PIXELS_AT_ONCE", 2 * 32 * 32)
    parts = [explain(model, images, TARGETS, method).values for method in ("gradcam", "integrated_gradients", "saliency")]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


def test_the_model_comes_back_as_it_was() -> None:
    model, images = _resnet().train(), _images(32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for method in ("gradcam", "integrated_gradients", "saliency"):
        explain(model, images, TARGETS, method, Integration(first_steps=4, most_steps=4))
    probabilities(model, images)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_without_a_map_of_features_is_refused_with_what_to_do() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES))
    with pytest.raises(UserError, match="Take a higher resolution, or another method"):
        explain(model, _images(8), TARGETS, "gradcam")
