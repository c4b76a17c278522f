"""Maps depend on what a trained model has learned; an edge detector's do not."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from longhaul.insight.explain.attribution import METHODS, Floats, Method
from longhaul.insight.explain.sanity import by_method, randomised, sanity_check

SIDE, CLASSES = 32, 4


def _blobs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A bright blob somewhere in one of four quarters, the class, over noise."""
    chance = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=chance)
    images = 0.3 * torch.randn(count, 3, SIDE, SIDE, generator=chance)
    corners = torch.randint(8, (count, 2), generator=chance)
    for image, label, (top, left) in zip(images, labels.tolist(), corners.tolist(), strict=True):
        row, column = top + 16 * (label // 2), left + 16 * (label % 2)
        image[:, row : row + 8, column : column + 8] += 2
    return images, labels


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """Knows the quarter of the blob."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 8 * 8, CLASSES),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    images, labels = _blobs(256, 1)
    for _ in range(6):
        for part in range(0, 256, 32):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[part : part + 32]), labels[part : part + 32]).backward()
            optimizer.step()
    fresh, truth = _blobs(64, 2)
    assert (model(fresh).argmax(dim=1) == truth).float().mean() > 0.95
    return model


def _edges(model: nn.Module, images: Tensor, targets: Tensor) -> Floats:
    """The image's own edges (Sobel), whatever the model."""
    across = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    kernel = torch.stack([across, across.T])[:, None]
    gradient = functional.conv2d(images.mean(dim=1, keepdim=True), kernel, padding=1)
    edges: Floats = gradient.norm(dim=1).numpy()
    return edges


@pytest.mark.parametrize("method", ["gradcam", "saliency"])
def test_the_maps_of_a_randomised_model_differ(method: Method, trained: nn.Module) -> None:
    images, labels = _blobs(8, 3)
    check = sanity_check(by_method(method), trained, images, labels)
    assert check.passes
    assert abs(check.stages[-1].rank_correlation.mean) <= check.bound


def test_an_edge_detector_fails_the_check_since_it_ignores_the_model(trained: nn.Module) -> None:
    images, labels = _blobs(8, 3)
    check = sanity_check(_edges, trained, images, labels)
    assert not check.passes
    assert check.stages[-1].rank_correlation.mean == pytest.approx(1)


def test_the_same_model_agrees_with_itself_and_the_cascade_goes_from_the_output(trained: nn.Module) -> None:
    assert (
        all(torch.equal(a, b) for a, b in zip(trained.parameters(), randomised(trained, 1, 0).parameters(), strict=True)) is False
    )
    half = randomised(trained, 2, seed=5)
    changed = [not torch.equal(a, b) for a, b in zip(trained.parameters(), half.parameters(), strict=True)]
    assert changed == [False, False, True, True, True, True]  # weight and bias of each: the first convolution stays
    images, labels = _blobs(8, 3)
    check = sanity_check(by_method("saliency"), trained, images, labels, shares=(0.34, 0.67, 1.0))
    assert [stage.layers for stage in check.stages] == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {}),
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}),
    ],
)
def test_all_weights_of_every_family_are_drawn_anew_by_the_seed_alone(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=CLASSES, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # as training would: norms and biases too
    before = torch.random.get_rng_state()
    new, again = (randomised(model, 10_000, seed=3) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for (key, old), value, other in zip(model.named_parameters(), new.parameters(), again.parameters(), strict=True):
        assert not torch.equal(old, value), key
        assert torch.equal(value, other)
    images = torch.randn(2, 3, SIDE, SIDE)
    assert np.isfinite(new.eval()(images).detach().numpy()).all()


def test_every_method_can_be_checked(trained: nn.Module) -> None:
    images, labels = _blobs(3, 4)
    for method in METHODS:
        assert -1 <= sanity_check(by_method(method), trained, images, labels).stages[0].rank_correlation.mean <= 1
