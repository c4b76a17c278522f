"""The page of a sweep: complete, well-formed, safe, and still there when something is damaged."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import boto3
import pytest
from PIL import Image
from sweep_maker import Ends, make_grid, make_search

from longhaul.errors import IntegrityError
from longhaul.insight.sweep_report.blocks import damage
from longhaul.insight.sweep_report.cells import read_cells
from longhaul.insight.sweep_report.page import facts
from longhaul.insight.sweep_report.report import write_report
from longhaul.resilience.sweep_directory import SweepDirectory
from longhaul.storage import Storage

from .conftest import NOTHING_MORE, SMALL, ExplainedSweep, read_page, write_lineage

PLANNED: Ends = {(model, 32): ("planned", None) for model in SMALL}


def test_the_page_needs_no_script_and_nothing_but_the_files_beside_it(reported: str) -> None:
    page = read_page(reported)
    assert page.tags.isdisjoint({"script", "link", "iframe"})
    assert not [link for link in [*page.links, *page.pictures] if ":" in link or link.startswith("/")]
    assert "url(" not in Path(reported).read_text(encoding="utf-8")


def test_every_link_and_picture_of_every_page_leads_somewhere_and_no_picture_is_stretched(
    reported: str, explained: ExplainedSweep
) -> None:
    for address in (reported, explained.page):
        pages = list(Path(address).parent.rglob("index.html"))
        assert len(pages) > 2
        for path in pages:
            page = read_page(str(path))  # it looks for what the page leads to
            assert not page.untold
            for name, (width, height) in page.sizes.items():
                with Image.open(path.parent / name) as image:
                    assert width / height == pytest.approx(image.width / image.height, rel=0.01)
                    assert width <= image.width  # nor blown up


def test_every_section_of_a_grid_is_there_with_its_pictures(reported: str) -> None:
    page = read_page(reported)
    assert {"what", "cells", "resolution", "fronts", "confusion", "learning"} <= set(page.anchors)
    families = ("vgg", "resnet", "cnn")
    wanted = {"resolution.png", "front-latency.png", "front-operations.png", "learning.png", "confusion-best.png"}
    assert set(page.pictures) == wanted | {f"confusion-{family}.png" for family in families}


def test_the_page_says_how_every_cell_stands_and_why(reported: str) -> None:
    text = read_page(reported).text
    assert "8: 4 finished, 1 stopped, 1 skipped, 1 failed, 1 planned" in text
    assert "RuntimeError: CUDA out of memory <at layer 3>" in text
    assert "resnet18 64 px: ASHA: below the best third at epoch 3" in text
    assert "budget.hours 0.4 is spent; 1 cell waits" in text


def test_the_training_that_was_spared_is_counted(reported: str) -> None:
    state = SweepDirectory.open(str(Path(reported).parents[2]), "grid").state()
    shares = {"finished": 1, "stopped": 3 / 8, "failed": 1 / 8, "skipped": 0, "planned": 0}
    costs = [(cell.cost or 0, shares[cell.standing]) for cell in state.cells]
    share = sum(cost * part for cost, part in costs) / sum(cost for cost, _ in costs)
    assert f"{100 * share:.1f} % of the" in read_page(reported).text


def test_a_sweep_that_took_over_cells_trained_before_says_so_of_their_time_and_of_their_operations(tmp_path: Path) -> None:
    sweep = make_grid(str(tmp_path), models=("tiny_cnn",), resolutions=(32,), ends={})
    state = sweep.state()
    state.cells[0].seconds = 0.0
    sweep.save_state(state)
    address = write_report(sweep, NOTHING_MORE)
    text = read_page(address).text
    assert "25 min 12 s that the sweep has run; its cells had been trained before" in text
    assert "all cells take trained to their ends, all of them before this sweep" in text
    assert "144 (8 epochs)" in read_page(str(Path(address).parent / "cnn/tiny_cnn/32/index.html")).texts


def test_of_operations_those_of_cells_that_were_taken_over_are_told_apart(tmp_path: Path) -> None:
    sweep = make_grid(str(tmp_path), models=SMALL, resolutions=(32,), ends={})
    state = sweep.state()
    taken, own = state.cells
    taken.seconds, taken.cost, own.cost = 0.0, 1e9, 3e9
    cells = read_cells(sweep, state)
    assert dict(facts(cells, state, None, []))["training operations"] == (
        "4e+09 spent, 100.0 % of the 4e+09 that all cells take trained to their ends, 1e+09 of them before this sweep"
    )
    taken.begun = True  # by this sweep; its seconds are not known
    assert "before" not in dict(facts(cells, state, None, []))["training operations"]


def test_the_model_stays_in_sight_when_the_table_is_moved_sideways(reported: str) -> None:
    text = Path(reported).read_text(encoding="utf-8")
    assert text.count('<th scope="col" class="left key">model') == 1
    assert text.count('<td class="left key"><a href=') == 8


def test_every_cell_has_a_folder_of_its_own_under_family_model_and_resolution(reported: str) -> None:
    report = Path(reported).parent
    cell = json.loads((report / "resnet/resnet18/32/cell.json").read_text(encoding="utf-8"))
    assert (cell["coordinates"], cell["standing"]) == ({"model.name": "resnet18", "data.resolution": 32}, "finished")
    page = read_page(str(report / "resnet/resnet18/32/index.html"))
    assert "../../../index.html" in page.links
    assert set(page.pictures) == {"curves.png", "confusion.png"}
    assert not read_page(str(report / "vgg/vgg11/64/index.html")).pictures  # skipped


def test_what_comes_from_recipes_and_notes_is_shown_and_not_run(tmp_path: Path) -> None:
    small_grid = make_grid(str(tmp_path / "runs"), models=SMALL, resolutions=(32,), ends=PLANNED)
    state = small_grid.state()
    state.notes = ["<script>alert(1)</script>"]
    state.cells[0].reason = '"><img src=x onerror=alert(1)>'
    state.cells[0].coordinates["model.name"] = "<b>net</b>" + "/.." * 5
    state.cells[0].recipe = "no: [recipe"
    small_grid.save_state(state)
    small_grid.storage.write_bytes("sweep.yaml", b"<i>: [")
    small_grid.storage.write_bytes("population/lineage.json", b'{"members": "<b>"}')
    page = read_page(write_report(small_grid, NOTHING_MORE))
    assert page.tags.isdisjoint({"script", "b", "i"})
    assert "what was asked for cannot be read" in page.text
    assert "population: its course cannot be read" in page.text
    assert "<script>alert(1)</script>" in page.text
    assert '"><img src=x onerror=alert(1)>' in page.text
    written = {path.resolve() for path in Path(small_grid.storage.root).parent.rglob("*") if path.name == "cell.json"}
    assert all(Path(small_grid.storage.path("report")) in path.parents for path in written)


def test_damaged_cells_are_told_and_do_not_end_the_report(own_explained: SweepDirectory) -> None:
    first, second = own_explained.state().cells
    damaged = {"metrics": first, "events": first, "summary": second, "profile": second}
    for what, cell in damaged.items():
        storage = own_explained.run(cell.key).storage
        files = [f"{what}/{part}" for part in storage.files(what)] or [f"{what}.json"]
        for file in files:
            storage.write_bytes(file, b"not what was written")
    own_explained.run(second.key).storage.write_bytes("explanation.npz", b"")
    page = read_page(write_report(own_explained, NOTHING_MORE))
    for what, cell in [*damaged.items(), ("heat maps", second)]:
        assert f"simple_cnn {cell.coordinates['data.resolution']} px: its {what} cannot be read" in page.text
    assert "2: 2 finished" in page.text
    assert {"front-latency.png", "learning.png", "confusion-cnn.png"} <= set(page.pictures)


def test_damaged_pictures_of_an_explanation_are_told_on_both_pages_and_left_out(own_explained: SweepDirectory) -> None:
    storage = own_explained.run(own_explained.state().cells[0].key).storage
    whole = storage.read_bytes("pictures/explain_saliency.png")
    damaged = {"explain.png": b"", "explain_saliency.png": whole[: len(whole) // 2]}
    for name, data in damaged.items():
        storage.write_bytes(f"pictures/{name}", data)
    for _ in range(2):  # what an earlier report has told is told again
        address = write_report(own_explained, NOTHING_MORE)
        page, cell = read_page(address), read_page(str(Path(address).parent / "cnn/simple_cnn/24/index.html"))
        for name in damaged:
            assert f"simple_cnn 24 px: its picture {name} cannot be read: " in page.text
            assert f"its picture {name} cannot be read: " in cell.text
            assert name not in [*cell.pictures, *cell.links]
        assert "explain_gradcam.png" in cell.links


def test_wherever_a_picture_ends_too_early_or_is_altered_its_damage_is_found() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3)).save(buffer, "PNG")
    data = buffer.getvalue()
    assert damage(data) is None
    for place in range(data.index(b"IEND") - 4):  # the last part holds nothing
        assert damage(data[:place])
        assert damage(data[:place] + bytes([255 - data[place]]) + data[place + 1 :])


def test_a_damaged_state_is_refused_before_anything_is_written(small_grid: SweepDirectory) -> None:
    small_grid.storage.write_bytes("sweep.json", b"{")
    with pytest.raises(IntegrityError, match=r"sweep\.json"):
        write_report(small_grid, NOTHING_MORE)
    assert not small_grid.storage.exists("report")


def test_a_sweep_of_which_nothing_is_trained_yet_has_a_report(tmp_path: Path) -> None:
    page = read_page(write_report(make_grid(str(tmp_path), models=SMALL, resolutions=(32,), ends=PLANNED), NOTHING_MORE))
    assert "2: 2 planned" in page.text
    assert not page.pictures


def test_a_search_shows_what_it_varied_and_how_it_went(tmp_path: Path) -> None:
    sweep = make_search(str(tmp_path), trials=3)
    write_lineage(sweep)
    page = read_page(write_report(sweep, NOTHING_MORE))
    assert {"fields.png", "trials.png", "learning.png", "population.png"} <= set(page.pictures)
    assert "3 members, compared every few epochs. 2 times one of the worst went on" in page.text
    assert "resolution.png" not in page.pictures
    assert "tpe search over training.optimizer.lr, model.drop_rate, data.augment, training.global_batch: 3 trials" in page.text
    assert "trial 3: ASHA: below the best third at epoch 3" in page.text
    assert len([link for link in page.links if link.startswith("cells/tiny_cnn-32-")]) == 3


def test_folds_are_shown_with_their_mean_and_deviation(tmp_path: Path) -> None:
    sweep = make_grid(str(tmp_path), models=("tiny_cnn",), resolutions=(32,), ends={}, folds=3)
    page = read_page(write_report(sweep, NOTHING_MORE))
    assert "folds" in page.anchors
    assert "3 of 3" in page.text
    assert "87.06 ± 0.40" in page.text  # 0.004 from fold to fold: a standard deviation of 0.4 points
    assert len({link for link in page.links if link.startswith("cnn/tiny_cnn/32/")}) == 3


def test_the_table_holds_all_cells_in_full(reported: str) -> None:
    with (Path(reported).parent / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    scores = [float(row["val/top1"]) for row in rows if row["val/top1"]]
    assert scores == sorted(scores, reverse=True)
    skipped = next(row for row in rows if row["standing"] == "skipped")
    assert (skipped["model"], skipped["resolution_px"], skipped["test/f1"]) == ("vgg11", "64", "")
    assert skipped["reason"].startswith("its chance to beat")


def test_a_second_report_leaves_unchanged_cells_alone_and_clears_what_is_no_more(tmp_path: Path) -> None:
    ends: Ends = {(model, side): ("planned", None) for model in SMALL for side in (32, 64) if (model, side) != ("simple_cnn", 32)}
    sweep = make_grid(str(tmp_path / "runs"), models=SMALL, resolutions=(32, 64), ends=ends)
    write_report(sweep, NOTHING_MORE)
    report = Path(sweep.storage.path("report"))
    (report / "mine.txt").write_text("of a person", encoding="utf-8")
    listed = json.loads((report / "files.json").read_text(encoding="utf-8"))
    listed += ["../sweep.yaml", "cnn/../../sweep.yaml", str(tmp_path / "other.txt")]  # as somebody else may have written it
    (report / "files.json").write_text(json.dumps(listed), encoding="utf-8")
    (tmp_path / "other.txt").touch()
    before = (report / "cnn/simple_cnn/32/curves.png").stat().st_mtime_ns
    state = sweep.state()
    gone = state.cells.pop()
    state.cells[1].score = 0.5
    sweep.save_state(state)
    changed = (report / "cnn/simple_cnn/64/cell.json").stat().st_mtime_ns
    write_report(sweep, NOTHING_MORE)
    assert (report / "cnn/simple_cnn/32/curves.png").stat().st_mtime_ns == before
    assert (report / "cnn/simple_cnn/64/cell.json").stat().st_mtime_ns > changed
    assert gone.coordinates == {"model.name": "tiny_cnn", "data.resolution": 64}
    assert not list((report / "cnn/tiny_cnn/64").iterdir())
    assert all(path.exists() for path in (report / "mine.txt", report.parent / "sweep.yaml", tmp_path / "other.txt"))


def test_a_report_is_written_to_s3(s3_server: str) -> None:
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket="sweeps")
    ends: Ends = {("tiny_cnn", 32): ("failed", "RuntimeError")}  # with a curve to draw, and little else
    sweep = make_grid("s3://sweeps/all", models=("tiny_cnn",), resolutions=(32,), ends=ends)
    assert write_report(sweep, NOTHING_MORE) == "s3://sweeps/all/grid/report/index.html"
    report = Storage.open("s3://sweeps/all/grid/report")
    assert b"tiny_cnn" in report.read_bytes("index.html")
    assert {"table.csv", "learning.png", "cnn/tiny_cnn/32/cell.json"} <= set(report.files())
