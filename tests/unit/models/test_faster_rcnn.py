"""The detector built from torchvision's parts: its own torchvision counterpart, losses in every mode, padded answers."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.ops import FrozenBatchNorm2d

from longhaul.errors import UserError
from longhaul.models.faster_rcnn import Detector, build_detector
from longhaul.recipe.networks import DetectorSection

SMALL = DetectorSection(
    name="fasterrcnn_resnet18_fpn", stages=(2, 3), fpn_channels=16, head_width=32, anchor_px=8, candidates=64, proposals=20,
    anchor_samples=32, proposal_samples=32, least_score=0.0, max_detections=12,
)  # fmt: skip
TARGETS = [
    {"boxes": torch.tensor([[4.0, 4, 30, 20], [40, 40, 60, 60]]), "labels": torch.tensor([1, 2])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(0)
    return build_detector(SMALL, classes=2, tile=64)


def _tiles(count: int) -> Tensor:
    return torch.rand(count, 1, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_it_gives_what_torchvisions_own_model_gives(detector: Detector) -> None:
    torch.manual_seed(3)
    model = FasterRCNN(
        detector.backbone, num_classes=3, min_size=64, max_size=64, image_mean=[SMALL.mean] * 3, image_std=[SMALL.std] * 3
    )
    model.rpn, model.roi_heads = detector.rpn, detector.roi_heads
    model.eval()
    detector.eval()
    boxes, scores, labels, flag = cast("tuple[Tensor, ...]", detector(_tiles(3)))
    for place, expected in enumerate(model(list(_tiles(3).expand(-1, 3, -1, -1)))):
        count = len(expected["scores"])
        assert count > 0
        torch.testing.assert_close(boxes[place, :count], expected["boxes"])
        torch.testing.assert_close(scores[place, :count], expected["scores"])
        assert labels[place, :count].tolist() == expected["labels"].tolist()
        assert scores[place, count:].tolist() == [-1.0] * (12 - count)
        assert labels[place, count:].tolist() == [0] * (12 - count)
    assert flag.tolist() == [0.0] * 3


@pytest.mark.parametrize("training", [True, False])
def test_losses_can_be_had_in_both_modes_and_leave_the_mode_alone(detector: Detector, training: bool) -> None:
    detector.train(training)
    losses = cast("dict[str, Tensor]", detector(_tiles(2), TARGETS))
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    total = torch.stack(list(losses.values())).sum()
    assert bool(torch.isfinite(total))
    total.backward()  # type: ignore[no-untyped-call]
    assert detector.backbone.body.conv1.weight.grad is not None
    assert detector.rpn.training == detector.roi_heads.training == training


def test_a_tile_without_boxes_alone_has_a_loss(detector: Detector) -> None:
    losses = cast("dict[str, Tensor]", detector.train()(_tiles(1), TARGETS[1:]))
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())


def test_it_learns_one_picture() -> None:
    torch.manual_seed(0)
    detector = build_detector(SMALL.model_copy(update={"least_score": 0.05}), classes=2, tile=64).train()
    tile = torch.zeros(1, 1, 64, 64)
    tile[..., 4:20, 4:30], tile[..., 40:60, 40:60] = 1.0, 0.5
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.stack(list(cast("dict[str, Tensor]", detector(tile, TARGETS[:1])).values())).sum().backward()
        optimizer.step()
    with torch.no_grad():
        detector.train()  # batch norm of one picture
        detector.rpn.training = detector.roi_heads.training = False
        boxes, scores, labels, _ = cast("tuple[Tensor, ...]", detector(tile))
    order = labels[0, :2].argsort()
    assert labels[0, :2][order].tolist() == [1, 2]
    assert float(scores[0, 1]) > 0.5
    torch.testing.assert_close(boxes[0, :2][order], TARGETS[0]["boxes"], atol=4.0, rtol=0)


def test_bfloat16_keeps_boxes_in_float32(detector: Detector) -> None:
    detector.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        boxes, scores, _, _ = cast("tuple[Tensor, ...]", detector(_tiles(1)))
    assert boxes.dtype == scores.dtype == torch.float32
    found = boxes[0][scores[0] >= 0].flatten()
    assert not torch.equal(found, found.to(torch.bfloat16).float())


def test_frozen_norm_and_every_backbone_build() -> None:
    for name, norm in (("fasterrcnn_resnet34_fpn", "batch"), ("fasterrcnn_resnet50_fpn", "frozen")):
        section = SMALL.model_copy(update={"name": name, "norm": norm, "stages": (1, 2, 3, 4)})
        with torch.device("meta"):
            built = build_detector(section, classes=1, tile=64)
        assert len(built.rpn.anchor_generator.sizes) == 5
        assert isinstance(built.backbone.body.bn1, FrozenBatchNorm2d) == (norm == "frozen")


def test_published_weights_that_cannot_be_had_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"published weights cannot be had.*model\.weights"):
        build_detector(SMALL.model_copy(update={"pretrained": True}), classes=1, tile=64)
