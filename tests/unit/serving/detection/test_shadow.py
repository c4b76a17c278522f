"""Shadow mode: what a candidate sees, that nobody waits for it, and what the report says."""

import asyncio

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from longhaul.engines.inference import Array
from longhaul.serving.detection.answers import ChunkAnswer, Detection, ModelStatus, Status
from longhaul.serving.detection.ensemble_settings import EnsembleSettings
from longhaul.serving.detection.members import Member
from longhaul.serving.detection.shadow import Shadow, ShadowReport, ShadowSettings
from longhaul.serving.detection.shadow_report import compare
from longhaul.serving.queueing.batching import DeadlinePassed

TILES = torch.zeros(1, 1, 64, 64)
CLASSES = ("wifi", "bluetooth")
Found = list[tuple[str, float, tuple[float, float, float, float]]]
TWO: Found = [("wifi", 0.9, (0, 0, 20, 20)), ("bluetooth", 0.8, (30, 30, 40, 40))]


class Runner:
    """Answers with what it is told to, after as long as it is told to."""

    def __init__(self, found: Found, error: Exception | None = None) -> None:
        self.found, self.error = found, error
        self.go = asyncio.Event()
        self.go.set()
        self.calls = 0
        self.seconds_per_sample = 0.0

    async def infer(self, samples: Tensor, *, deadline: float | None) -> dict[str, Array]:
        self.calls += 1
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return {
            "boxes": np.array([[box for _, _, box in self.found]], np.float32).reshape(1, -1, 4),
            "scores": np.array([[score for _, score, _ in self.found]], np.float32),
            "labels": np.array([[CLASSES.index(label) + 1 for label, _, _ in self.found]], np.int32),
        }

    def expected_s(self, samples: int) -> float:
        return 0.0


def settings(**changes: object) -> ShadowSettings:
    few = {"share": 1.0, "duty": 1.0, "queue": 100, "least_chunks": 10, "least_detections": 10, "least_of_class": 5}
    return ShadowSettings.model_validate(few | changes)


def shadow_of(runner: Runner, **changes: object) -> Shadow:
    return Shadow(Member("m", "2", CLASSES, runner), settings(**changes))


def detections(found: Found) -> tuple[Detection, ...]:
    return tuple(Detection(label=label, model="m", score=score, box_px=box) for label, score, box in found)


def answer(version: str = "1") -> ChunkAnswer:
    status = ModelStatus(model="m", version=version, status=Status.ON_TIME)
    return ChunkAnswer(degraded=False, seconds=0.01, models=(status,), detections=())


async def settle(shadow: Shadow) -> None:
    if shadow._worker is not None:
        await shadow._worker


def watched(
    candidate: Found, production: Found, chunks: int = 10, error: Exception | None = None, **changes: object
) -> ShadowReport:
    """The report after so many equal chunks."""

    async def run() -> ShadowReport:
        shadow = shadow_of(Runner(candidate, error), **changes)
        for _ in range(chunks):
            shadow(TILES, {"m": detections(production)}, answer())
        await settle(shadow)
        return shadow.report()

    return asyncio.run(run())


def test_a_candidate_that_finds_the_same_may_be_promoted() -> None:
    report = watched(TWO, TWO)
    assert (report.verdict, report.reasons) == ("promote", ("within all bounds on 10 chunks",))
    assert (report.model, report.production, report.candidate, report.chunks) == ("m", "1", "2", 10)
    assert (report.total.matched, report.total.only_production, report.total.only_candidate) == (20, 0, 0)
    assert report.total.mean_iou == 1.0
    assert report.total.score_difference == pytest.approx(0.0, abs=1e-6)
    assert set(report.classes) == {"wifi", "bluetooth"}


def test_before_enough_was_seen_there_is_no_verdict() -> None:
    assert watched(TWO, TWO, chunks=9).reasons == ("9 chunks so far, 10 are needed",)
    few = watched(TWO, TWO, least_detections=21)
    assert (few.verdict, few.reasons) == ("undecided", ("20 detections of production so far, 21 are needed",))


def test_what_it_misses_invents_and_misplaces_is_counted_by_label_and_keeps_production() -> None:
    candidate: Found = [("wifi", 0.7, (0, 0, 20, 14)), ("wifi", 0.9, (40, 0, 60, 20))]
    report = watched(candidate, TWO)
    assert report.verdict == "keep"
    wifi, bluetooth = report.classes["wifi"], report.classes["bluetooth"]
    assert (wifi.matched, wifi.only_production, wifi.only_candidate) == (10, 0, 10)
    assert wifi.mean_iou == pytest.approx(0.7)
    assert wifi.score_difference == pytest.approx(-0.2)
    assert (bluetooth.matched, bluetooth.only_production, bluetooth.mean_iou) == (0, 10, None)
    assert report.reasons == (
        "all labels: has 10 of production's 20 detections; the bound is 0.95",
        "all labels: 10 of its 20 detections are not production's; the bound is 0.05",
        "all labels: mean IoU 0.700; the bound is 0.8",
        "bluetooth: has 0 of production's 10 detections; the bound is 0.95",
        "wifi: 10 of its 20 detections are not production's; the bound is 0.05",
        "wifi: mean IoU 0.700; the bound is 0.8",
    )


@pytest.mark.parametrize(
    ("error", "failures", "late", "reason"),
    [
        (RuntimeError("out of memory"), 10, 0, "failed on 10 of 10 chunks; the bound is 0.001"),
        (DeadlinePassed("busy"), 0, 10, "late on 10 of 10 chunks; the bound is 0.01"),
    ],
)
def test_failing_and_being_late_count_against_it(error: Exception, failures: int, late: int, reason: str) -> None:
    report = watched(TWO, TWO, error=error)
    assert (report.chunks, report.failures, report.late) == (0, failures, late)
    assert report.verdict == "keep"
    assert report.reasons[0] == reason


