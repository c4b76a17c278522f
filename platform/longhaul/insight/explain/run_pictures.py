"""The pictures of one run's explanation: its images beside the maps of every method, and of each alone."""

from __future__ import annotations

import numpy as np

from longhaul.insight.explain.attribution import SIGNED, Method
from longhaul.insight.explain.heat_maps import Panel, caption, panels_picture
from longhaul.insight.explain.record import Explanation, Kept

TITLES: dict[Method, str] = {
    "gradcam": "Grad-CAM",
    "integrated_gradients": "integrated gradients",
    "saliency": "saliency",
}


def draw(explanation: Explanation, kept: Kept) -> dict[str, bytes]:
    """PNG files by name: all methods side by side, and each alone beside the images."""
    title = f"{explanation.run}: {explanation.model} at {explanation.resolution} px"
    columns: dict[str, list[Method]] = {"explain": explanation.usable}
    columns |= {f"explain_{method}": [method] for method in explanation.usable}
    pictures = {}
    for name, methods in columns.items():
        rows = [[image_panel(explanation, kept, i), *(heat_panel(kept, i, m) for m in methods)] for i in range(len(kept.images))]
        heads = ["answer", *(TITLES[method] for method in methods)]
        names = [f"class {explanation.classes[image.target]}" for image in explanation.images]
        note = "each map explains the class named on its left"
        pictures[f"{name}.png"] = panels_picture(rows, heads, names, title=title, note=note)
    return pictures


def image_panel(explanation: Explanation, kept: Kept, place: int) -> Panel:
    """The image, with what was answered."""
    return Panel(kept.images[place], caption=answer_caption(explanation, place), right=is_right(explanation, place))


def heat_panel(kept: Kept, place: int, method: Method) -> Panel:
    """The image with a map over it."""
    return Panel(kept.images[place], kept.shown[method][place].astype(np.float32), method in SIGNED)


def answer_caption(explanation: Explanation, place: int) -> str:
    """What the model says of an image."""
    image, classes = explanation.images[place], explanation.classes
    return caption(classes[image.answer], None if image.label is None else classes[image.label], image.probability)


def is_right(explanation: Explanation, place: int) -> bool | None:
    """Whether it says the truth; None where that is not known."""
    image = explanation.images[place]
    return None if image.label is None else image.answer == image.label
