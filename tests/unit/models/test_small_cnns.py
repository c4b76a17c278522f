"""The two networks of our own: size, every resolution, what they refuse, and that they learn."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from longhaul.errors import UserError
from longhaul.models.zoo import build_image_model, check_name, model_names, own_module
from longhaul.recipe.networks import ModelSection

NAMES = ["simple_cnn", "tiny_cnn"]


def build(name: str, resolution: int = 32, **fields: object) -> nn.Module:
    return build_image_model(ModelSection.model_validate({"name": name, **fields}), 10, resolution)


@pytest.mark.parametrize("name", NAMES)
def test_they_have_under_a_million_parameters(name: str) -> None:
    assert sum(p.numel() for p in build(name).parameters()) < 1_000_000


def test_parameters_are_the_sum_over_the_layers() -> None:
    """3 x 3 weights without a bias, two numbers a channel in each norm, and the head."""
    widths = [3, 16, 32, 64]
    expected = sum(a * b * 9 + 2 * b for a, b in itertools.pairwise(widths)) + 64 * 10 + 10
    assert sum(p.numel() for p in build("tiny_cnn").parameters()) == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("resolution", [8, 32, 33, 96, 224, 512])
def test_one_network_answers_at_every_resolution_with_the_same_weights(name: str, resolution: int) -> None:
    with torch.device("meta"):
        model = build(name, resolution)
        assert model(torch.zeros(2, 3, resolution, resolution)).shape == (2, 10)
        shapes = {key: value.shape for key, value in model.state_dict().items()}
        assert shapes == {key: value.shape for key, value in build(name).state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_they_learn_a_handful_of_pictures_by_heart(name: str) -> None:
    torch.manual_seed(0)
    model, images, labels = build(name), torch.randn(16, 3, 32, 32), torch.arange(16) % 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert (model(images).argmax(1) == labels).all()


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_before_the_head_and_in_training_alone(name: str) -> None:
    torch.manual_seed(0)
    plain, dropping = build(name), build(name, drop_rate=0.5)
    dropping.load_state_dict(plain.state_dict())
    image = torch.randn(4, 3, 32, 32)
    assert not torch.equal(dropping(image), dropping(image))
    assert torch.equal(plain(image), plain(image))
    torch.testing.assert_close(dropping.eval()(image), dropping(image))
    dropped = dropping.train().head_drop(torch.ones(1, 10_000))
    assert float((dropped == 0).float().mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"drop_path_rate": 0.1}, r"does not take one of \['drop_path_rate'\]\. Remove that field"),
        ({"pretrained": True}, r"has no published weights\. Give a local file in model\.weights"),
    ],
)
def test_what_they_do_not_have_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=rf"model 'tiny_cnn': {words}"):
        build("tiny_cnn", **fields)


def test_they_are_found_by_name_among_all_others() -> None:
    for name in NAMES:
        check_name(name)
        assert name in model_names("cnn")
        assert own_module(name) == "longhaul.models.small_cnns"
    assert own_module("resnet18") is None
    with pytest.raises(UserError, match=r"Did you mean .*simple_cnn"):
        check_name("simple_cn")


def test_another_network_is_built_without_their_module() -> None:
    """What code a cell of the grid depends on follows from imports: a change here is no change of a ResNet."""
    script = (
        "import sys; from longhaul.models.zoo import build_image_model; from longhaul.recipe.networks import ModelSection\n"
        "build_image_model(ModelSection(name='test_resnet'), 2, 32); print('longhaul.models.small_cnns' in sys.modules)\n"
        "build_image_model(ModelSection(name='tiny_cnn'), 2, 32); print('longhaul.models.small_cnns' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "True"]
