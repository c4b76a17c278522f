"""A small detector trained for some seconds on drawn rectangles: weights that tell large from small, one class from another.

Random weights hide what is wrong with suppression and with the levels of the pyramid: all scores are alike.
"""

from __future__ import annotations

import copy
import functools
from typing import cast

import torch
from torch import Tensor

from longhaul.models.faster_rcnn import Detector, Target, build_detector
from longhaul.recipe.networks import DetectorSection

SIDE = 96
CLASSES = ("flat", "tall")
SECTION = DetectorSection(
    name="fasterrcnn_resnet18_fpn", stages=(1, 2, 3), fpn_channels=32, head_width=128, anchor_px=8, candidates=200, proposals=60,
    anchor_samples=64, proposal_samples=64, max_detections=30, least_score=0.03,
)  # fmt: skip

_SHAPES = ((40, 14), (14, 40))
_STEPS, _BATCH, _RATE = 150, 2, 2e-3


def tiles(count: int, seed: int) -> tuple[Tensor, list[Target]]:
    """`count` tiles (N, 1, 96, 96) of one to five rectangles in noise, of 7 to 80 pixels, and where they are."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [_tile(generator) for _ in range(count)]
    return torch.stack([tile for tile, _ in drawn]), [target for _, target in drawn]


def _tile(generator: torch.Generator) -> tuple[Tensor, Target]:
    tile = 0.1 * torch.rand(SIDE, SIDE, generator=generator)
    boxes, labels = [], []
    for _ in range(int(torch.randint(1, 6, (1,), generator=generator))):
        label = int(torch.randint(2, (1,), generator=generator))
        zoom = 0.5 * 4 ** float(torch.rand(1, generator=generator))
        width, height = (int(side * zoom) for side in _SHAPES[label])
        x, y = (int(torch.randint(SIDE - side, (1,), generator=generator)) for side in (width, height))
        tile[y : y + height, x : x + width] = (0.5, 0.9)[label] + 0.1 * torch.rand(height, width, generator=generator)
        boxes.append([x, y, x + width, y + height])
        labels.append(label + 1)
    return tile[None], {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels)}


def trained_detector() -> Detector:
    """A copy of the one that is trained once in a test session."""
    return copy.deepcopy(_trained())


@functools.cache
def _trained() -> Detector:
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        detector = build_detector(SECTION, len(CLASSES), SIDE).train()
        optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=_STEPS + 1, pct_start=0.2)
        for step in range(_STEPS):
            images, targets = tiles(_BATCH, 1000 + step)
            optimizer.zero_grad()
            losses = cast("dict[str, Tensor]", detector(images, targets))
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return detector.eval().requires_grad_(False)
