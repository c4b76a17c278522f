"""From a decoded picture to the tensor that a network sees: one implementation for validation, export and serving."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImagePreprocess(BaseModel):
    """Resize the shorter side, crop the centre square, scale to 0..1, normalise; it travels in the model's manifest.

    Attributes:
        resolution: side of the square, in pixels.
        mean, std: a value a channel (RGB), on the 0..1 scale.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resolution: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __call__(self, image: Image.Image) -> Tensor:
        """`image` in any mode -> (3, resolution, resolution) float32."""
        return self.normalise(self.fit(image))

    def fit(self, image: Image.Image) -> Tensor:
        """The centre square as (3, resolution, resolution) uint8 RGB, before normalisation."""
        side = min(image.size)
        square = F.center_crop(F.pil_to_tensor(to_rgb(image)), [side, side])
        pixels: Tensor = F.resize(square, [self.resolution, self.resolution], InterpolationMode.BILINEAR, antialias=True)
        return pixels

    def normalise(self, pixels: Tensor) -> Tensor:
        """(3, H, W) uint8 -> float32, zero mean and unit variance by `mean` and `std`."""
        normalised: Tensor = F.normalize(F.to_dtype(pixels, torch.float32, scale=True), list(self.mean), list(self.std))
        return normalised


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as 8-bit RGB; alpha is dropped.

    Raises:
        ValueError: as `eight_bit`.
    """
    return eight_bit(image).convert("RGB")


def eight_bit(image: Image.Image) -> Image.Image:
    """A picture with 8 bits a channel; of 16-bit grey the upper byte is kept.

    Raises:
        ValueError: 32-bit integers or floats, whose white is not known.
    """
    if image.mode in {"I", "F"}:
        raise ValueError(f"mode {image.mode}: 32-bit grey levels have no known white; save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):  # Pillow's own conversion would make all above 255 white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image
