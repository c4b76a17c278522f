"""Precision, recall, F1 and average precision against numbers worked out by hand, and against torchmetrics."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.detection import MeanAveragePrecision

from longhaul.workloads.detection_metrics import AveragePrecision, Boxes, ThresholdScores, matches


def _boxes(rows: list[tuple[float, float, float, float]], labels: list[int], scores: list[float] | None = None) -> Boxes:
    found = {"boxes": torch.tensor(rows).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}
    return found if scores is None else {**found, "scores": torch.tensor(scores)}


TRUTH = _boxes([(0, 0, 10, 10), (20, 20, 30, 40)], [1, 2])


def test_scores_by_hand() -> None:
    """Of two true boxes one is found, once; a second box on it, one of the wrong class and one elsewhere are wrong."""
    given = _boxes(
        [(0, 0, 10, 10), (0, 0, 10, 9), (20, 20, 30, 40), (50, 50, 60, 60), (20, 20, 30, 40)],
        [1, 1, 1, 2, 2],
        [0.9, 0.8, 0.7, 0.6, 0.4],  # the right one of class 2 is not sure enough
    )
    metric = ThresholdScores(0.5, 0.5)
    metric.update([given], [TRUTH])
    values = {name: float(value) for name, value in metric.compute().items()}
    assert values == pytest.approx({"precision": 1 / 4, "recall": 1 / 2, "f1": 2 / 6})


def test_the_best_scored_detection_chooses_first() -> None:
    boxes = torch.tensor([(0.0, 0, 10, 8), (0.0, 0, 10, 10)])
    labels, scores = torch.tensor([1, 1]), torch.tensor([0.6, 0.9])
    assert matches(boxes, labels, scores, TRUTH, 0.5).tolist() == [-1, 0]


def test_overlap_exactly_at_the_threshold_counts() -> None:
    boxes = torch.tensor([(0.0, 0, 10, 5)])  # IoU 0.5
    assert matches(boxes, torch.tensor([1]), torch.tensor([0.9]), TRUTH, 0.5).tolist() == [0]
    assert matches(boxes, torch.tensor([1]), torch.tensor([0.9]), TRUTH, 0.5001).tolist() == [-1]


def test_nothing_given_and_nothing_there_are_zero_and_not_nan() -> None:
    for given, truth in ((_boxes([], [], []), TRUTH), (_boxes([(0, 0, 1, 1)], [1], [0.9]), _boxes([], []))):
        metric = ThresholdScores(0.5, 0.5)
        metric.update([given], [truth])
        assert {float(value) for value in metric.compute().values()} == {0.0}
        average = AveragePrecision(2, 100)
        average.update([given], [truth])
        values = average.compute()
        assert float(values["map"]) == float(values["map50"]) == 0.0
        assert values["pr_curves"].shape == (2, 101)


def test_average_precision_is_torchmetrics_own_and_the_curves_are_its_area() -> None:
    generator = torch.Generator().manual_seed(0)
    average, own = AveragePrecision(2, 100), MeanAveragePrecision(backend="pycocotools")
    for _ in range(8):
        corner = torch.rand(6, 2, generator=generator) * 80
        truth_boxes = torch.cat([corner, corner + 5 + 20 * torch.rand(6, 2, generator=generator)], 1)
        truth = {"boxes": truth_boxes, "labels": torch.randint(1, 3, (6,), generator=generator)}
        noise = 3 * torch.randn(6, 4, generator=generator)
        given = {"boxes": truth_boxes + noise, "labels": truth["labels"], "scores": torch.rand(6, generator=generator)}
        average.update([given], [truth])
        own.update([given], [truth])
    mine, theirs = average.compute(), own.compute()
    assert float(mine["map"]) == pytest.approx(float(theirs["map"]), abs=1e-6)
    assert 0.1 < float(mine["map50"]) < 1.0
    assert float(mine["pr_curves"].mean()) == pytest.approx(float(theirs["map_50"]), abs=1e-6)


def test_a_class_that_is_not_there_has_a_curve_of_zeros() -> None:
    average = AveragePrecision(3, 100)
    average.update([_boxes([(0, 0, 10, 10)], [1], [0.9])], [_boxes([(0, 0, 10, 10)], [1])])
    curves = average.compute()["pr_curves"]
    assert curves[0].min() == 1.0
    assert curves[1:].max() == 0.0
