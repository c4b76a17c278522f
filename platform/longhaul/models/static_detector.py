"""A trained detector as a graph of fixed shapes, for ONNX and TensorRT; it gives what the trained one gives.

Torchvision's Faster R-CNN sorts, filters and suppresses with shapes that depend on the picture: TensorRT either refuses that or
waits for the GPU at each. Here every shape is a constant: anchors are computed once, each level gives its best k candidates,
what is filtered keeps its place with a score of -1, and both suppressions are rounds of a matrix product (`matrix_nms`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.image_list import ImageList

from longhaul.errors import LonghaulError, UserError
from longhaul.models.batch_norm_folding import folded
from longhaul.models.faster_rcnn import Detections, Detector
from longhaul.models.matrix_nms import MatrixNms, rounds_needed
from longhaul.models.roi_gather import Pool, PyramidRoIAlign

Precision = Literal["fp32", "fp16", "bf16"]

TOP_K = 3840
"""The most that TensorRT's TopK layer gives."""

_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_LEAST_SIDE = 1e-2  # of a detection, in pixels: a constant in `torchvision.models.detection.roi_heads`
_CANDIDATES = 1000  # enter the last suppression; `flag` says when more should have
_SAME = 1e-3  # allowed share of the largest feature when batch norm is folded; measured are 3e-5


class StaticDetector(nn.Module):
    """`image` (N, 1, T, T) in 0..1 -> `boxes` (N, D, 4), `scores` (N, D), `labels` (N, D), `flag` (N,), as `Detector` gives them.

    Convolutions and the box head compute in `precision`; boxes, interpolation, logits and suppression in float32. All limits
    (candidates, proposals, thresholds, detections) are read from the detector. `flag` is 0 where both suppressions are exactly
    the greedy ones and nothing fell out of a limit that the original does not have. Scores that are equal bit for bit have no
    order: of two such boxes of one class that overlap, another one may stay.

    Args:
        detector: trained; it is copied and stays as it is.
        channels: 1 folds the three equal channels into one (the weights of the first convolution are summed); 3 repeats them.
        rpn_iterations, detection_iterations: rounds of the two suppressions.
        pool: how proposals get their features, see `PyramidRoIAlign`.
        precision: of convolutions and fully connected layers.

    Raises:
        UserError: more candidates or proposals than TensorRT can sort.
        LonghaulError: a network that this cannot be done to.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        channels: Literal[1, 3] = 1,
        rpn_iterations: int = 24,
        detection_iterations: int = 16,
        pool: Pool = "gather",
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        self.tile, self.mean, self.std, self.channels = detector.tile, float(detector.mean), float(detector.std), channels
        self.precision = precision
        dtype = _TYPES[precision]
        backbone = _folded_backbone(detector, channels)
        with torch.no_grad():
            example = torch.zeros(1, channels, self.tile, self.tile)
            features: dict[str, Tensor] = {name: feature[:1] for name, feature in backbone(example).items()}
        self.proposals = _Proposals(detector, features, rpn_iterations, dtype)
        self.detections = _Detections(detector, features, detection_iterations, pool, dtype)
        self.backbone = backbone.to(dtype)
        self.dtype = dtype
        self.eval()

    def forward(self, image: Tensor) -> Detections:
        """See the class."""
        pixels = (image - self.mean) / self.std
        if self.channels != 1:
            pixels = pixels.expand(-1, self.channels, -1, -1)
        features: dict[str, Tensor] = self.backbone(pixels.to(self.dtype))
        proposals, valid, unsettled = self.proposals(list(features.values()))
        boxes, scores, labels, flag = self.detections(features, proposals, valid)
        return boxes, scores, labels, flag + unsettled


@torch.no_grad()
def iterations_needed(detector: Detector, images: Sequence[Tensor]) -> tuple[int, int]:
    """The most rounds that the two suppressions need on these images, (N, 1, T, T) each, to be exactly the greedy ones."""
    static = StaticDetector(detector, channels=3)
    stages = static.proposals.nms, static.detections.nms
    most = [0, 0]

    def count(nms: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        boxes, valid, *labels = arguments
        place = stages.index(nms)
        most[place] = max(most[place], rounds_needed(boxes, valid, stages[place].threshold, *labels))

    for nms in stages:
        nms.register_forward_pre_hook(count)
    for image in images:
        static(image)
    return most[0], most[1]


class _Proposals(nn.Module):
    """The region proposal network: features a level -> the best boxes (N, R, 4), which of them count, and a flag (N,)."""

    def __init__(self, detector: Detector, features: dict[str, Tensor], iterations: int, dtype: torch.dtype) -> None:
        super().__init__()
        rpn = detector.rpn
        self.conv = copy.deepcopy(rpn.head.conv).to(dtype)
        self.cls_logits, self.bbox_pred = copy.deepcopy(rpn.head.cls_logits), copy.deepcopy(rpn.head.bbox_pred)
        self.nms = MatrixNms(rpn.nms_thresh, iterations)
        self.tile, self.coder = float(detector.tile), rpn.box_coder
        self.least_side, self.least_score = float(rpn.min_size), float(rpn.score_thresh)
        self.candidates = _sortable(int(rpn._pre_nms_top_n["testing"]), "candidates")
        self.most = _sortable(int(rpn._post_nms_top_n["testing"]), "proposals")
        maps = list(features.values())
        side = int(detector.tile)
        picture = ImageList(torch.zeros(1, 3, side, side), [(side, side)])
        (anchors,) = copy.deepcopy(rpn.anchor_generator)(picture, maps)
        a_place = rpn.anchor_generator.num_anchors_per_location()
        counts = [feature.shape[2] * feature.shape[3] * a for feature, a in zip(maps, a_place, strict=True)]
        for level, level_anchors in enumerate(anchors.split(counts)):
            self.register_buffer(f"anchors_{level}", level_anchors.clone(), persistent=False)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        levels = [self._candidates(level, feature) for level, feature in enumerate(features)]
        most = max(scores.shape[1] for _, scores in levels)
        boxes = torch.stack([_pad(level_boxes, most, 0.0) for level_boxes, _ in levels], dim=1)  # (N, L, K, 4)
        scores = torch.stack([_pad(level_scores[..., None], most, -1.0)[..., 0] for _, level_scores in levels], dim=1)
        keep, unsettled = self.nms(boxes, scores >= 0)
        scores = torch.where(keep, scores, -1.0).flatten(1)
        best, place = scores.topk(min(self.most, scores.shape[1]), dim=1)
        valid = best >= 0
        boxes = _rows(boxes.flatten(1, 2), place) * valid[..., None].float()
        return boxes, valid, unsettled.sum(1)

    def _candidates(self, level: int, feature: Tensor) -> tuple[Tensor, Tensor]:
        """The level's best boxes (N, k, 4), clipped, and their scores (N, k), best first, -1 for those that do not count."""
        shared = self.conv(feature).float()
        logits = self.cls_logits(shared).permute(0, 2, 3, 1).flatten(1)
        count, anchors_here = shared.shape[0], self.cls_logits.out_channels
        height, width = shared.shape[2:]
        deltas = self.bbox_pred(shared).view(count, anchors_here, 4, height, width).permute(0, 3, 4, 1, 2).flatten(1, 3)
        best, place = logits.topk(min(self.candidates, logits.shape[1]), dim=1)
        anchors = self.get_buffer(f"anchors_{level}").index_select(0, place.flatten()).reshape(*place.shape, 4)
        boxes = _decode(self.coder, _rows(deltas, place), anchors).clamp(0.0, self.tile)
        scores = best.sigmoid()
        return boxes, torch.where(_at_least(boxes, self.least_side) & (scores >= self.least_score), scores, -1.0)


