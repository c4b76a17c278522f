"""What makes a cell train again: a change of code that decides numbers, and nothing else."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import longhaul
from longhaul.recipe import Recipe, parse
from longhaul.tuning.cells.code_version import CodeVersion, Sources, changed, code_version

CLASSIFIER = """
name: cell
model: {{name: {model}}}
data: {{kind: digits, resolution: 32}}
training: {{epochs: 2, engine: {engine}}}
"""
DETECTOR = """
name: cell
workload: {kind: detection}
model: {name: fasterrcnn_resnet18_fpn}
data: {kind: spectrograms, root: /data, classes: [wifi]}
training: {epochs: 2}
export: {batches: [1]}
"""


def _recipe(model: str = "resnet18", engine: str = "torch") -> Recipe:
    return parse(CLASSIFIER.format(model=model, engine=engine), source="test")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package's sources, to be edited."""
    ignored = shutil.ignore_patterns("__pycache__", "serving", "console", "drill", "cluster")
    return Path(shutil.copytree(Path(longhaul.__file__).parent, tmp_path / "longhaul", ignore=ignored))


def _edited(package: Path, file: str, edit: Callable[[str], str]) -> CodeVersion:
    path = package / file
    text = path.read_text()
    assert edit(text) != text
    path.write_text(edit(text))
    return code_version(_recipe(), Sources(package))


def test_the_closure_holds_what_decides_numbers_and_no_more() -> None:
    modules = set(code_version(_recipe()).modules)
    rooms = {
        "data": ("loader", "order", "samples", "images", "digits", "preprocess", "subset"),
        "models": ("zoo",),
        "training": ("loop", "schedule", "evaluation", "phases", "course"),
        "training.engine": ("optimizer", "torch_engine"),
        "training.checkpoints": ("randomness",),
        "training.recovery": ("memory",),
        "workloads": ("base", "classification"),
    }
    assert {f"longhaul.{room}.{module}" for room, names in rooms.items() for module in names} <= modules
    absent = (
        "training.record.record",
        "training.record.trackers",
        "training.engine.deepspeed_engine",
        "workloads.detection",
        "models.faster_rcnn",
    )
    assert modules.isdisjoint(f"longhaul.{module}" for module in (*absent, "data.cifar10", "models.small_cnns", "errors"))
    assert {name.split(".")[1] for name in modules} <= {"data", "models", "signals", "workloads", "training", "recipe"}
    assert {name for name in modules if ".recipe" in name} == {"longhaul.recipe.duration", "longhaul.recipe.phases"}


def test_a_detector_depends_on_its_own_modules() -> None:
    modules = set(code_version(parse(DETECTOR, source="test")).modules)
    wanted = (
        "workloads.detection",
        "workloads.detection_metrics",
        "models.faster_rcnn",
        "data.spectrograms",
        "signals.tile_folder",
    )
    assert {f"longhaul.{module}" for module in wanted} <= modules
    assert modules.isdisjoint(f"longhaul.{module}" for module in ("workloads.classification", "models.static_detector"))


def test_deepspeed_counts_where_it_is_used() -> None:
    plain, sharded = code_version(_recipe()), code_version(_recipe(engine="zero1"))
    assert "deepspeed" not in plain.libraries
    assert "deepspeed" in sharded.libraries
    assert "longhaul.training.engine.deepspeed_engine" in sharded.modules


def test_comments_docstrings_and_layout_change_nothing(package: Path) -> None:
    before = code_version(_recipe(), Sources(package))
    for file in ("data/order.py", "training/loop.py", "recipe/schema.py", "training/record/record.py"):
        path = package / file
        lines = path.read_text().replace('"""', '"""Other words. ', 1).splitlines()
        path.write_text("# a comment\n" + "\n\n".join(lines[:1]) + "\n" + "\n".join(f"{line}  " for line in lines[1:]) + "\n")
    assert code_version(_recipe(), Sources(package)) == before


def test_a_constant_an_operator_and_a_default_change_it(package: Path) -> None:
    before = code_version(_recipe(), Sources(package))
    after = _edited(package, "data/preprocess.py", lambda text: text + "\n_NEW = 1\n")
    assert after.sha256 != before.sha256
    assert changed(before, after) == ["longhaul.data.preprocess"]
    again = _edited(package, "data/preprocess.py", lambda text: text.replace("_NEW = 1\n", "_NEW = 1.0\n"))
    assert again.sha256 != after.sha256


def test_what_only_records_changes_nothing(package: Path) -> None:
    before = code_version(_recipe(), Sources(package))
    assert _edited(package, "training/record/record.py", lambda text: text + "\n_NEW = 1\n") == before
    assert _edited(package, "resilience/checkpoint.py", lambda text: text + "\n_NEW = 1\n") == before


def test_one_network_s_code_does_not_touch_another_s_cells(package: Path) -> None:
    own = code_version(_recipe("tiny_cnn"), Sources(package))
    timm = code_version(_recipe(), Sources(package))
    assert "longhaul.models.small_cnns" in own.modules
    assert _edited(package, "models/small_cnns.py", lambda text: text.replace("MaxPool2d(2)", "MaxPool2d(3)")) == timm
    assert changed(own, code_version(_recipe("tiny_cnn"), Sources(package))) == ["longhaul.models.small_cnns"]


def test_an_import_within_a_function_counts_and_one_for_types_does_not(package: Path) -> None:
    (package / "data" / "late.py").write_text("VALUE = 1\n")
    late = "\n\ndef _late():\n    from longhaul.data import late\n    return late.VALUE\n"
    assert "longhaul.data.late" in _edited(package, "data/order.py", lambda text: text + late).modules
    typed = "\nif TYPE_CHECKING:\n    from longhaul.data.late import VALUE\n"
    assert "longhaul.data.late" not in _edited(package, "data/order.py", lambda text: text.replace(late, typed)).modules
    relative = "\nfrom .late import VALUE\n"
    assert "longhaul.data.late" in _edited(package, "data/order.py", lambda text: text.replace(typed, relative)).modules


def test_without_sources_the_package_s_version_stands_for_them(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "longhaul.zip", "w") as archive:
        archive.writestr("longhaul/__init__.py", "")
    found = code_version(_recipe(), Sources(tmp_path / "longhaul.zip" / "longhaul"))
    assert found.modules == {"longhaul": longhaul.__version__}


def test_libraries_are_told_without_local_part_and_their_change_is_named() -> None:
    now = code_version(_recipe())
    assert set(now.libraries) == {"torch", "torchvision", "timm", "numpy", "pillow"}
    assert all(len(number.split(".")) == 3 and "+" not in number for number in now.libraries.values())
    before = CodeVersion("", now.modules, {**now.libraries, "torch": "1.0.0"})
    assert changed(before, now) == [f"torch 1.0.0 -> {now.libraries['torch']}"]
    assert changed(now, now) == []
