"""Recordings: what is written is read back, whatever the datatype, in bounded memory however large."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
import sigmf
from recordings import CENTER, HOP, RATE, SAMPLES, WIFI, change, written

from longhaul.errors import UserError
from longhaul.signals.recording import RecordingWriter, find_recordings, open_recording

INTEGERS = ["ci8", "cu8", "ci16_le", "ci16_be", "cu16_le", "cu16_be", "ci32_le", "ci32_be", "cu32_le"]
FLOATS = ["cf32_le", "cf32_be", "cf64_le", "cf64_be"]


def components(path: Path, datatype: str) -> np.ndarray:
    """Numpy's own conversion of a data file to I and Q in turn, full scale 1, in float64."""
    kinds = {"ci8": "i1", "cu8": "u1", "ci16": "i2", "cu16": "u2", "ci32": "i4", "cu32": "u4", "cf32": "f4", "cf64": "f8"}
    name, _, order = datatype.partition("_")
    raw = np.fromfile(path.with_suffix(".sigmf-data"), dtype=(">" if order == "be" else "<") + kinds[name])
    if raw.dtype.kind == "f":
        return raw.astype(np.float64)
    half = 2.0 ** (8 * raw.dtype.itemsize - 1)
    return (raw.astype(np.float64) - (half if raw.dtype.kind == "u" else 0)) / half


# ---- round trips


@pytest.mark.parametrize("datatype", INTEGERS + FLOATS)
def test_every_datatype_reads_as_numpy_and_the_sigmf_library_convert_it(tmp_path: Path, datatype: str) -> None:
    meta = written(tmp_path, datatype=datatype)
    recording = open_recording(meta)
    read = recording.read(0, recording.samples)
    expected = components(meta, datatype)
    assert recording.datatype == datatype
    assert recording.samples == len(SAMPLES)
    assert read.dtype == np.complex64
    np.testing.assert_array_equal(read.real, expected[0::2].astype(np.float32))
    np.testing.assert_array_equal(read.imag, expected[1::2].astype(np.float32))
    if "32" not in datatype or datatype[1] == "f":  # the library scales 32-bit integers in float32: other roundings
        np.testing.assert_array_equal(read, sigmf.fromfile(meta).read_samples())
    bits = 0 if datatype in FLOATS else int(datatype[2:].split("_")[0])
    assert np.abs(read - SAMPLES).max() <= (max(2.0**-bits, 6e-8) * 2**0.5 if bits else 0)  # half a step in I and in Q


@pytest.mark.parametrize("datatype", ["ci8", "cu8", "ci16_le", "ci16_be"])
def test_integers_survive_reading_and_writing_bit_for_bit(tmp_path: Path, datatype: str) -> None:
    first = written(tmp_path, "first", datatype=datatype)
    second = written(tmp_path, "second", datatype=datatype, samples=open_recording(first).read(0, len(SAMPLES)))
    assert first.with_suffix(".sigmf-data").read_bytes() == second.with_suffix(".sigmf-data").read_bytes()


def test_big_and_little_endian_files_differ_and_mean_the_same(tmp_path: Path) -> None:
    little, big = (written(tmp_path, order, datatype=f"ci16_{order}") for order in ("le", "be"))
    assert little.with_suffix(".sigmf-data").read_bytes() != big.with_suffix(".sigmf-data").read_bytes()
    np.testing.assert_array_equal(open_recording(little).read(7, 90), open_recording(big).read(7, 90))


def test_a_stretch_is_the_same_part_of_the_whole(tmp_path: Path) -> None:
    with open_recording(written(tmp_path, datatype="ci16_be")) as recording:
        whole = recording.read(0, recording.samples)
        for start, count in [(0, 1), (1, 4095), (4999, 1), (2500, 0)]:
            np.testing.assert_array_equal(recording.read(start, count), whole[start : start + count])
        for start, count in [(-1, 2), (4999, 2), (0, -1)]:
            with pytest.raises(ValueError, match="cannot be read"):
                recording.read(start, count)


