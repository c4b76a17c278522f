"""What `make demo` is made of: recipes that fit its tiles, scores that count right, commands that end together."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import get_args

import numpy as np
import pytest

from longhaul.recipe import load
from longhaul.recipe.inputs import SpectrogramData
from longhaul.signals.scene_settings import Label
from longhaul.signals.tile_folder import Box, tile_path, write_tile

ROOT = Path(__file__).parents[2]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """`jobs/demo.py`, with its files below `tmp_path`."""
    monkeypatch.syspath_prepend(str(ROOT))
    road, module = importlib.import_module("jobs.demo_road"), importlib.import_module("jobs.demo")
    monkeypatch.setattr(road, "DEMO", tmp_path)
    monkeypatch.setattr(module, "DEMO", tmp_path)
    return module


def test_the_three_recipes_fit_the_tiles_and_cover_every_label_of_the_recording_that_is_asked_about(demo: ModuleType) -> None:
    labels: list[str] = []
    for kind, name in zip(demo.KINDS, demo.MODELS, strict=True):
        recipe = load(ROOT / demo.RECIPES / f"demo_{kind}.yaml")
        assert recipe.name == name
        assert isinstance(recipe.data, SpectrogramData)
        assert str(recipe.data.resolution) == demo.CHUNKS[demo.CHUNKS.index("--tile") + 1]
        assert recipe.scaling.workers == 1
        labels += recipe.data.classes
    assert sorted(labels) == sorted(get_args(Label))


def found(label: str, *box_px: float, score: float = 0.9) -> dict[str, object]:
    return {"label": label, "box_px": box_px, "score": score}


def test_scores_count_chunk_by_chunk_what_was_found_where_it_is(demo: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "tiles" / "unseen"
    folder.mkdir(parents=True)
    box = Box(label="wifi", x_min=10, y_min=10, x_max=30, y_max=30)
    for number, boxes in enumerate([[box], [box], []]):
        write_tile(tile_path(folder, "mixed", number), np.zeros((64, 64), np.uint8), boxes)
    answers = [[found("wifi", 11, 10, 30, 30)], [found("lte_uplink", 10, 10, 30, 30)], []]
    scores = demo._scores([{"detections": one} for one in answers])
    assert scores == {"precision": 0.5, "recall": 0.5, "f1": 0.5}


def test_a_command_that_fails_ends_the_others_and_shows_the_end_of_its_log(demo: ModuleType, tmp_path: Path) -> None:
    commands = {
        "patient": [sys.executable, "-c", "import time; time.sleep(3600)"],  # nobody waits for it
        "broken": [sys.executable, "-c", "print('out of luck'); raise SystemExit(3)"],
    }
    with pytest.raises(SystemExit, match="out of luck"):
        demo.run_together(commands, {})


def test_commands_that_succeed_leave_a_log_each(demo: ModuleType, tmp_path: Path) -> None:
    demo.run_together({name: [sys.executable, "-c", f"print('{name}')"] for name in ("one", "two")}, {})
    assert (tmp_path / "one.log").read_text() == "one\n"
    assert (tmp_path / "two.log").read_text() == "two\n"