class _Detections(nn.Module):
    """The box heads: features and proposals -> boxes (N, D, 4), scores (N, D), labels (N, D), flag (N,)."""

    def __init__(self, detector: Detector, features: dict[str, Tensor], iterations: int, pool: Pool, dtype: torch.dtype) -> None:
        super().__init__()
        heads = detector.roi_heads
        self.names = [name for name in features if name in heads.box_roi_pool.featmap_names]
        sizes = [(int(features[name].shape[2]), int(features[name].shape[3])) for name in self.names]
        self.pool = PyramidRoIAlign(heads.box_roi_pool, sizes, detector.tile, pool)
        self.box_head = folded(heads.box_head).to(dtype)
        self.box_predictor = copy.deepcopy(heads.box_predictor)
        self.nms = MatrixNms(heads.nms_thresh, iterations)
        self.tile, self.coder, self.least_score = float(detector.tile), heads.box_coder, float(heads.score_thresh)
        self.most = _sortable(int(heads.detections_per_img), "max_detections")
        self.dtype = dtype

    def forward(self, features: dict[str, Tensor], proposals: Tensor, valid: Tensor) -> Detections:
        count, rows = valid.shape
        pooled = self.pool([features[name] for name in self.names], proposals)
        logits, deltas = self.box_predictor(self.box_head(pooled.to(self.dtype)).float())
        classes = logits.shape[1] - 1  # the first is the background
        scores = logits.softmax(-1)[:, 1:].reshape(count, rows, classes)
        deltas = deltas.reshape(count, rows, classes + 1, 4)[:, :, 1:]
        boxes = _decode(self.coder, deltas, proposals[:, :, None]).clamp(0.0, self.tile)
        counts = (scores > self.least_score) & _at_least(boxes, _LEAST_SIDE) & valid[..., None]
        return self._best(boxes.flatten(1, 2), torch.where(counts, scores, -1.0).flatten(1), classes)

    def _best(self, boxes: Tensor, scores: Tensor, classes: int) -> Detections:
        """The detections among all boxes (N, K, 4) with scores (N, K), the classes of a proposal next to each other."""
        entered = (scores >= 0).float().sum(1)
        scores, place = scores.topk(min(max(_CANDIDATES, self.most), scores.shape[1]), dim=1)
        boxes, labels = _rows(boxes, place), place % classes + 1
        keep, unsettled = self.nms(boxes, scores >= 0, labels)
        scores, place = torch.where(keep, scores, -1.0).topk(min(self.most, scores.shape[1]), dim=1)
        found = scores >= 0
        labels = torch.where(found, labels.gather(1, place), 0)
        boxes = _rows(boxes, place) * found[..., None].float()
        # Those that did not enter score less than all that did: they matter only where there is room left.
        room = (found.float().sum(1) < self.most).float()
        missed = (entered - keep.shape[1]).clamp(min=0) * room
        scores = _pad(scores[..., None], self.most, -1.0)[..., 0]
        labels = _pad(labels[..., None], self.most, 0)[..., 0].to(torch.int32)
        return _pad(boxes, self.most, 0.0), scores, labels, unsettled + missed


