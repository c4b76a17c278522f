"""Recordings with something wrong: fatal things are named with their file, field and fix, odd ones are noted."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sigmf
from recordings import CENTER, RATE, SAMPLES, annotation, change, written

from longhaul.errors import UserError
from longhaul.signals.recording import Annotation, open_recording

FLOATS = {"cf32_le": "<f4", "cf32_be": ">f4", "cf64_le": "<f8", "cf64_be": ">f8"}


# ---- bad input: the whole recording


def refused(path: Path, *words: str, verify: bool = False) -> None:
    with pytest.raises(UserError) as caught:
        open_recording(path, verify=verify)
    message = str(caught.value)
    assert caught.value.fix
    assert "\n" not in message
    for word in (path.name.removesuffix("-meta"), *words):
        assert word in message


def test_a_path_that_is_no_recording_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nothing.sigmf-meta", "no such recording")
    refused(tmp_path, "is a folder")
    (tmp_path / "x.sigmf.gz").touch()
    refused(tmp_path / "x.sigmf.gz", "compressed")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe{}", b'{"global": {"core:sample_rate": NaN}}'])
def test_metadata_that_are_no_json_object_are_refused(tmp_path: Path, content: bytes) -> None:
    meta = written(tmp_path)
    meta.write_bytes(content)
    refused(meta, "JSON")


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"datatype": None}, ("global", "core:datatype")),
        ({"datatype": "cf99_le"}, ("core:datatype", "cf99_le")),
        ({"datatype": "cf32_xx"}, ("core:datatype", "no datatype")),
        ({"datatype": "rf32_le"}, ("core:datatype", "real samples")),
        ({"sample_rate": None}, ("core:sample_rate is missing",)),
        ({"sample_rate": 0}, ("core:sample_rate is 0",)),
        ({"sample_rate": -20e6}, ("core:sample_rate is -20000000",)),
        ({"sample_rate": "20e6"}, ("core:sample_rate",)),
        ({"num_channels": 2}, ("core:num_channels is 2",)),
        ({"metadata_only": True}, ("core:metadata_only",)),
        ({"dataset": "elsewhere.bin"}, ("elsewhere.bin is missing",)),
        ({"captures": [{"core:sample_start": 5000}]}, ("captures[0]", "core:sample_start 5000")),
        ({"captures": [{"core:sample_start": 0}, {"core:sample_start": 9, "core:header_bytes": 4}]}, ("core:header_bytes",)),
        (
            {"captures": [{"core:sample_start": 0, "core:frequency": 1e9}, {"core:sample_start": 50, "core:frequency": 2e9}]},
            ("core:frequency", "1000000000", "2000000000", "sample 50"),
        ),
        ({"captures": [{"core:frequency": 1e9}]}, ("captures[0]", "core:sample_start")),
    ],
)
def test_a_recording_that_cannot_be_used_names_its_field(tmp_path: Path, parts: dict[str, Any], words: tuple[str, ...]) -> None:
    refused(change(written(tmp_path), **parts), *words)


def test_a_data_file_that_is_missing_empty_or_cut_short_is_refused(tmp_path: Path) -> None:
    meta = written(tmp_path)
    data = meta.with_suffix(".sigmf-data")
    whole = data.read_bytes()
    data.write_bytes(whole[:-3])
    refused(meta, "39997 bytes", "cf32_le", "truncated")
    data.write_bytes(whole[:8000])
    refused(meta, "annotations[0]", "past the end of the data (1000 samples)")
    data.write_bytes(b"")
    refused(meta, "holds no samples")
    data.unlink()
    refused(meta, "capture.sigmf-data is missing")


def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_no_crash(tmp_path: Path) -> None:
    recording = open_recording(written(tmp_path))
    recording.data.write_bytes(b"")
    with pytest.raises(UserError, match="has become shorter"):
        recording.read(0, 10)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "packed.sigmf"
    sigmf.fromfile(written(tmp_path)).tofile(archive)
    whole = archive.read_bytes()
    archive.write_bytes(whole[:30_000])
    refused(archive, "packed.sigmf")
    archive.write_bytes(b"no tar")
    refused(archive, "tar archive")


def test_an_archive_with_the_holes_left_out_is_refused(tmp_path: Path) -> None:
    meta = written(tmp_path)
    with meta.with_suffix(".sigmf-data").open("r+b") as file:
        file.truncate(8 << 20)
    archive = tmp_path / "packed.sigmf"
    subprocess.run(["tar", "-C", tmp_path, "-cSf", archive, meta.name, "capture.sigmf-data"], check=True)
    assert archive.stat().st_size < 1 << 20
    refused(archive, "holes")


@pytest.mark.parametrize("datatype", FLOATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_samples_are_named_with_their_index(tmp_path: Path, datatype: str, value: float) -> None:
    meta = written(tmp_path, datatype=datatype)
    data = meta.with_suffix(".sigmf-data")
    raw = np.fromfile(data, dtype=FLOATS[datatype])
    raw[2 * 3210 + 1] = value
    raw.tofile(data)
    recording = open_recording(meta)
    recording.read(0, 3210)
    with pytest.raises(UserError, match=r"capture\.sigmf-data: sample 3210 is .*1 such in samples 3000 to 4000"):
        recording.read(3000, 1000)


def test_the_checksum_is_compared_only_when_asked(tmp_path: Path) -> None:
    meta = written(tmp_path)
    open_recording(meta, verify=True)
    data = meta.with_suffix(".sigmf-data")
    raw = bytearray(data.read_bytes())
    raw[77] ^= 1
    data.write_bytes(raw)
    open_recording(meta)
    refused(meta, "core:sha512", verify=True)
    assert "no core:sha512" in open_recording(change(meta, sha512=None), verify=True).notes[0]
    assert open_recording(change(meta, sha512=hashlib.sha512(raw).hexdigest().upper()), verify=True).notes == ()


# ---- bad input: annotations


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (annotation(4990, 11), ("ends at sample 5001",)),
        (annotation(5000, 1), ("core:sample_start 5000", "past the end")),
        (annotation(10, 0), ("core:sample_count is 0",)),
        (annotation(10, -5), ("core:sample_count",)),
        (annotation(-1, 5), ("core:sample_start",)),
        (annotation(label=None), ("no core:label",)),
        (annotation(label="  "), ("no core:label",)),
        (annotation(freq_lower_edge=CENTER), ("core:freq_upper_edge is missing",)),
        (annotation(freq_upper_edge=CENTER), ("core:freq_lower_edge is missing",)),
        (annotation(freq_lower_edge=CENTER + 2e6, freq_upper_edge=CENTER + 1e6), ("inverted", "2442000000", "2441000000")),
        (annotation(freq_lower_edge=CENTER, freq_upper_edge=CENTER), ("inverted",)),
        (annotation(freq_lower_edge=CENTER + 11e6, freq_upper_edge=CENTER + 12e6), ("outside the recorded band", "2430000000")),
        (annotation(freq_lower_edge=-1e6, freq_upper_edge=1e6), ("outside the recorded band", "relative to the centre")),
    ],
)
def test_an_annotation_that_cannot_be_right_is_named(tmp_path: Path, entry: dict[str, Any], words: tuple[str, ...]) -> None:
    refused(change(written(tmp_path), annotations=[annotation(), entry] if entry["core:sample_start"] >= 0 else [entry]), *words)


def test_annotations_without_edges_or_count_cover_the_band_and_the_capture(tmp_path: Path) -> None:
    captures = [{"core:sample_start": start, "core:frequency": CENTER} for start in (0, 2000)]
    meta = change(written(tmp_path), captures=captures, annotations=[annotation(100, None), annotation(2100, None)])
    recording = open_recording(meta)
    assert [(one.start, one.count, one.low_hz, one.high_hz) for one in recording.annotations] == [
        (100, 1900, -RATE / 2, RATE / 2),
        (2100, 2900, -RATE / 2, RATE / 2),
    ]
    assert any("2 of 2 annotations have no frequency edges" in note for note in recording.notes)
    assert any("2 of 2 annotations have no core:sample_count" in note for note in recording.notes)


def test_an_annotation_that_reaches_over_the_band_is_cut_there_and_noted(tmp_path: Path) -> None:
    entry = annotation(freq_lower_edge=CENTER + 5e6, freq_upper_edge=CENTER + 15e6)
    recording = open_recording(change(written(tmp_path), annotations=[entry]))
    assert (recording.annotations[0].low_hz, recording.annotations[0].high_hz) == (5e6, 10e6)
    assert "reach over the edge of the band" in recording.notes[0]


def test_a_comment_stands_in_for_a_label_and_is_noted(tmp_path: Path) -> None:
    meta = change(written(tmp_path), annotations=[annotation(label=None, comment="wifi\nstrong")])
    recording = open_recording(meta)
    assert recording.annotations[0].label == "wifi"
    assert "core:comment was taken" in recording.notes[0]


def test_only_annotations_of_one_label_that_overlap_in_time_and_frequency_are_noted(tmp_path: Path) -> None:
    def box(label: str, start: int, low: float) -> Annotation:
        return Annotation(label, start, 100, low, low + 1e6)

    apart = [box("a", 0, 0), box("a", 100, 0), box("a", 0, 1e6), box("b", 50, 0)]
    assert open_recording(written(tmp_path, "apart", annotations=apart)).notes == ()
    over = [*apart, box("a", 199, 0.5e6), box("b", 60, -0.5e6), box("b", 70, 0.2e6)]
    notes = open_recording(written(tmp_path, "over", annotations=over)).notes
    assert notes == (
        "3 pairs of annotations 'b' overlap, first at sample 60",
        "1 pair of annotations 'a' overlaps, first at sample 199",
    )


def test_sample_indices_count_from_core_offset(tmp_path: Path) -> None:
    meta = change(written(tmp_path), offset=1000, captures=[{"core:sample_start": 1000}], annotations=[annotation(1500)])
    assert open_recording(meta).annotations[0].start == 500
    refused(change(meta, annotations=[annotation(999)]), "before the file's first sample")


def test_headers_and_trailers_of_other_formats_are_left_out(tmp_path: Path) -> None:
    meta = written(tmp_path)
    raw = meta.with_suffix(".sigmf-data").read_bytes()
    (tmp_path / "capture.bin").write_bytes(b"H" * 44 + raw + b"T" * 5)
    capture = {"core:sample_start": 0, "core:header_bytes": 44, "core:frequency": CENTER}
    recording = open_recording(change(meta, dataset="capture.bin", trailing_bytes=5, captures=[capture], sha512=None))
    np.testing.assert_array_equal(recording.read(0, recording.samples), SAMPLES)


def test_what_is_odd_but_not_fatal_is_noted(tmp_path: Path) -> None:
    captures = [
        {"core:sample_start": 0, "core:global_index": 0, "core:datetime": "2026-W90"},
        {"core:sample_start": 500, "core:global_index": 900, "core:frequency": CENTER},
    ]
    entries = [annotation(20, freq_lower_edge=CENTER, freq_upper_edge=CENTER + 1e6), annotation(3)]
    meta = change(written(tmp_path), datatype="cf32", captures=captures, annotations=entries)
    recording = open_recording(meta)
    text = " | ".join(recording.notes)
    for words in ("byte order", "not in the order", "samples were lost", "have no core:frequency"):
        assert words in text
    assert recording.center_hz == CENTER
    assert [one.start for one in recording.annotations] == [3, 20]
    bare = open_recording(change(meta, captures=[], annotations=[]))
    assert bare.center_hz is None
    assert any("no captures" in note for note in bare.notes)
