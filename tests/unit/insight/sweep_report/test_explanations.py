"""Explanations in a report: the same question to every cell, and a word about each that cannot be shown or compared."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from longhaul.insight.explain.across import Consistency, Pair
from longhaul.insight.explain.attribution import METHODS
from longhaul.insight.explain.cell import explain_run
from longhaul.insight.explain.consistency import Agreement, Estimate
from longhaul.insight.explain.record import load_explanation
from longhaul.insight.sweep_report.cell_pages import Anatomies, write_cell
from longhaul.insight.sweep_report.cells import Cell, read_cells
from longhaul.insight.sweep_report.explanations import agreements, consistency_of, consistency_pictures
from longhaul.insight.sweep_report.gathering import fill_explanations, load_explained, to_explain
from longhaul.insight.sweep_report.tables import agreement_table
from longhaul.resilience.sweep_directory import SweepDirectory

from .conftest import ExplainedSweep, read_page


def line_of(sweep: SweepDirectory) -> list[Cell]:
    (line,) = to_explain(read_cells(sweep, sweep.state()), "max")
    return line


def test_a_report_explains_what_is_not_explained_and_compares_it(explained: ExplainedSweep) -> None:
    page = read_page(explained.page)
    assert ("explanations", 2) in explained.begun
    assert {"consistency", "heat-maps"} <= set(page.anchors)
    assert {"consistency-gradcam.png", "heat-01-simple_cnn-gradcam.png"} <= set(page.pictures)
    assert "24 with 32" in page.text
    cell = read_page(str(Path(explained.page).parent / "cnn/simple_cnn/24/index.html"))
    assert "explain.png" in cell.pictures
    first = load_explanation(explained.sweep.run(explained.sweep.state().cells[0].key))
    assert first is not None
    assert len(first.images) == 2


def test_grad_cam_looks_at_one_layer_at_all_resolutions_and_the_page_says_which(explained: ExplainedSweep) -> None:
    cells, problems = load_explained(line_of(explained.sweep))
    looked = [one.explanation.looked_at for one in cells]
    assert looked == [("features.7", 6), ("features.7", 8)]
    assert not problems
    text = read_page(explained.page).text
    assert "features.7\n6 at 24 px, 8 at 32 px\ndiffer" in text
    assert "a coarse map is compared with a finer one" in text


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _garbled(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(255 - byte for byte in data[middle : middle + 200]) + data[middle + 200 :]


def _without_images(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as whole, zipfile.ZipFile(buffer, "w") as part:
        for name in whole.namelist():
            if not name.startswith("images"):
                part.writestr(name, whole.read(name))
    return buffer.getvalue()


@pytest.mark.parametrize("damage", [_cut, _garbled, _without_images, lambda _: b"", lambda _: b"PK"])
def test_damaged_maps_cost_that_cell_its_maps_alone(own_explained: SweepDirectory, damage: Callable[[bytes], bytes]) -> None:
    line = line_of(own_explained)
    storage = own_explained.run(line[1].key).storage
    storage.write_bytes("explanation.npz", damage(storage.read_bytes("explanation.npz")))
    found, problems = load_explained(line)
    assert [one.cell.key for one in found] == [line[0].key]
    assert list(problems) == [line[1].key]
    assert problems[line[1].key][0].startswith("its heat maps cannot be read: ")


def test_what_a_user_has_explained_otherwise_is_told_and_explained_again_for_the_report(
    own_explained: SweepDirectory, digits_root: Path
) -> None:
    line = line_of(own_explained)
    assert line[1].run is not None
    explain_run(line[1].run, 2, ("gradcam",), 1)
    _, told = load_explained(line)
    assert told == {line[1].key: ["its heat maps are of other images than the rest of simple_cnn's; report with --explain"]}
    fill_explanations([line], 2, lambda: None)
    found, problems = load_explained(line)
    assert not problems
    assert [{report.method for report in one.explanation.methods} for one in found] == [set(METHODS)] * 2
    assert consistency_of(found) is not None


def test_methods_and_layers_that_a_cell_alone_lacks_are_told(own_explained: SweepDirectory, digits_root: Path) -> None:
    line = line_of(own_explained)
    assert line[1].run is not None
    explain_run(line[1].run, 2, ("gradcam", "saliency"))  # at the layer that suits this resolution alone
    found, problems = load_explained(line)
    assert len(found) == 2
    lacking, layer = (text for texts in problems.values() for text in texts)
    assert lacking.startswith("it is not explained by integrated gradients, which simple_cnn is then not shown by")
    assert layer.startswith("its Grad-CAM looks at features and not at features.7 as that of simple_cnn does")
    compared = consistency_of(found)
    assert compared is not None
    assert {pair.method for pair in compared.pairs} == {"saliency"}


def test_pictures_of_a_former_explanation_are_not_shown(own_explained: SweepDirectory) -> None:
    cell = line_of(own_explained)[0]
    assert cell.run is not None
    explanation = load_explanation(cell.run)
    assert explanation is not None
    fewer = explanation.model_copy(update={"methods": explanation.methods[:1]})
    cell.run.storage.write_bytes("explanation.json", fewer.model_dump_json().encode())
    folder = own_explained.storage.child("pages")
    _, files = write_cell(folder, cell, own_explained.state(), Anatomies([cell]))
    assert {name for name in files if name.startswith("explain")} == {"explain.png", f"explain_{METHODS[0]}.png"}


def _consistency(model: str, sides: tuple[int, ...], images: int) -> Consistency:
    one = Estimate(mean=0.6, low=0.5, high=0.7, chance=sides[-1] / 200, images=(0.6,) * images)
    agreed = Agreement(rank_correlation=one, top_iou={10: one, 20: one})
    pairs = tuple(Pair(method="saliency", low=low, high=sides[-1], agreement=agreed) for low in sides[:-1])
    names, ids = {side: f"{model}-{side}" for side in sides}, tuple(f"{i}" for i in range(images))
    return Consistency(model=model, grid=16, runs=names, images=ids, pairs=pairs)


def test_each_line_names_what_it_is_measured_against_and_has_its_own_chance() -> None:
    lines = {"tiny_cnn": _consistency("tiny_cnn", (24, 32, 48), 6), "vgg11": _consistency("vgg11", (32, 96), 12)}
    found = agreements(lines, "saliency")
    assert list(found) == ["tiny_cnn, against 48 px", "vgg11, against 96 px"]
    chances = {name: {one.rank_correlation.chance for _, one in points} for name, points in found.items()}
    assert chances == {"tiny_cnn, against 48 px": {0.24}, "vgg11, against 96 px": {0.48}}
    assert not agreements(lines, "gradcam")
    assert list(consistency_pictures(lines)) == ["saliency"]
    table = agreement_table(lines)
    assert table is not None
    images = table.heads.index("images")
    assert [row[images] for row in table.rows] == ["6", "6", "12"]
