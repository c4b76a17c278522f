"""Suppression and merging against the rule written out with two loops, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from grid_detector import CHUNK_SAMPLES, SAMPLE_RATE_HZ, SIDE, TILES
from hypothesis import given, settings
from hypothesis import strategies as st

from longhaul.serving.detection.answers import Claim
from longhaul.serving.detection.chunk import SignalChunk
from longhaul.serving.detection.merging import ModelBoxes, emissions_of, merge, suppress
from longhaul.serving.detection.places import Places
from longhaul.signals.front_end import FrontEnd

CLASSES = ("wifi", "bluetooth", "lte")

# Small whole numbers overlap often and meet the bounds exactly, so that ">" and ">=" differ; the wild ones have all digits.
_side = st.one_of(st.integers(-3, 3).map(float), st.floats(0, 1024, width=32))
_length = st.one_of(st.sampled_from([0.0, 4.0, 5.0, 6.0, 8.0]), st.floats(0.5, 600, width=32))
_score = st.one_of(st.sampled_from([-1.0, 0.25, 0.5, 0.75, 0.9]), st.floats(0, 1, width=32))
_small = st.tuples(st.integers(-3, 3), st.integers(-1, 1), st.integers(4, 8), st.integers(4, 6), _score, st.integers(1, 3))
_box = st.one_of(_small, st.tuples(_side, _side, _length, _length, _score, st.integers(1, 3)))


def outputs(tiles: list[list[tuple]]) -> dict[str, np.ndarray]:
    """As an engine gives them: padded to the longest tile."""
    longest = max(map(len, tiles))
    boxes, scores = np.zeros((len(tiles), longest, 4), np.float32), np.full((len(tiles), longest), -1, np.float32)
    labels = np.zeros((len(tiles), longest), np.int32)
    for tile, found in enumerate(tiles):
        for number, (x, y, width, height, score, label) in enumerate(found):
            boxes[tile, number] = x, y, x + width, y + height
            scores[tile, number], labels[tile, number] = score, label
    return {"boxes": boxes, "scores": scores, "labels": labels}


def overlap(one, other) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (area - width * height) if area > width * height else 0.0


def rows(boxes: ModelBoxes) -> list[tuple]:
    return list(zip(boxes.tiles.tolist(), map(tuple, boxes.boxes.tolist()), boxes.scores.tolist(), boxes.labels, strict=True))


def naive_suppress(raw: dict[str, np.ndarray], score: float, iou: float) -> list[tuple]:
    candidates = []
    for tile in range(len(raw["scores"])):
        for number, value in enumerate(raw["scores"][tile].tolist()):
            if value > score:
                box = tuple(raw["boxes"][tile, number].astype(float).tolist())
                candidates.append((tile, box, value, CLASSES[raw["labels"][tile, number] - 1]))
    kept: list[tuple] = []
    for one in sorted(candidates, key=lambda entry: -entry[2]):
        if not any(one[0] == k[0] and one[3] == k[3] and overlap(one[1], k[1]) > iou for k in kept):
            kept.append(one)
    return kept


def naive_merge(found: dict[str, list[tuple]], iou: float, coexist: set[tuple[str, str]]) -> list[tuple]:
    everything = [(model, *row) for model, boxes in found.items() for row in boxes]
    taken: list[tuple[tuple, list[tuple]]] = []
    for one in sorted(everything, key=lambda entry: -entry[3]):
        for better, claims in taken:
            exempt = {(one[4], better[4]), (better[4], one[4])} & coexist
            if one[0] != better[0] and one[1] == better[1] and not exempt and overlap(one[2], better[2]) > iou:
                claims.append((one[0], one[4], one[3]))
                break
        else:
            taken.append((one, []))
    return [(*better, tuple(claims)) for better, claims in taken]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(_box, max_size=14), min_size=1, max_size=3), st.sampled_from([0.3, 0.5, 0.25]))
def test_suppression_is_the_rule_for_any_boxes(tiles, iou) -> None:
    raw = outputs(tiles)
    assert rows(suppress(raw, CLASSES, score=0.5, iou=iou)) == naive_suppress(raw, 0.5, iou)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.lists(_box, max_size=8), min_size=2, max_size=2), min_size=1, max_size=3),
    st.sets(st.tuples(st.sampled_from(CLASSES), st.sampled_from(CLASSES)), max_size=2),
)
def test_merging_is_the_rule_for_any_boxes(models, coexist) -> None:
    found = {f"model{i}": suppress(outputs(tiles), CLASSES, score=0.4, iou=0.5) for i, tiles in enumerate(models)}
    wanted = naive_merge({model: rows(boxes) for model, boxes in found.items()}, 0.5, coexist)
    merged = [
        (e.model, e.tile, tuple(e.box), e.score, e.label, tuple((c.model, c.label, c.score) for c in e.also))
        for e in merge(found, iou=0.5, coexist=coexist)
    ]
    assert merged == wanted


def one(label: str, score: float, box: tuple[float, float, float, float], tile: int = 0) -> ModelBoxes:
    return ModelBoxes(np.array([tile]), np.array([box], float), np.array([score]), (label,))


def test_the_better_of_two_models_stays_and_tells_the_other_ones_claim() -> None:
    found = {"a": one("wifi", 0.7, (0, 0, 10, 10)), "b": one("lte", 0.9, (0, 0, 10, 9))}
    (emission,) = merge(found, iou=0.5)
    assert (emission.model, emission.label) == ("b", "lte")
    assert emission.also == (Claim(model="a", label="wifi", score=0.7),)


def test_one_models_own_classes_are_not_merged_and_a_claim_suppresses_nobody() -> None:
    twice = ModelBoxes(np.zeros(2, int), np.array([[0, 0, 10, 10], [0, 0, 10, 10]], float), np.array([0.9, 0.8]), ("wifi", "lte"))
    assert len(merge({"a": twice}, iou=0.5)) == 2
    # the middle one goes into the first; the last overlaps the middle one alone, and stays
    chain = {f"m{i}": one("wifi", 0.9 - 0.1 * i, (3 * i, 0, 3 * i + 10, 10)) for i in range(3)}
    assert [(e.model, len(e.also)) for e in merge(chain, iou=0.5)] == [("m0", 1), ("m2", 0)]


def test_boxes_that_stick_out_of_the_tile_keep_their_class() -> None:
    raw = outputs([[(-30, -30, 20, 20, 0.9, 1), (-19, -19, 20, 20, 0.8, 2)]])
    assert len(suppress(raw, CLASSES, score=0.5, iou=0.01)) == 2


@pytest.mark.parametrize("pair", [("wifi", "bluetooth"), ("bluetooth", "wifi")])
def test_labels_that_may_coexist_are_never_merged(pair) -> None:
    found = {"a": one("wifi", 0.7, (0, 0, 10, 10)), "b": one("bluetooth", 0.9, (0, 0, 10, 10))}
    assert len(merge(found, iou=0.5)) == 1
    assert len(merge(found, iou=0.5, coexist=[pair])) == 2


def test_an_iou_of_exactly_the_bound_and_another_tile_are_no_overlap() -> None:
    half = {"a": one("wifi", 0.7, (0, 0, 10, 10)), "b": one("wifi", 0.9, (0, 0, 10, 5))}
    apart = {"a": one("wifi", 0.7, (0, 0, 10, 10)), "b": one("wifi", 0.9, (0, 0, 10, 10), tile=1)}
    assert len(merge(half, iou=0.5)) == len(merge(apart, iou=0.5)) == 2
    assert merge({}, iou=0.5) == merge({"a": suppress(outputs([[]]), CLASSES, score=0.5, iou=0.5)}, iou=0.5) == []


def test_equal_scores_go_to_the_model_that_is_first_in_the_ensemble() -> None:
    found = {"b": one("wifi", 0.7, (0, 0, 10, 10)), "a": one("wifi", 0.7, (0, 0, 10, 10))}
    assert [emission.model for emission in merge(found, iou=0.5)] == ["b"]


@pytest.mark.parametrize(
    ("box", "complaint"),
    [
        ((0, 0, 1, 1, float("nan"), 1), "not finite"),
        ((0, 0, 1, 1, float("inf"), 1), "not finite"),
        ((float("nan"), 0, 1, 1, 0.9, 1), "not finite"),
        ((0, 0, 1, 1, 1.5, 1), "a score that is none"),
        ((0, 0, 1, 1, 0.9, 4), "labels 4..4"),
        ((0, 0, 1, 1, 0.9, 0), "labels 0..0"),
    ],
)
def test_outputs_that_make_no_sense_are_refused(box, complaint) -> None:
    with pytest.raises(ValueError, match=complaint):
        suppress(outputs([[box]]), CLASSES, score=0.5, iou=0.5)


def test_a_score_that_rounding_put_above_one_is_one() -> None:
    raw = outputs([[(0, 0, 1, 1, 1.0001, 1)]])
    assert suppress(raw, CLASSES, score=0.5, iou=0.5).scores.tolist() == [1.0]


@pytest.mark.parametrize(("center_hz", "base_hz"), [(2.44e9, 2.44e9), (None, 0.0)])
@pytest.mark.parametrize("cut", [(1, 1), (2, 2)])
def test_positions_are_in_seconds_of_the_stream_and_in_hertz(center_hz, base_hz, cut) -> None:
    import torch

    front_end = FrontEnd(nfft=64, hop=32, tile=SIDE, cut=cut)
    chunk = SignalChunk(torch.zeros(CHUNK_SAMPLES, dtype=torch.complex64), SAMPLE_RATE_HZ, center_hz, start_s=3.0)
    tile = front_end.pieces - 1
    geometry = front_end.geometry(CHUNK_SAMPLES, SAMPLE_RATE_HZ, tile)
    box = geometry.corners(start=8000, count=500, low_hz=-400e3, high_hz=-350e3)
    (detection,) = Places.of(chunk, front_end).detections(emissions_of("a", one("wifi", 0.7, tuple(box), tile)))
    assert detection.start_s == pytest.approx(3.008, abs=1e-9)
    assert detection.end_s == pytest.approx(3.0085, abs=1e-9)
    assert detection.low_hz == pytest.approx(base_hz - 400e3, abs=1e-3)
    assert detection.high_hz == pytest.approx(base_hz - 350e3, abs=1e-3)
    assert detection.box_px == tuple(box)


def test_detections_come_by_start_and_then_frequency_and_a_tile_alone_has_no_times() -> None:
    import torch

    chunk = SignalChunk(torch.zeros(CHUNK_SAMPLES, dtype=torch.complex64), SAMPLE_RATE_HZ)
    boxes = [(20, 0, 30, 10), (5, 0, 15, 10), (5, 30, 15, 40)]
    emissions = [emission for box in boxes for emission in emissions_of("a", one("wifi", 0.7, box))]
    for places in (Places.of(chunk, TILES.front_end), Places()):
        assert [d.box_px[:2] for d in places.detections(emissions)] == [(5, 30), (5, 0), (20, 0)]
    (alone, *_) = Places().detections(emissions)
    assert alone.start_s is alone.end_s is alone.low_hz is alone.high_hz is None