@pytest.mark.parametrize("center_hz", [CENTER, None, 0.0])
def test_what_was_written_about_a_recording_is_read_back(tmp_path: Path, center_hz: float | None) -> None:
    started = datetime(2026, 5, 4, 12, 30, 0, 250000, tzinfo=timezone(timedelta(hours=2)))
    recording = open_recording(written(tmp_path, "cap.2.4GHz", center_hz=center_hz, started=started))
    assert (recording.name, recording.sample_rate_hz, recording.center_hz) == ("cap.2.4GHz", RATE, center_hz)
    assert recording.annotations == (WIFI, HOP)
    assert recording.started is not None
    assert recording.started.isoformat() == "2026-05-04T10:30:00.250000+00:00"
    assert recording.notes == ()
    assert recording.duration_s == len(SAMPLES) / RATE
    assert recording.size_bytes == 8 * len(SAMPLES)


@pytest.mark.parametrize("text", ["2026-05-04T10:30:00Z", "2026-05-04T12:30:00.000000000+02:00", "2026-05-04T10:30:00"])
def test_the_time_of_day_is_read_in_utc_and_written_with_a_z(tmp_path: Path, text: str) -> None:
    meta = change(written(tmp_path), captures=[{"core:sample_start": 0, "core:datetime": text}], annotations=[])
    started = open_recording(meta).started
    assert started is not None
    assert started.isoformat() == "2026-05-04T10:30:00+00:00"
    again = written(tmp_path, "again", started=started.astimezone(timezone(timedelta(hours=9))))
    assert json.loads(again.read_text())["captures"][0]["core:datetime"] == "2026-05-04T10:30:00.000000Z"


def test_edges_are_written_as_absolute_frequencies_where_the_centre_is_known(tmp_path: Path) -> None:
    absolute = json.loads(written(tmp_path, "rf").read_text())["annotations"][0]
    relative = json.loads(written(tmp_path, "baseband", center_hz=None).read_text())["annotations"][0]
    assert absolute["core:freq_lower_edge"] == CENTER + WIFI.low_hz
    assert relative["core:freq_lower_edge"] == WIFI.low_hz


def test_the_sigmf_library_itself_accepts_what_was_written(tmp_path: Path) -> None:
    opened = sigmf.fromfile(written(tmp_path, datatype="ci16_le"), skip_checksum=False)
    opened.validate()
    assert opened.sample_count == len(SAMPLES)
    assert len(opened.get_annotations()) == 2


def test_a_recording_written_in_blocks_is_the_one_written_at_once(tmp_path: Path) -> None:
    once = written(tmp_path, "once", datatype="ci16_le")
    with RecordingWriter(tmp_path / "blocks", sample_rate_hz=RATE, center_hz=CENTER, datatype="ci16_le") as writer:
        writer.annotate([HOP])
        for start in range(0, len(SAMPLES), 700):
            writer.write(SAMPLES[start : start + 700])
        writer.annotate([WIFI])
    assert json.loads(writer.meta_path.read_text()) == json.loads(once.read_text())
    assert writer.meta_path.with_suffix(".sigmf-data").read_bytes() == once.with_suffix(".sigmf-data").read_bytes()


def test_writing_that_fails_leaves_nothing_behind_and_the_older_recording_alone(tmp_path: Path) -> None:
    older = written(tmp_path).read_text()
    with pytest.raises(ValueError, match="NaN or infinite"):
        written(tmp_path, samples=np.full(10, np.nan, dtype=np.complex64))
    with pytest.raises(ValueError, match="no datatype"):
        written(tmp_path, "other", datatype="cf16_le")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["capture.sigmf-data", "capture.sigmf-meta"]
    assert (tmp_path / "capture.sigmf-meta").read_text() == older


def test_what_is_over_full_scale_is_clipped_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = np.array([1.5 - 3j, 1 - 1j, 0.5], dtype=np.complex64)
    meta = written(tmp_path, samples=samples, datatype="ci8", annotations=[], description="loud")
    np.testing.assert_array_equal(open_recording(meta).read(0, 3), np.array([127 - 128j, 127 - 128j, 64]) / 128)
    assert json.loads(meta.read_text())["global"]["core:description"] == "loud (2 of 6 components clipped)"
    assert "2 of 6 components were over full scale" in caplog.text


