"""From members' replies to the detections of an answer: plain computation, for a thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from longhaul.serving.detection.answers import Detection, Status
from longhaul.serving.detection.asking import Reply, story
from longhaul.serving.detection.ensemble_settings import EnsembleSettings
from longhaul.serving.detection.merging import ModelBoxes, emissions_of, merge, suppress
from longhaul.serving.detection.places import Places


@dataclass(frozen=True)
class Combined:
    """What the replies say together.

    Attributes:
        replies: as given, but a member whose outputs make no sense has failed.
        detections: of all models, each emission once.
        found: by model, before models are merged; empty unless asked for.
    """

    replies: tuple[Reply, ...]
    detections: tuple[Detection, ...] = ()
    found: Mapping[str, tuple[Detection, ...]] | None = None


def combine(replies: Sequence[Reply], settings: EnsembleSettings, places: Places, *, each: bool) -> Combined:
    """Suppress, merge, and put into time and frequency; `each` also gives every model's own detections."""
    checked: list[Reply] = []
    found: dict[str, ModelBoxes] = {}
    for reply in replies:
        if reply.outputs is not None:
            try:
                boxes = suppress(reply.outputs, reply.member.classes, score=settings.score, iou=settings.iou)
                found[reply.member.name] = boxes
            except Exception as error:  # noqa: BLE001 - outputs that make no sense are one member's failure, not the answer's
                reply = replace(reply, status=Status.FAILED, seconds=None, detail=story(error), outputs=None)
        checked.append(reply)
    detections = places.detections(merge(found, iou=settings.iou, coexist=settings.coexist))
    own = {model: places.detections(emissions_of(model, boxes)) for model, boxes in found.items()} if each else None
    return Combined(tuple(checked), detections, own)
