"""A picture of many small pictures: what a model answered, beside the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from PIL import Image

from longhaul.insight.curves import BLUE, RED, png

_COLUMNS = 10


@dataclass(frozen=True)
class Answer:
    """One picture with what was answered and what is true."""

    image: Image.Image
    answer: str
    truth: str
    probability: float


def gallery(answers: Sequence[Answer], title: str) -> bytes:
    """A PNG of up to a few dozen answers, ten a row; wrong ones are red, and say what was right."""
    rows = math.ceil(len(answers) / _COLUMNS)
    figure = Figure(figsize=(_COLUMNS * 0.95, rows * 1.25 + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False)
    for place, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if place < len(answers):
            one = answers[place]
            right = one.answer == one.truth
            axis.imshow(one.image, cmap="gray", interpolation="nearest")
            caption = f"{one.answer}  {one.probability:.0%}" if right else f"{one.answer}, not {one.truth}"
            axis.set_title(caption, fontsize=9, color=BLUE if right else RED, pad=3)
    return png(figure)
