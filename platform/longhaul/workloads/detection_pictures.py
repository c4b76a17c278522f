"""Detections beside the truth, drawn on a few tiles."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from longhaul.workloads.detection_metrics import Boxes

# Okabe and Ito, "Color Universal Design" (2008): told apart with any colour vision.
_COLOURS = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66), (213, 94, 0), (0, 114, 178))
_PANEL, _GAP, _LINE, _HEAD = 384, 12, 22, 64
_INK, _GREY = (30, 30, 30), (110, 110, 110)


def beside_truth(tiles: Sequence[tuple[str, Tensor, Boxes, Boxes]], classes: Sequence[str], *, title: str, score: float) -> bytes:
    """A PNG with a row of two panels a tile: the truth on the left, the detections with their scores on the right.

    Args:
        tiles: name, grey levels (1, T, T) in 0..1, true boxes, detections.
        classes: names of the labels 1, 2, ...
        title: over all.
        score: detections below it are left out.
    """
    width = 2 * _PANEL + 3 * _GAP
    height = _HEAD + len(tiles) * (_PANEL + _LINE + _GAP)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, 10), title, fill=_INK, font=ImageFont.load_default(18))
    at = float(_GAP)
    for number, name in enumerate(classes):
        pen.rectangle((at, 42, at + 12, 54), fill=_COLOURS[number % len(_COLOURS)])
        pen.text((at + 18, 39), name, fill=_INK, font=ImageFont.load_default(14))
        at += 34 + pen.textlength(name, font=ImageFont.load_default(14))
    for row, (name, image, truth, found) in enumerate(tiles):
        top = _HEAD + row * (_PANEL + _LINE + _GAP)
        sure = found["scores"] >= score
        kept = {key: value[sure] for key, value in found.items()}
        texts = (f"{name}: {len(truth['boxes'])} true", f"{len(kept['boxes'])} detected with at least {score:g}")
        for column, (boxes, text) in enumerate(zip((truth, kept), texts, strict=True)):
            left = _GAP + column * (_PANEL + _GAP)
            pen.text((left, top), text, fill=_GREY, font=ImageFont.load_default(13))
            sheet.paste(_panel(image, boxes), (left, top + _LINE))
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def _panel(image: Tensor, boxes: Boxes) -> Image.Image:
    side = image.shape[-1]
    grey = (image[0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    panel = Image.fromarray(grey).resize((_PANEL, _PANEL), Image.Resampling.BILINEAR).convert("RGB")
    pen = ImageDraw.Draw(panel)
    scores = boxes.get("scores")
    for place, (box, label) in enumerate(zip(boxes["boxes"].tolist(), boxes["labels"].tolist(), strict=True)):
        colour = _COLOURS[(label - 1) % len(_COLOURS)]
        x_min, y_min, x_max, y_max = (value * _PANEL / side for value in box)
        pen.rectangle((x_min, y_min, max(x_max - 1, x_min), max(y_max - 1, y_min)), outline=colour, width=2)
        if scores is not None:
            where = (x_min + 2, y_min - 12 if y_min >= 12 else y_min + 2)
            pen.text(where, f"{float(scores[place]):.2f}", fill=colour, font=ImageFont.load_default(11))
    return panel
