"""Faster R-CNN on spectrogram tiles, from torchvision's parts.

The parts and their names are torchvision's (`torchvision.models.detection.faster_rcnn`: `backbone`, `rpn`, `roi_heads`), so its
published weights load. Around them, three things differ: tiles come in one size and one channel, which is repeated; losses can
be had in evaluation mode too; and detections are given as tensors of a fixed shape, as the exported model gives them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from longhaul.errors import UserError
from longhaul.models.zoo import load_fitting
from longhaul.recipe.networks import DetectorSection

Target = dict[str, Tensor]
"""`boxes` (B, 4) float32 in pixels (x_min, y_min, x_max, y_max) and `labels` (B,) int64, from 1."""
Detections = tuple[Tensor, Tensor, Tensor, Tensor]

_POOLED = 7  # side of a pooled proposal
_CANONICAL_ANCHORS = 7  # a proposal of so many of the finest anchors' sides belongs to level 4 of the pyramid (224 / 32)


class Detector(nn.Module):
    """Faster R-CNN for square grey tiles.

    Attributes:
        backbone, rpn, roi_heads: torchvision's modules.
        tile: side of a tile, in pixels.
        mean, std: of the normalisation, the same for all three channels.
        max_detections: detections a tile.
    """

    def __init__(self, section: DetectorSection, backbone: BackboneWithFPN, classes: int, tile: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.rpn = _proposal_network(section, backbone.out_channels)
        self.roi_heads = _box_heads(section, backbone.out_channels, classes)
        self.tile, self.mean, self.std, self.max_detections = tile, section.mean, section.std, section.max_detections

    def forward(self, image: Tensor, targets: Sequence[Target] | None = None) -> Detections | dict[str, Tensor]:
        """Losses where `targets` are given, whatever the mode; detections otherwise.

        Args:
            image: (N, 1, T, T) float32, grey levels in 0..1.
            targets: one for each tile.

        Returns:
            Losses by name, each (); or `boxes` (N, D, 4) float32 in pixels, `scores` (N, D) float32 (-1: nothing),
            `labels` (N, D) int32 (0: nothing) and `flag` (N,) float32, 0 where non-maximum suppression was exact: here always.
        """
        pixels = ((image - self.mean) / self.std).expand(-1, 3, -1, -1)
        features = self.backbone(pixels)
        # Coordinates need float32: bfloat16 knows 1000 and 1004 and nothing between.
        with torch.autocast(image.device.type, enabled=False):
            features = OrderedDict((name, feature.float()) for name, feature in features.items())
            size = (int(image.shape[-2]), int(image.shape[-1]))
            images = ImageList(pixels, [size] * len(image))
            if targets is None:
                proposals, _ = self.rpn(images, features)
                found, _ = self.roi_heads(features, proposals, images.image_sizes)
                return _padded(found, self.max_detections)
            return self._losses(images, features, list(targets))

    def _losses(self, images: ImageList, features: dict[str, Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """Torchvision computes losses in training mode alone; only these two modules look at the mode for that."""
        modes = self.rpn.training, self.roi_heads.training
        self.rpn.training = self.roi_heads.training = True
        try:
            proposals, losses = self.rpn(images, features, targets)
            _, more = self.roi_heads(features, proposals, images.image_sizes, targets)
        finally:
            self.rpn.training, self.roi_heads.training = modes
        return {**losses, **more}


def build_detector(section: DetectorSection, classes: int, tile: int) -> Detector:
    """A detector for `classes` classes, its weights from torch's global random state, or as the section says.

    Args:
        section: the recipe's.
        classes: without the background.
        tile: side of a tile, in pixels.

    Raises:
        UserError: weights that cannot be had or read.
    """
    detector = Detector(section, _backbone(section), classes, tile)
    if section.weights is not None:
        load_fitting(detector, Path(section.weights).expanduser())
    return detector


def _backbone(section: DetectorSection) -> BackboneWithFPN:
    name = section.name.split("_")[1]
    norm: type[nn.Module] = FrozenBatchNorm2d if section.norm == "frozen" else nn.BatchNorm2d
    try:
        body = getattr(resnet, name)(weights="DEFAULT" if section.pretrained else None, norm_layer=norm)
    except (URLError, OSError) as error:
        fix = "Give a local file in model.weights, or set model.pretrained to false"
        raise UserError(f"model {section.name!r}: its published weights cannot be had ({error})", fix) from None
    layers = {f"layer{stage}": str(level) for level, stage in enumerate(section.stages)}
    widths = [body.inplanes // 2 ** (4 - stage) for stage in section.stages]
    return BackboneWithFPN(body, layers, widths, section.fpn_channels)


def _proposal_network(section: DetectorSection, channels: int) -> RegionProposalNetwork:
    levels = len(section.stages) + 1  # the pyramid adds one by pooling
    anchors = AnchorGenerator(
        sizes=tuple((section.anchor_px * 2**level,) for level in range(levels)),
        aspect_ratios=(section.aspect_ratios,) * levels,
    )
    return RegionProposalNetwork(
        anchors,
        RPNHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=section.anchor_samples,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 2 * section.candidates, "testing": section.candidates},
        post_nms_top_n={"training": 2 * section.proposals, "testing": section.proposals},
        nms_thresh=0.7,
    )


def _box_heads(section: DetectorSection, channels: int, classes: int) -> RoIHeads:
    pool = MultiScaleRoIAlign(
        featmap_names=[str(level) for level in range(len(section.stages))],
        output_size=_POOLED,
        sampling_ratio=2,
        canonical_scale=round(_CANONICAL_ANCHORS * section.anchor_px),
    )
    return RoIHeads(
        pool,
        TwoMLPHead(channels * _POOLED**2, section.head_width),
        FastRCNNPredictor(section.head_width, classes + 1),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=section.proposal_samples,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=section.least_score,
        nms_thresh=section.nms_iou,
        detections_per_img=section.max_detections,
    )


def _padded(found: list[Target], most: int) -> Detections:
    """Lists of different lengths as tensors of one."""
    device = found[0]["boxes"].device
    boxes = torch.zeros(len(found), most, 4, device=device)
    scores = torch.full((len(found), most), -1.0, device=device)
    labels = torch.zeros(len(found), most, dtype=torch.int32, device=device)
    for place, one in enumerate(found):
        count = len(one["scores"])
        boxes[place, :count], scores[place, :count] = one["boxes"], one["scores"]
        labels[place, :count] = one["labels"].to(torch.int32)
    return boxes, scores, labels, torch.zeros(len(found), device=device)
