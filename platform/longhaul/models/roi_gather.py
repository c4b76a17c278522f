"""RoIAlign over the levels of a feature pyramid with static shapes: as gathers of rows, or as a masked RoIAlign a level.

Both equal `torchvision.ops.MultiScaleRoIAlign`, which sorts boxes by level and so has shapes that depend on the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, roi_align

from longhaul.errors import LonghaulError

Pool = Literal["gather", "where"]


class PyramidRoIAlign(nn.Module):
    """Boxes in pixels of the tile -> features of a fixed size, each from the level that fits the box.

    Args:
        pool: the trained network's pooling; read are its output size, sampling ratio and rule for levels.
        sizes: (height, width) of each level that it uses, finest first.
        tile: side of the tile in pixels.
        kind: `gather` is 16 gathers of rows with weights (native layers in every TensorRT); `where` is one
            `torchvision.ops.roi_align` a level, masked.

    Raises:
        LonghaulError: the pooling takes a number of samples that depends on the box, or a level is left out.
    """

    level_scale: Tensor
    level_height: Tensor
    level_width: Tensor
    level_offset: Tensor
    batch_rows: int

    def __init__(self, pool: MultiScaleRoIAlign, sizes: Sequence[tuple[int, int]], tile: int, kind: Pool) -> None:
        super().__init__()
        if pool.sampling_ratio < 1:
            raise LonghaulError("box_roi_pool.sampling_ratio must be above 0: otherwise shapes depend on the boxes")
        self.kind = kind
        self.ratio = int(pool.sampling_ratio)
        self.out_height, self.out_width = (int(side) for side in pool.output_size)
        self.scales = [_scale(height, tile) for height, _ in sizes]
        self.thresholds = _area_thresholds(self.scales, pool.canonical_scale, pool.canonical_level)
        if len(self.thresholds) != len(sizes) - 1:
            raise LonghaulError(f"the pyramid's levels (scales {self.scales}) do not follow each other by halves")
        rows = [height * width for height, width in sizes]
        self.batch_rows = sum(rows)
        self.register_buffer("level_scale", torch.tensor(self.scales), persistent=False)
        self.register_buffer("level_height", torch.tensor([height for height, _ in sizes]), persistent=False)
        self.register_buffer("level_width", torch.tensor([width for _, width in sizes]), persistent=False)
        self.register_buffer("level_offset", torch.tensor([sum(rows[:i]) for i in range(len(rows))]), persistent=False)

    def forward(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Levels (N, C, H, W) and boxes (N, R, 4) in float32 -> (N * R, C, out_height, out_width) in float32."""
        level = self._levels(boxes)
        return self._gather(features, boxes, level) if self.kind == "gather" else self._where(features, boxes, level)

    def _levels(self, boxes: Tensor) -> Tensor:
        """The index of each box's level, (N, R) int64; equation 1 of the FPN paper (arXiv:1612.03144) without its logarithm."""
        area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
        level = torch.zeros_like(area, dtype=torch.int64)
        for threshold in self.thresholds:
            level = level + (area >= threshold).long()
        return level

    def _where(self, features: Sequence[Tensor], boxes: Tensor, level: Tensor) -> Tensor:
        count, proposals = boxes.shape[:2]
        image = torch.arange(count, device=boxes.device, dtype=boxes.dtype)[:, None, None].expand(count, proposals, 1)
        pooled: Tensor | None = None
        for index, (feature, scale) in enumerate(zip(features, self.scales, strict=True)):
            here = (level == index)[..., None].to(boxes.dtype)
            rois = torch.cat([image, boxes * here], dim=-1).reshape(-1, 5)  # the others become empty boxes at the corner
            size = (self.out_height, self.out_width)
            part: Tensor = roi_align(feature.float(), rois, size, spatial_scale=scale, sampling_ratio=self.ratio, aligned=False)
            part = part * here.reshape(-1, 1, 1, 1)
            pooled = part if pooled is None else pooled + part
        assert pooled is not None
        return pooled

    def _gather(self, features: Sequence[Tensor], boxes: Tensor, level: Tensor) -> Tensor:
        count, proposals = boxes.shape[:2]
        table = torch.cat([feature.flatten(2).transpose(1, 2) for feature in features], dim=1)  # (N, rows, C)
        channels = table.shape[2]
        table = table.reshape(count * self.batch_rows, channels)
        first = torch.arange(count, device=boxes.device)[:, None] * self.batch_rows + self.level_offset[level]
        scaled = boxes * self.level_scale[level][..., None]
        width = self.level_width[level]
        y_taps = _taps(scaled[..., 1], scaled[..., 3], self.level_height[level], self.out_height, self.ratio)
        x_taps = _taps(scaled[..., 0], scaled[..., 2], width, self.out_width, self.ratio)
        total = None
        for y, y_weight in y_taps:
            rows = (first[..., None] + y * width[..., None])[..., :, None]  # (N, R, out_height, 1)
            for x, x_weight in x_taps:
                index = (rows + x[..., None, :]).reshape(-1)
                weight = (y_weight[..., :, None] * x_weight[..., None, :]).reshape(-1, 1)
                part = table.index_select(0, index).float() * weight
                total = part if total is None else total + part
        assert total is not None
        pooled = (total / self.ratio**2).reshape(count * proposals, self.out_height * self.out_width, channels)
        return pooled.transpose(1, 2).reshape(count * proposals, channels, self.out_height, self.out_width)


def _scale(height: int, tile: int) -> float:
    """The power of two that the original infers (`torchvision.ops.poolers._infer_scale`)."""
    return float(2 ** float(torch.tensor(height / tile).log2().round()))


def _area_thresholds(scales: Sequence[float], canonical_scale: int, canonical_level: int) -> list[float]:
    """From which area on a box belongs to the second, third, ... level (`torchvision.ops.poolers.LevelMapper`, eps 1e-6)."""
    finest, coarsest = (int(-torch.tensor(scale).log2()) for scale in (scales[0], scales[-1]))
    return [float((canonical_scale * 2 ** (level - canonical_level - 1e-6)) ** 2) for level in range(finest + 1, coarsest + 1)]


def _taps(low: Tensor, high: Tensor, size: Tensor, bins: int, ratio: int) -> list[tuple[Tensor, Tensor]]:
    """Along one axis, for each of `ratio` samples a bin its two neighbours: index and weight, each (N, R, bins).

    Args:
        low: where the boxes begin on their level, (N, R).
        high: where they end.
        size: of the level, (N, R) int64.
        bins: of the output.
        ratio: samples a bin.
    """
    step = (high - low).clamp(min=1.0)[..., None] / bins
    last = size[..., None] - 1
    bin_index = torch.arange(bins, device=low.device, dtype=low.dtype)
    taps = []
    for sample in range(ratio):
        at = low[..., None] + bin_index * step + (sample + 0.5) * step / ratio
        inside = ((at >= -1.0) & (at <= size[..., None])).to(at.dtype)  # beyond the map counts as zero
        at = at.clamp(min=0.0)
        first = torch.minimum(at.floor().long(), last)
        at = torch.minimum(at, last.to(at.dtype))
        share = at - first.to(at.dtype)
        taps += [(first, (1 - share) * inside), (torch.minimum(first + 1, last), share * inside)]
    return taps
