"""Two convolutional networks of our own, under a million parameters each, for images from 8 pixels upwards.

Convolution, batch norm and ReLU in stages that halve the resolution; global average pooling, so that one network takes every
resolution with the same weights. Weights are drawn by Kaiming's rule (`torch.nn.init.kaiming_normal_`).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from longhaul.errors import UserError
from longhaul.recipe.networks import ModelSection


class SmallCnn(nn.Module):
    """Stages of 3 x 3 convolutions, each but the last followed by max pooling; then the mean over the picture, and one layer.

    Attributes:
        features: images (N, 3, H, W) -> maps (N, `widths[-1]`, H / 2^(stages - 1), W / 2^(stages - 1)).
        num_features: channels of these maps.
        head: means of the maps (N, `num_features`) -> logits (N, classes).

    Args:
        widths: channels of each stage.
        depth: convolutions a stage.
        classes: how many logits.
        drop_rate: dropout before the head.
    """

    def __init__(self, widths: Sequence[int], depth: int, classes: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for stage, width in enumerate(widths):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for _ in range(depth):
                layers.append(_convolution(before, width))
                before = width
        self.features = nn.Sequential(*layers)
        self.num_features = before
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(before, classes)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, classes)."""
        logits: Tensor = self.head(self.head_drop(self.pool(self.features(image)).flatten(1)))
        return logits


def simple_cnn(section: ModelSection, classes: int, resolution: int) -> nn.Module:
    """Four stages of two convolutions, 32 to 192 channels wide.

    Raises:
        UserError: the section asks for published weights or stochastic depth.
    """
    _check(section)
    return SmallCnn((32, 64, 128, 192), 2, classes, section.drop_rate)


def tiny_cnn(section: ModelSection, classes: int, resolution: int) -> nn.Module:
    """Three stages of one convolution, 16 to 64 channels wide.

    Raises:
        UserError: as `simple_cnn`.
    """
    _check(section)
    return SmallCnn((16, 32, 64), 1, classes, section.drop_rate)


def _convolution(before: int, width: int) -> nn.Sequential:
    convolution = nn.Conv2d(before, width, 3, padding=1, bias=False)  # the norm has a bias
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def _check(section: ModelSection) -> None:
    if section.drop_path_rate:
        raise UserError(f"model {section.name!r}: does not take one of ['drop_path_rate']", "Remove that field")
    if section.pretrained:
        fix = "Give a local file in model.weights, or set model.pretrained to false"
        raise UserError(f"model {section.name!r}: has no published weights", fix)
