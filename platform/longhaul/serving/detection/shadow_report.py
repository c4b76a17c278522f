"""How a candidate compares with production, and whether it may take its place: counts, bounds, and the verdict with its reasons.

Nobody knows what really was on the air. So agreement is what counts: a candidate that finds the same, as well placed, in time and
without failing may be promoted; one that differs is kept back for somebody to look at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_iou

from longhaul.serving.detection.answers import Detection

Verdict = Literal["promote", "keep", "undecided"]


class ShadowSettings(BaseModel):
    """How much a candidate sees, and what it is held to. Score and IoU are the ensemble's.

    Attributes:
        share: of the answers that production gave.
        queue: answers that wait for it; more are dropped.
        duty: the most of the time that its engine may be busy; the rest is production's.
        deadline_s: how soon it must answer, from being asked.
        patience_s: when it is given up.
        least_chunks, least_detections: compared before there is a verdict; detections are production's.
        least_found: share of production's detections that it must have, in all and of each class with `least_of_class`.
        most_extra: share of its detections that production may not have.
        least_mean_iou: of the pairs.
        most_failed, most_late: shares of what it was asked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(0.1, gt=0, le=1)
    queue: int = Field(4, ge=1)
    duty: float = Field(0.25, gt=0, le=1)
    deadline_s: float = Field(0.4, gt=0)
    patience_s: float = Field(5.0, gt=0)
    least_chunks: int = Field(200, ge=1)
    least_detections: int = Field(200, ge=1)
    least_of_class: int = Field(30, ge=1)
    least_found: float = Field(0.95, ge=0, le=1)
    most_extra: float = Field(0.05, ge=0, le=1)
    least_mean_iou: float = Field(0.8, ge=0, le=1)
    most_failed: float = Field(0.001, ge=0, le=1)
    most_late: float = Field(0.01, ge=0, le=1)

    @model_validator(mode="after")
    def _patience_outlasts_the_deadline(self) -> Self:
        if self.patience_s < self.deadline_s:
            raise ValueError(f"patience_s: {self.patience_s:g} is below deadline_s, {self.deadline_s:g}; give more")
        return self


class Agreement(BaseModel):
    """Detections of production and of the candidate, paired.

    Attributes:
        matched: pairs of the same label and tile with enough overlap.
        only_production, only_candidate: without a partner.
        mean_iou: of the pairs; None without any.
        score_difference: candidate less production, mean over the pairs; None without any.
    """

    model_config = ConfigDict(frozen=True)

    matched: int = Field(0, examples=[412])
    only_production: int = Field(0, examples=[6])
    only_candidate: int = Field(0, examples=[9])
    mean_iou: float | None = Field(None, examples=[0.93])
    score_difference: float | None = Field(None, examples=[0.004])

    @property
    def found(self) -> float:
        """Share of production's detections that the candidate has; 1 where there are none."""
        wanted = self.matched + self.only_production
        return self.matched / wanted if wanted else 1.0

    @property
    def extra(self) -> float:
        """Share of the candidate's detections that production has not; 0 where there are none."""
        given = self.matched + self.only_candidate
        return self.only_candidate / given if given else 0.0


class ShadowReport(BaseModel):
    """A candidate beside production.

    Attributes:
        model: the name of both.
        production, candidate: versions; production's is None before the first answer.
        chunks: how many were compared.
        dropped: chosen to be compared and dropped, since the candidate was busy.
        failures, late: chunks on which it failed, and on which it answered after its deadline or not at all.
        seconds: its mean time for a chunk; None before the first.
        total: all labels together.
        classes: by label.
        verdict: `promote`, `keep` (production stays), or `undecided` as long as too little was compared.
        reasons: for the verdict, one a line.
    """

    model_config = ConfigDict(frozen=True)

    model: str = Field(examples=["wifi_bluetooth"])
    production: str | None = Field(examples=["3"])
    candidate: str = Field(examples=["4"])
    chunks: int = Field(examples=[250])
    dropped: int = Field(examples=[2])
    failures: int = Field(examples=[0])
    late: int = Field(examples=[1])
    seconds: float | None = Field(examples=[0.031])
    total: Agreement
    classes: dict[str, Agreement]
    verdict: Verdict
    reasons: tuple[str, ...]


@dataclass
class Tally:
    """Running counts of one label."""

    matched: int = 0
    only_production: int = 0
    only_candidate: int = 0
    overlap: float = 0.0
    difference: float = 0.0

    def add(self, other: Tally) -> None:
        """Count what another one counted."""
        self.matched += other.matched
        self.only_production += other.only_production
        self.only_candidate += other.only_candidate
        self.overlap += other.overlap
        self.difference += other.difference

    def agreement(self) -> Agreement:
        """As the report has it."""
        some = self.matched > 0
        return Agreement(
            matched=self.matched,
            only_production=self.only_production,
            only_candidate=self.only_candidate,
            mean_iou=self.overlap / self.matched if some else None,
            score_difference=self.difference / self.matched if some else None,
        )


