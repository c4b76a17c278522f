"""From a picture to a tensor, against the same computed by hand in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from longhaul.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, ImagePreprocess


def triangle(source: int, target: int) -> NDArray[np.float64]:
    """(target, source): bilinear weights with antialiasing, a triangle as wide as an output pixel, at least an input pixel."""
    scale = source / target
    width = max(scale, 1.0)
    centre = (np.arange(target)[:, None] + 0.5) * scale
    weights = np.maximum(0.0, 1 - np.abs(np.arange(source)[None, :] + 0.5 - centre) / width)
    return weights / weights.sum(1, keepdims=True)


def by_hand(pixels: NDArray[np.uint8], side: int) -> NDArray[np.float64]:
    """(H, W, 3) -> (3, side, side), normalised, nothing rounded on the way."""
    height, width, _ = pixels.shape
    square = min(height, width)
    top, left = round((height - square) / 2), round((width - square) / 2)
    cut = pixels[top : top + square, left : left + square].astype(np.float64)
    rows = triangle(square, side)
    resized = np.einsum("ya,xb,abc->cyx", rows, rows, cut)
    return (resized / 255 - np.array(IMAGENET_MEAN)[:, None, None]) / np.array(IMAGENET_STD)[:, None, None]


@pytest.mark.parametrize("size", [(8, 8), (40, 31), (31, 40), (33, 64), (200, 100), (12, 12)])
@pytest.mark.parametrize("side", [12, 32])
def test_it_is_crop_resize_scale_normalise(size: tuple[int, int], side: int) -> None:
    """Within the rounding to 8 bits after each of the two passes of the resize."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    got = ImagePreprocess(resolution=side)(Image.fromarray(pixels))
    assert got.shape == (3, side, side)
    assert got.dtype == torch.float32
    levels = np.abs(got.double().numpy() - by_hand(pixels, side)) * 255 * np.array(IMAGENET_STD)[:, None, None]
    assert levels.max() < 1.5
    assert levels.mean() < 0.5


def test_normalising_alone_is_exact() -> None:
    """At the picture's own size nothing is rounded: float32's own error is all that is left."""
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    got = ImagePreprocess(resolution=16)(Image.fromarray(pixels))
    expected = (pixels.astype(np.float64).transpose(2, 0, 1) / 255 - np.array(IMAGENET_MEAN)[:, None, None]) / np.array(
        IMAGENET_STD
    )[:, None, None]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6, rtol=0)


def test_it_resizes_as_pillow_does() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    ours = ImagePreprocess(resolution=24).fit(Image.fromarray(pixels)).numpy().transpose(1, 2, 0)
    pillow = np.asarray(Image.fromarray(pixels).resize((24, 24), Image.Resampling.BILINEAR))
    assert np.abs(ours.astype(int) - pillow.astype(int)).max() <= 1


def test_other_means_and_any_mode() -> None:
    grey = Image.fromarray(np.full((5, 9), 51, np.uint8))
    got = ImagePreprocess(resolution=4, mean=(0.1, 0.2, 0.3), std=(0.1, 0.5, 1.0))(grey)
    torch.testing.assert_close(got[:, 0, 0], torch.tensor([1.0, 0.0, -0.1]))
    assert torch.equal(got, got[:, :1, :1].expand(3, 4, 4))


def test_it_travels_as_json_and_refuses_unknown_fields() -> None:
    one = ImagePreprocess(resolution=24, mean=(0.5, 0.5, 0.5))
    assert ImagePreprocess.model_validate_json(one.model_dump_json()) == one
    with pytest.raises(ValidationError, match="crop"):
        ImagePreprocess.model_validate({"resolution": 24, "crop": 1})
