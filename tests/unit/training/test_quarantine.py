"""The quarantine report: ids, reasons, thumbnails, a sheet; and nothing that goes wrong with it stops a run."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from PIL import Image

from longhaul.data.images import ImageSamples
from longhaul.recipe import parse
from longhaul.resilience.divergence import Suspect
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.recovery.quarantine import add_to_report, draw, quarantined
from longhaul.workloads.classification import Classification

RECIPE = "{name: few, model: {name: test_resnet}, data: {kind: imagefolder, root: ROOT, resolution: 16}, training: {steps: 1}}"
NAN = Suspect(index=3, loss=math.nan, reason="its loss is nan")


@pytest.fixture(scope="module")
def samples(few_digits: Path) -> ImageSamples:
    return Classification(parse(RECIPE, overrides=[f"data.root={few_digits}"])).splits.train


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(str(tmp_path), "few", parse(RECIPE))


def test_the_report_names_each_sample_and_shows_it(run: RunDirectory, samples: ImageSamples) -> None:
    add_to_report(run, samples, [NAN], "step 9: the training loss is nan", 9, 2)
    add_to_report(run, samples, [Suspect(index=5, loss=41.5, reason="far out")], "step 20: 40", 20, 3)
    first, second = quarantined(run).samples
    assert (first.id, first.step, first.segment, first.reason) == (samples.ids[3], 9, 2, "its loss is nan")
    assert first.loss is not None
    assert math.isnan(first.loss)
    assert (second.id, second.loss) == (samples.ids[5], 41.5)
    assert first.thumbnail is not None
    assert first.thumbnail != second.thumbnail
    with Image.open(io.BytesIO(run.storage.read_bytes(first.thumbnail))) as thumbnail:
        middle = thumbnail.convert("L").resize((8, 8), Image.Resampling.BOX)
        assert middle.tobytes() == samples.open(3).convert("L").tobytes()  # a digit has 8 x 8 pixels
    with Image.open(io.BytesIO(run.storage.read_bytes("pictures/quarantine.png"))) as sheet:
        assert sheet.width > sheet.height > 200


def test_a_sample_that_cannot_be_shown_is_in_the_report_all_the_same(run: RunDirectory, samples: ImageSamples) -> None:
    class Broken(ImageSamples):
        def open(self, index: int) -> Image.Image:
            raise OSError("truncated")

    broken = Broken(samples.root, samples.ids, samples.labels, samples.classes, samples.preprocess)
    add_to_report(run, broken, [NAN], "spike", 9, 2)
    (one,) = quarantined(run).samples
    assert (one.id, one.thumbnail) == (samples.ids[3], None)
    assert run.storage.exists("pictures/quarantine.png")


def test_samples_that_are_no_pictures_are_listed(run: RunDirectory) -> None:
    class Texts:
        ids = tuple(f"text-{i}" for i in range(9))

    add_to_report(run, Texts(), [NAN], "spike", 9, 2)  # type: ignore[arg-type]
    assert [one.id for one in quarantined(run).samples] == ["text-3"]


def test_of_a_large_batch_the_list_is_whole_and_the_sheet_shows_the_newest(run: RunDirectory, samples: ImageSamples) -> None:
    ids = [*samples.ids, *(f"again-{name}" for name in samples.ids)]
    twice = ImageSamples(samples.root, ids, [*samples.labels] * 2, samples.classes, samples.preprocess)
    many = [Suspect(index=i, loss=None, reason="its whole batch is left out") for i in range(60)]
    add_to_report(run, twice, many, "spike", 9, 2)
    report = quarantined(run)
    assert len(report.samples) == 60
    assert sum(one.thumbnail is not None for one in report.samples) == 40  # the others' files are not there
    assert Image.open(io.BytesIO(draw(run, report))).height < 2100


def test_a_sample_found_once_more_after_a_crash_is_listed_once(run: RunDirectory, samples: ImageSamples) -> None:
    add_to_report(run, samples, [NAN], "spike", 9, 2)
    add_to_report(run, samples, [NAN], "spike", 9, 4)
    assert [one.segment for one in quarantined(run).samples] == [4]


def test_a_failure_to_draw_does_not_stop_the_run(
    run: RunDirectory, samples: ImageSamples, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run.storage.write_bytes("quarantine.json", b"{damaged")
    add_to_report(run, samples, [NAN], "spike", 9, 2)
    assert "the samples are left out all the same" in caplog.text
