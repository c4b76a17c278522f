"""What runs see in a picture that is in no data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longhaul.data.pictures import open_picture
from longhaul.data.preprocess import to_rgb
from longhaul.errors import UserError
from longhaul.insight.explain.across import one_model
from longhaul.insight.explain.attribution import METHODS, Method
from longhaul.insight.explain.cell import common_layer_or_none, explain_pictures, open_subject
from longhaul.insight.explain.record import Explanation, Kept
from longhaul.resilience.run_directory import RunDirectory


def explain_file(
    runs: Sequence[RunDirectory], file: Path, methods: Sequence[Method] = METHODS, seed: int = 0
) -> tuple[list[Explanation], list[Kept]]:
    """Explain one picture by each run, ascending by resolution; nothing is written.

    All are asked about the class that the run of the highest resolution answers, so that their maps can be compared.

    Args:
        runs: finished ones with the same classes.
        file: the picture.
        methods: which.
        seed: of the sanity check.

    Raises:
        UserError: the file is missing or broken, the classes differ, the runs are of several models or two of them at one
            resolution, or as `explain_run`.
    """
    if not file.is_file():
        raise UserError(f"image {file}: no such file", "Give a PNG, JPEG or another picture")
    picture = open_picture(file, "image", to_rgb, "Give another picture")
    subjects = [open_subject(run) for run in reversed(one_model(runs))]
    layer = common_layer_or_none(runs, methods)
    found: list[tuple[Explanation, Kept]] = []
    for subject in subjects:
        if subject.test.classes != subjects[0].test.classes:
            problem = f"runs {subjects[0].run.name} and {subject.run.name}: have other classes"
            raise UserError(problem, "Give runs over the same data")
        asked = [found[0][0].images[0].target] if found else None
        found.append(explain_pictures(subject, [picture], [file.name], [None], asked, methods, seed, layer))
    return [explanation for explanation, _ in reversed(found)], [kept for _, kept in reversed(found)]
