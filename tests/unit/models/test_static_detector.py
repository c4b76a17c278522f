"""The detector of fixed shapes gives what the trained one gives: every proposal's features, every detection, on 100 tiles."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign
from toy_detector import CLASSES, SECTION, SIDE, tiles, trained_detector

from longhaul.errors import LonghaulError, UserError
from longhaul.models.faster_rcnn import Detector, build_detector
from longhaul.models.roi_gather import Pool, PyramidRoIAlign
from longhaul.models.static_detector import StaticDetector, iterations_needed

BOX_PX, SCORE = 1e-3, 1e-5  # rounding in another order stays a tenth of this


@pytest.fixture(scope="module")
def detector() -> Detector:
    return trained_detector()


@pytest.fixture(scope="module")
def hundred() -> Tensor:
    return tiles(100, seed=1)[0]


@pytest.fixture(scope="module")
@torch.no_grad()
def expected(detector: Detector, hundred: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.cat(outputs) for outputs in zip(*(detector(part) for part in hundred.split(10)), strict=True))


def _check(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    assert [(output.dtype, output.shape) for output in found] == [(output.dtype, output.shape) for output in expected]
    assert torch.equal(found[2], expected[2])
    torch.testing.assert_close(found[0], expected[0], atol=BOX_PX, rtol=0)
    torch.testing.assert_close(found[1], expected[1], atol=SCORE, rtol=0)
    assert found[3].tolist() == [0.0] * len(found[0])


def _check_sets(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """As `_check`, whatever the order: without training, hundreds of scores are equal but for rounding."""
    ours, theirs = (torch.cat([out[0], 100 * out[1][..., None], 100.0 * out[2][..., None]], dim=2) for out in (found, expected))
    assert ours.shape == theirs.shape
    for mine, other in zip(ours, theirs, strict=True):
        distance, partner = torch.cdist(mine, other, p=torch.inf, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        assert float(distance.max()) < BOX_PX
        real = mine[:, 5] > 0
        assert len(partner[real].unique()) == int(real.sum()) == int((other[:, 5] > 0).sum())
    assert found[3].tolist() == [0.0] * len(ours)


@torch.no_grad()
@pytest.mark.parametrize(("channels", "pool"), [(1, "gather"), (3, "gather"), (1, "where")])
def test_it_gives_what_the_trained_detector_gives(
    detector: Detector, hundred: Tensor, expected: tuple[Tensor, ...], channels: Literal[1, 3], pool: Pool
) -> None:
    assert int((expected[1] > 0.5).sum()) > 150  # else this proves nothing
    assert int((expected[1] > 0.05).sum()) > 1000
    static = StaticDetector(detector, channels=channels, pool=pool)
    assert next(static.backbone.parameters()).shape[1] == channels
    outputs = [static(part) for part in hundred.split(25)]
    _check(tuple(torch.cat(parts) for parts in zip(*outputs, strict=True)), expected)


@torch.no_grad()
def test_the_detector_that_it_is_made_from_stays_as_it_is(detector: Detector, hundred: Tensor) -> None:
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    StaticDetector(detector, precision="fp16")
    after = detector.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert before.keys() == after.keys()


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {"stages": (2, 3, 4), "norm": "frozen"},
        {"name": "fasterrcnn_resnet50_fpn", "stages": (1, 2), "anchor_px": 16, "max_detections": 400, "proposals": 200},
        {"candidates": 7, "proposals": 3, "max_detections": 2},
        {"least_score": 0.6, "nms_iou": 0.2},
        {"mean": 0.0, "std": 1.0, "aspect_ratios": (1.0,)},
    ],
    ids=["without P2, frozen norm", "bottlenecks, many detections", "tight limits", "high threshold", "plain"],
)
def test_whatever_the_recipe_builds(changes: dict[str, object]) -> None:
    torch.manual_seed(5)
    section = SECTION.model_copy(update={"least_score": 0.0} | changes)
    detector = build_detector(section, len(CLASSES), SIDE).eval()
    for norm in detector.modules():
        if isinstance(norm, nn.BatchNorm2d) or type(norm).__name__ == "FrozenBatchNorm2d":
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.8, 1.2)
    for block in detector.backbone.fpn.layer_blocks:
        block[0].weight.div_(block[0].weight.std() * 300)  # or scores saturate, and suppression has no order to go by
    nn.init.normal_(detector.roi_heads.box_predictor.cls_score.weight, std=0.3)  # or all scores are alike
    nn.init.normal_(detector.rpn.head.cls_logits.weight, std=0.1)
    image = tiles(3, seed=2)[0]
    expected = detector(image)
    assert section.least_score > 0 or int((expected[2] > 0).sum()) > 0
    _check_sets(StaticDetector(detector)(image), expected)


@torch.no_grad()
def test_too_few_rounds_are_flagged_and_enough_of_them_are_counted(detector: Detector, hundred: Tensor) -> None:
    hundred = hundred[:40]
    first, second = iterations_needed(detector, list(hundred.split(20)))
    assert 4 < first <= 24
    assert 2 < second <= 16
    exact = StaticDetector(detector, rpn_iterations=first, detection_iterations=second)
    assert float(exact(hundred)[3].max()) == 0
    for rounds in ((first - 1, second), (first, second - 1)):
        short = StaticDetector(detector, rpn_iterations=rounds[0], detection_iterations=rounds[1])
        assert float(short(hundred)[3].max()) > 0


@torch.no_grad()
def test_candidates_that_found_no_place_are_flagged(
    detector: Detector, hundred: Tensor, expected: tuple[Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longhaul.models.static_detector._CANDIDATES", 30)
    found = StaticDetector(detector)(hundred[:30])
    wrong = (found[2] != expected[2][:30]).any(1)
    assert bool(wrong.any())
    assert bool((found[3] > 0)[wrong].all())


@torch.no_grad()
def test_half_precision_keeps_boxes_and_scores_in_float32(
    detector: Detector, hundred: Tensor, expected: tuple[Tensor, ...]
) -> None:
    static = StaticDetector(detector, precision="fp16")
    assert {weight.dtype for weight in static.backbone.parameters()} == {torch.float16}
    boxes, scores, labels, flag = static(hundred[:2])
    assert (boxes.dtype, scores.dtype, labels.dtype, flag.dtype) == (torch.float32, torch.float32, torch.int32, torch.float32)
    found = boxes[labels > 0]
    assert not torch.equal(found, found.half().float())
    best = scores[:, :2]
    torch.testing.assert_close(best, expected[1][:2, :2], atol=0.02, rtol=0)


def test_more_proposals_than_tensorrt_sorts_are_refused() -> None:
    section = SECTION.model_copy(update={"proposals": 4000})
    with pytest.raises(UserError, match=r"model\.proposals 4000.*3840"):
        StaticDetector(build_detector(section, 1, SIDE))


def test_a_backbone_that_does_not_fold_is_refused(detector: Detector) -> None:
    strange = trained_detector()
    norm = strange.backbone.body.bn1
    strange.backbone.body.bn1 = nn.Sequential(nn.ReLU(), norm)  # after an activation there is no convolution to fold into
    assert StaticDetector(strange) is not None

    class Before(nn.Module):  # registered behind the convolution, computed before it
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            nn.init.constant_(self.norm.running_mean, 2.0)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(self.norm(x).relu())
            return out

    strange.backbone.body.conv1 = nn.Sequential(Before(), strange.backbone.body.conv1)
    with pytest.raises(LonghaulError, match="changes its features"):
        StaticDetector(strange, channels=3)


LEVELS = {"three of P2 to P4": (4, 8, 16), "P2 to P5": (4, 8, 16, 32), "without P2": (8, 16), "one alone": (16,)}


@pytest.mark.parametrize("pool", ["gather", "where"])
@pytest.mark.parametrize("strides", LEVELS.values(), ids=list(LEVELS))
@pytest.mark.parametrize("side", [128, 1024])
def test_pooling_is_torchvisions_at_every_level_and_edge(strides: tuple[int, ...], side: int, pool: Pool) -> None:
    generator = torch.Generator().manual_seed(side)
    sizes = [(side // stride, side // stride) for stride in strides]
    names = [str(level) for level in range(len(sizes))]
    features = {name: torch.randn(2, 5, *size, generator=generator) for name, size in zip(names, sizes, strict=True)}
    theirs = MultiScaleRoIAlign(names, 7, 2, canonical_scale=side // 4)
    boxes = _boxes(side, generator)
    expected = theirs(features, list(boxes), [(side, side)] * 2)
    ours = PyramidRoIAlign(theirs, sizes, side, pool)
    torch.testing.assert_close(ours(list(features.values()), boxes), expected, atol=1e-5, rtol=0)
    if len(sizes) > 1:
        assert len(ours._levels(boxes).unique()) == len(sizes)


def _boxes(side: int, generator: torch.Generator) -> Tensor:
    """(2, 300, 4): all sizes, and those at the edges, without area, a hair's breadth wide, the whole tile."""
    corner = side * torch.rand(2, 300, 2, generator=generator)
    extent = side * torch.rand(2, 300, 2, generator=generator) ** 3
    boxes = torch.cat([corner, corner + extent], dim=2).clamp(0, side)
    whole, last = float(side), float(side) - 0.01
    odd = [[0, 0, whole, whole], [0, 0, 0, 0], [whole] * 4, [last, last, whole, whole], [0, 0, whole, 0.01], [5, 5, 5, 5]]
    boxes[:, : len(odd)] = torch.tensor(odd)
    boxes[:, 10:20, 2:] = boxes[:, 10:20, :2]
    return boxes


def test_a_pyramid_with_a_gap_is_refused() -> None:
    with pytest.raises(LonghaulError, match="by halves"):
        PyramidRoIAlign(MultiScaleRoIAlign(["0", "1"], 7, 2), [(32, 32), (8, 8)], 128, "gather")


def test_pooling_with_as_many_samples_as_a_box_wants_is_refused() -> None:
    with pytest.raises(LonghaulError, match="sampling_ratio"):
        PyramidRoIAlign(MultiScaleRoIAlign(["0"], 7, 0), [(32, 32)], 128, "gather")
