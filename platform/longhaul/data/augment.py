"""From a decoded picture to a training sample: preprocessing, and random changes as a function of a seed."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from longhaul.data.preprocess import ImagePreprocess


def image_tensor(image: Image.Image, preprocess: ImagePreprocess, augment: str, seed: int | None) -> Tensor:
    """The picture as the network sees it: (3, R, R) float32.

    Args:
        image: in any mode.
        preprocess: picture to tensor.
        augment: `none`, `shift`, `flip` or `crop` (`recipe.inputs`).
        seed: decides the changes, alone; None for none.
    """
    if seed is None or augment == "none":
        return preprocess(image)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: that would reset the GPU too
        return preprocess.normalise(_augmented(image, preprocess, augment))


def _augmented(image: Image.Image, preprocess: ImagePreprocess, augment: str) -> Tensor:
    if augment == "crop":
        pixels: Tensor = v2.RandomResizedCrop(preprocess.resolution, antialias=True)(F.pil_to_tensor(image))
    else:
        turn = v2.RandomAffine(degrees=10, translate=(0.08, 0.08), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR)
        pixels = turn(preprocess.fit(image))
    if augment != "shift":
        pixels = v2.RandomHorizontalFlip()(pixels)
    return pixels