def _folded_backbone(detector: Detector, channels: int) -> nn.Module:
    """The backbone without batch norm, for `channels` equal channels, after a look whether its features are the same."""
    backbone = folded(detector.backbone)
    if channels == 1:
        _fold_channels(backbone)
    side = min(detector.tile, 64)  # convolutions do not care, and a whole tile takes seconds
    sample = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0))
    original = copy.deepcopy(detector.backbone).eval()
    with torch.no_grad():
        expected = original(sample.expand(-1, 3, -1, -1))
        found = backbone(sample.expand(-1, channels, -1, -1))
    for name, feature in expected.items():
        off = float((found[name] - feature).abs().max())
        if not off <= _SAME * max(1.0, float(feature.abs().max())):
            raise LonghaulError(f"backbone level {name}: folding batch norm and channels changes its features by {off:.2g}")
    return backbone


def _fold_channels(backbone: nn.Module) -> None:
    """Sum the first convolution's weights over its three channels: exact where all three hold the same numbers."""
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d):
            if layer.in_channels != 3 or layer.groups != 1:
                raise LonghaulError(f"the first convolution takes {layer.in_channels} channels where 3 were expected")
            layer.weight = nn.Parameter(layer.weight.detach().sum(1, keepdim=True), requires_grad=False)
            layer.in_channels = 1
            return
    raise LonghaulError("the backbone has no convolution")


def _sortable(count: int, field: str) -> int:
    if count > TOP_K:
        raise UserError(f"model.{field} {count}: TensorRT sorts {TOP_K} at most", f"Set it to {TOP_K} or less and train again")
    return count


def _decode(coder: BoxCoder, deltas: Tensor, reference: Tensor) -> Tensor:
    """Offsets and reference boxes (..., 4) -> boxes (..., 4), as `BoxCoder.decode_single` has them."""
    x_weight, y_weight, width_weight, height_weight = coder.weights
    width, height = reference[..., 2] - reference[..., 0], reference[..., 3] - reference[..., 1]
    x = deltas[..., 0] / x_weight * width + (reference[..., 0] + 0.5 * width)
    y = deltas[..., 1] / y_weight * height + (reference[..., 1] + 0.5 * height)
    half_width = 0.5 * (deltas[..., 2] / width_weight).clamp(max=coder.bbox_xform_clip).exp() * width
    half_height = 0.5 * (deltas[..., 3] / height_weight).clamp(max=coder.bbox_xform_clip).exp() * height
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], dim=-1)


def _at_least(boxes: Tensor, side: float) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0] >= side) & (boxes[..., 3] - boxes[..., 1] >= side)


def _rows(table: Tensor, place: Tensor) -> Tensor:
    """The rows `place` (N, k) of a table (N, K, C), each sample from its own."""
    return table.gather(1, place[..., None].expand(-1, -1, table.shape[2]))


def _pad(rows: Tensor, count: int, value: float) -> Tensor:
    """(N, k, C) -> (N, count, C), filled up with `value`."""
    missing = count - rows.shape[1]
    return nn.functional.pad(rows, (0, 0, 0, missing), value=value) if missing else rows