def test_an_archive_reads_as_its_recording_without_being_unpacked(tmp_path: Path) -> None:
    meta = written(tmp_path, datatype="ci16_be")
    sigmf.fromfile(meta).tofile(tmp_path / "packed.sigmf")
    plain, packed = open_recording(meta), open_recording(tmp_path / "packed.sigmf", verify=True)
    assert (packed.name, packed.samples, packed.annotations) == ("packed", plain.samples, plain.annotations)
    np.testing.assert_array_equal(packed.read(1234, 77), plain.read(1234, 77))
    np.testing.assert_array_equal(packed.read(0, 5000), plain.read(0, 5000))


def test_a_recording_can_be_sent_to_another_process(tmp_path: Path) -> None:
    recording = open_recording(written(tmp_path))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(recording)).read(5, 5), SAMPLES[5:10])


# ---- finding


def test_every_recording_below_a_folder_is_found_once(tmp_path: Path) -> None:
    plain = written(tmp_path / "a", "plain")
    written(tmp_path / "b", "one")
    archive = tmp_path / "b" / "packed.sigmf"
    sigmf.fromfile(plain).tofile(archive)
    collection = sigmf.SigMFCollection(["one.sigmf-meta"], base_path=tmp_path / "b", skip_checksums=True)
    collection.tofile(tmp_path / "b" / "set")
    assert find_recordings(tmp_path) == [plain, tmp_path / "b" / "one.sigmf-meta", archive]
    assert find_recordings(tmp_path / "b" / "set.sigmf-collection") == [tmp_path / "b" / "one.sigmf-meta"]
    assert find_recordings(plain) == [plain]


def test_a_member_that_a_collection_lacks_is_listed_and_opening_it_says_so(tmp_path: Path) -> None:
    content = {"collection": {"core:version": "1.2.0", "core:streams": [{"name": "gone", "hash": "0" * 128}, ["old", "0" * 128]]}}
    path = tmp_path / "set.sigmf-collection"
    path.write_text(json.dumps(content))
    assert find_recordings(tmp_path) == [tmp_path / "gone.sigmf-meta", tmp_path / "old.sigmf-meta"]
    with pytest.raises(UserError, match=r"gone\.sigmf-meta: there is no such recording"):
        open_recording(tmp_path / "gone.sigmf-meta")
    with pytest.raises(UserError, match="is a collection of 2 recordings"):
        open_recording(path)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"collection": {}}', '{"collection": {"core:version": "1.0.0", "core:streams": [{}]}}']
)
def test_a_collection_that_cannot_be_read_is_named_and_stops_no_folder(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    collection = tmp_path / "set.sigmf-collection"
    collection.write_text(content)
    with pytest.raises(UserError, match=r"set\.sigmf-collection"):
        find_recordings(collection)
    meta = written(tmp_path)
    assert find_recordings(tmp_path) == [meta]
    assert "set.sigmf-collection" in caplog.text


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recording in this folder"):
        find_recordings(tmp_path)


# ---- size

_READ_SPARSE = """
import resource, sys
from pathlib import Path
from longhaul.signals.recording import open_recording
megabytes = 1 << 20
base = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (base + 300 * megabytes,) * 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
recording = open_recording(Path(sys.argv[1]))
count = 4 * megabytes
for part in range(40):
    samples = recording.read(part * (recording.samples - count) // 39, count)
    assert samples.shape == (count,)
print(recording.samples, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("datatype", ["cf32_le", "ci16_be"])
def test_a_capture_larger_than_memory_allows_is_read_in_bounded_memory(tmp_path: Path, datatype: str) -> None:
    meta = change(written(tmp_path, datatype=datatype), sha512=None)
    with meta.with_suffix(".sigmf-data").open("r+b") as file:
        file.truncate(8 << 30)  # sparse: no blocks on disk
    done = subprocess.run([sys.executable, "-c", _READ_SPARSE, meta], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    samples, grown_mb = map(int, done.stdout.split())
    assert samples == (8 << 30) // (8 if datatype == "cf32_le" else 4)
    assert grown_mb < 250