@dataclass
class Counts:
    """All that a report is made of."""

    chunks: int = 0
    dropped: int = 0
    failures: int = 0
    late: int = 0
    on_time: int = 0
    seconds: float = 0.0
    labels: dict[str, Tally] = field(default_factory=dict)

    def report(self, model: str, production: str | None, candidate: str, settings: ShadowSettings) -> ShadowReport:
        """What was counted, and what follows from it."""
        whole = Tally()
        for tally in self.labels.values():
            whole.add(tally)
        total = whole.agreement()
        classes = {label: self.labels[label].agreement() for label in sorted(self.labels)}
        verdict, reasons = self._verdict(total, classes, settings)
        return ShadowReport(
            model=model,
            production=production,
            candidate=candidate,
            chunks=self.chunks,
            dropped=self.dropped,
            failures=self.failures,
            late=self.late,
            seconds=self.seconds / self.chunks if self.chunks else None,
            total=total,
            classes=classes,
            verdict=verdict,
            reasons=tuple(reasons),
        )

    def _verdict(self, total: Agreement, classes: dict[str, Agreement], settings: ShadowSettings) -> tuple[Verdict, list[str]]:
        asked = self.on_time + self.failures + self.late
        wanted = total.matched + total.only_production
        if asked < settings.least_chunks:
            return "undecided", [f"{asked} chunks so far, {settings.least_chunks} are needed"]
        against = [
            *_above(f"failed on {self.failures} of {asked} chunks", self.failures / asked, settings.most_failed),
            *_above(f"late on {self.late} of {asked} chunks", self.late / asked, settings.most_late),
        ]
        if wanted < settings.least_detections and not against:
            return "undecided", [f"{wanted} detections of production so far, {settings.least_detections} are needed"]
        against += _disagreement("all labels", total, settings)
        for label, one in classes.items():
            if one.matched + one.only_production >= settings.least_of_class:
                against += _disagreement(label, one, settings)
        return ("keep", against) if against else ("promote", [f"within all bounds on {self.chunks} chunks"])


def compare(production: Sequence[Detection], candidate: Sequence[Detection], least_iou: float) -> dict[str, Tally]:
    """Pair the detections of a chunk and count, by label: same label and tile, the most overlap in sum, one to one.

    Symbols wrapped: `torchvision.ops.box_iou`, `scipy.optimize.linear_sum_assignment`.
    """
    tallies = {one.label: Tally() for one in (*production, *candidate)}
    for label, tally in tallies.items():
        ours, theirs = ([one for one in side if one.label == label] for side in (production, candidate))
        if ours and theirs:
            overlap = _overlaps(ours, theirs)
            overlap[overlap < least_iou] = 0.0
            for row, column in zip(*linear_sum_assignment(overlap, maximize=True), strict=True):
                if overlap[row, column] > 0:
                    tally.matched += 1
                    tally.overlap += float(overlap[row, column])
                    tally.difference += theirs[column].score - ours[row].score
        tally.only_production, tally.only_candidate = len(ours) - tally.matched, len(theirs) - tally.matched
    return tallies


def _overlaps(ours: Sequence[Detection], theirs: Sequence[Detection]) -> NDArray[np.float64]:
    boxes = [torch.tensor([one.box_px for one in side], dtype=torch.float64) for side in (ours, theirs)]
    tiles = [np.array([one.tile for one in side]) for side in (ours, theirs)]
    same = tiles[0][:, None] == tiles[1][None]
    return np.where(same, box_iou(boxes[0], boxes[1]).nan_to_num(0.0).numpy(), 0.0)


def _disagreement(who: str, one: Agreement, settings: ShadowSettings) -> list[str]:
    wanted, given = one.matched + one.only_production, one.matched + one.only_candidate
    reasons = [
        *_below(f"{who}: has {one.matched} of production's {wanted} detections", one.found, settings.least_found),
        *_above(f"{who}: {one.only_candidate} of its {given} detections are not production's", one.extra, settings.most_extra),
    ]
    if one.mean_iou is not None:
        reasons += _below(f"{who}: mean IoU {one.mean_iou:.3f}", one.mean_iou, settings.least_mean_iou)
    return reasons


def _above(what: str, value: float, most: float) -> list[str]:
    return [f"{what}; the bound is {most:g}"] if value > most else []


def _below(what: str, value: float, least: float) -> list[str]:
    return [f"{what}; the bound is {least:g}"] if value < least else []
