"""Pictures of heat maps."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from longhaul.insight.explain.heat_maps import Panel, panels_picture

_IMAGE = np.zeros((8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_title_and_note_are_whole_however_few_columns_there_are(columns: int) -> None:
    """No ink at the left and right edges, and dark letters above and below the panels."""
    row = [Panel(_IMAGE, np.ones((8, 8)), signed=True) for _ in range(columns)]
    title = "mobilenetv3_small_100-digits-20261120: mobilenetv3_small_100.lamb_in1k at 224 px"
    note = "each map explains the class named on its left; below it the answer"
    picture = panels_picture([row], ["x"] * columns, ["class 1"], title=title, note=note)
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))
    assert pixels[:, :6].min() == 255
    assert pixels[:, -6:].min() == 255
    assert pixels[-40:].min() < 150
    assert pixels[:40].min() < 50