def test_outputs_that_make_no_sense_are_failures() -> None:
    report = watched([("wifi", float("nan"), (0, 0, 1, 1))], TWO)
    assert (report.failures, report.chunks, report.verdict) == (10, 0, "keep")


def test_nobody_waits_for_it_and_what_it_cannot_take_is_dropped_and_counted() -> None:
    async def run() -> tuple[ShadowReport, int]:
        runner = Runner(TWO)
        runner.go.clear()
        shadow = shadow_of(runner, queue=3)
        for _ in range(10):
            shadow(TILES, {"m": detections(TWO)}, answer())  # returns at once, though the candidate hangs
            await asyncio.sleep(0)
        runner.go.set()
        await settle(shadow)
        return shadow.report(), runner.calls

    report, calls = asyncio.run(run())
    assert (report.chunks, report.dropped, calls) == (4, 6, 4)  # one in work, three waiting


def test_a_candidate_that_hangs_is_given_up() -> None:
    async def run() -> ShadowReport:
        runner = Runner(TWO)
        runner.go.clear()
        shadow = shadow_of(runner, patience_s=0.01, deadline_s=0.01)
        shadow(TILES, {"m": detections(TWO)}, answer())
        await settle(shadow)
        return shadow.report()

    report = asyncio.run(run())
    assert (report.chunks, report.late) == (0, 1)


def test_it_sees_its_share_of_the_answers_evenly() -> None:
    assert watched(TWO, TWO, chunks=100, share=0.3).chunks == 30
    assert watched(TWO, TWO, chunks=100, share=0.1).chunks == 10


def test_answers_without_productions_part_are_not_compared() -> None:
    async def run() -> ShadowReport:
        shadow = shadow_of(Runner(TWO))
        shadow(TILES, {"other": detections(TWO)}, answer())
        await settle(shadow)
        return shadow.report()

    assert asyncio.run(run()).chunks == 0


def test_another_production_version_begins_the_count_again() -> None:
    async def run() -> ShadowReport:
        runner = Runner(TWO)
        shadow = shadow_of(runner)
        for version in ("1", "1", "3"):
            shadow(TILES, {"m": detections(TWO)}, answer(version))
            await settle(shadow)
        runner.go.clear()
        for _ in range(3):
            shadow(TILES, {"m": detections(TWO)}, answer("3"))
        await asyncio.sleep(0)
        shadow(TILES, {"m": detections(TWO)}, answer("4"))  # while one is in work and two wait whose production was version 3
        runner.go.set()
        await settle(shadow)
        return shadow.report()

    report = asyncio.run(run())
    assert (report.production, report.chunks) == ("4", 1)


def test_closed_it_lets_go_of_what_waits() -> None:
    async def run() -> tuple[ShadowReport, bool]:
        runner = Runner(TWO)
        runner.go.clear()
        shadow = shadow_of(runner)
        for _ in range(3):
            shadow(TILES, {"m": detections(TWO)}, answer())
        await asyncio.sleep(0)
        await asyncio.to_thread(shadow.close)
        with pytest.raises(asyncio.CancelledError):
            await settle(shadow)
        shadow(TILES, {"m": detections(TWO)}, answer())
        return shadow.report(), not shadow._waiting

    report, empty = asyncio.run(run())
    assert (report.chunks, empty) == (0, True)


@pytest.mark.parametrize("change", [{"tile": 1}, {"label": "wifi"}, {"box_px": (6.0, 0.0, 16.0, 10.0)}])
def test_boxes_on_other_tiles_of_other_labels_or_too_far_apart_are_no_partners(change: dict[str, object]) -> None:
    (one,) = detections([("bluetooth", 0.9, (0, 0, 10, 10))])
    assert sum(tally.matched for tally in compare([one], [one], 0.5).values()) == 1
    assert sum(tally.matched for tally in compare([one], [one.model_copy(update=change)], 0.5).values()) == 0


def test_pairs_are_one_to_one_with_the_most_overlap_in_sum() -> None:
    ours = detections([("wifi", 0.9, (0, 0, 10, 10)), ("wifi", 0.9, (0, 0, 10, 13))])
    theirs = detections([("wifi", 0.8, (0, 0, 10, 12)), ("wifi", 0.8, (0, 0, 10, 19))])
    tally = compare(ours, theirs, 0.5)["wifi"]
    assert tally.matched == 2
    assert tally.overlap == pytest.approx(10 / 12 + 13 / 19)


def test_score_and_iou_are_the_ensembles_of_the_moment_that_production_answered() -> None:
    async def run() -> ShadowReport:
        runner = Runner([("wifi", 0.6, (0, 0, 20, 20)), ("wifi", 0.9, (30, 0, 50, 20))])
        shadow = Shadow(Member("m", "2", CLASSES, runner), settings(), EnsembleSettings(score=0.7))
        production = {"m": detections([("wifi", 0.9, (30, 0, 50, 14))])}
        for ensemble in (EnsembleSettings(score=0.7), EnsembleSettings(score=0.7, iou=0.8), EnsembleSettings(score=0.5)):
            shadow.ensemble = ensemble
            shadow(TILES, production, answer())
        await settle(shadow)
        return shadow.report()

    total = asyncio.run(run()).total
    assert (total.matched, total.only_production, total.only_candidate) == (2, 1, 2)
    with pytest.raises(ValidationError, match="score"):
        ShadowSettings.model_validate({"score": 0.5})


def test_a_patience_shorter_than_the_deadline_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"patience_s: 0\.1 is below deadline_s, 0\.4"):
        ShadowSettings(patience_s=0.1)
