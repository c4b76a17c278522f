"""References: recordings below the roots and nothing else, of which only what is asked for is read."""

from __future__ import annotations

import json
import os

import boto3
import numpy as np
import pytest
from grid_detector import CHUNK_SAMPLES
from http_signals import assert_problem, detect, packed, recorded, tone
from pydantic import ValidationError

from longhaul.serving.http.intake.references import Reference, References
from longhaul.serving.http.settings import ApiSettings, Limits
from longhaul.serving.refusals import BadReference, BodyTooLarge, BrokenSignal, NotReady


@pytest.fixture
def root(tmp_path):
    """A folder with the recording `roof`, and beside it another that must not be reached."""
    (tmp_path / "open").mkdir()
    (tmp_path / "secret").mkdir()
    recorded(tmp_path / "open", tone(3))
    recorded(tmp_path / "secret", tone(3), "hidden")
    return tmp_path / "open"


def opened(uri, *roots, **stretch):
    return References([str(root) for root in roots], Limits()).open(Reference(uri=str(uri), **stretch))


def test_a_recording_below_a_root_is_read_where_it_is_asked_for(root) -> None:
    signal = opened(root / "roof.sigmf-meta", root, start_s=0.012, duration_s=0.01)
    assert signal.recording.samples == CHUNK_SAMPLES
    np.testing.assert_array_equal(signal.read(0, 100), tone(3)[12_000:12_100])
    signal.close()


@pytest.mark.parametrize(
    "path",
    [
        "{parent}/secret/hidden.sigmf-meta",
        "{root}/../secret/hidden.sigmf-meta",
        "{root}/./../secret/hidden.sigmf-meta",
        "{root}-other/roof.sigmf-meta",
        "{root}//roof.sigmf-meta",
        "{root}/link/hidden.sigmf-meta",
        "{root}/linked.sigmf-meta",
        "{root}/half.sigmf-meta",
        "{root}/named.sigmf-meta",
        "{root}/circle.sigmf-meta",
        "{root}/none.sigmf-meta",
        "{root}/none.sigmf",
        "{root}",
        "/etc/passwd",
        "/x",
    ],
)
def test_nothing_outside_is_reached(root, path) -> None:
    secret = root.parent / "secret"
    (root.parent / "open-other").mkdir()
    recorded(root.parent / "open-other", tone())
    (root / "link").symlink_to(secret)
    (root / "linked.sigmf-meta").symlink_to(secret / "hidden.sigmf-meta")
    (root / "linked.sigmf-data").symlink_to(secret / "hidden.sigmf-data")
    (root / "half.sigmf-meta").write_bytes((root / "roof.sigmf-meta").read_bytes())
    (root / "half.sigmf-data").symlink_to(secret / "hidden.sigmf-data")
    (root / "circle.sigmf-meta").symlink_to(root / "circle.sigmf-meta")
    named = json.loads((root / "roof.sigmf-meta").read_text())
    named["global"]["core:dataset"] = "../secret/hidden.sigmf-data"
    (root / "named.sigmf-meta").write_text(json.dumps(named))
    with pytest.raises(BadReference) as refusal:
        opened(path.format(root=root, parent=root.parent), root)
    assert str(secret) not in str(refusal.value).replace(path.format(root=root, parent=root.parent), "")


@pytest.mark.parametrize(
    "name", ["a" * 300, "a" * 300 + ".sigmf", "é" * 200 + ".sigmf-meta", "roof.sigmf-data/x", "roof.sigmf-data/x.sigmf"]
)
def test_a_name_that_no_file_can_have_is_the_clients_mistake(root, name) -> None:
    with pytest.raises(BadReference):
        opened(root / name, root)


@pytest.mark.parametrize("dataset", ["x" * 300, "x" * 5000, "a\0b", "folder.sigmf-data"])
def test_a_data_file_that_cannot_be_is_the_clients_mistake(root, dataset) -> None:
    (root / "folder.sigmf-data").mkdir()
    meta = json.loads((root / "roof.sigmf-meta").read_text())
    meta["global"]["core:dataset"] = dataset
    (root / "roof.sigmf-meta").write_text(json.dumps(meta))
    with pytest.raises(BadReference):
        opened(root / "roof.sigmf-meta", root)


def test_a_link_that_stays_below_the_roots_is_followed(root) -> None:
    (root / "again.sigmf-meta").symlink_to(root / "roof.sigmf-meta")
    (root / "again.sigmf-data").symlink_to(root / "roof.sigmf-data")
    assert opened(root / "again.sigmf-meta", root).recording.samples == 3 * CHUNK_SAMPLES


def test_without_roots_nothing_is_reached(root) -> None:
    with pytest.raises(BadReference, match="not below a root"):
        opened(root / "roof.sigmf-meta")


def test_a_data_file_of_another_name_is_found(root) -> None:
    meta = json.loads((root / "roof.sigmf-meta").read_text())
    meta["global"]["core:dataset"] = "samples.bin"
    (root / "roof.sigmf-meta").write_text(json.dumps(meta))
    os.rename(root / "roof.sigmf-data", root / "samples.bin")
    assert opened(root / "roof.sigmf-meta", root).recording.samples == 3 * CHUNK_SAMPLES


def test_metadata_without_end_are_not_read(root) -> None:
    with (root / "roof.sigmf-meta").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(BodyTooLarge, match="its metadata"):
        opened(root / "roof.sigmf-meta", root)


def test_no_file_stays_open(root) -> None:
    (root / "broken.sigmf-meta").write_text("{}")
    (root / "broken.sigmf-data").write_bytes(b"x")
    (root / "broken.sigmf").write_bytes(b"no archive")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("broken.sigmf-meta", "broken.sigmf"):
        with pytest.raises(BrokenSignal):
            opened(root / name, root)
    with pytest.raises(BrokenSignal):
        opened(root / "roof.sigmf-meta", root, start_s=5)
    opened(root / "roof.sigmf-meta", root).close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def bucket(s3_server, root):
    client = boto3.client("s3")
    client.create_bucket(Bucket="captures")
    files = [root / "roof.sigmf-meta", root / "roof.sigmf-data"]
    for file in files:
        client.upload_file(str(file), "captures", f"2026/{file.name}")
        client.upload_file(str(file), "captures", f"2026-secret/{file.name}")
    client.put_object(Bucket="captures", Key="2026/roof.sigmf", Body=packed(*files))
    yield "s3://captures/2026"
    for item in client.list_objects_v2(Bucket="captures")["Contents"]:
        client.delete_object(Bucket="captures", Key=item["Key"])
    client.delete_bucket(Bucket="captures")


def test_a_recording_in_a_bucket_is_read_as_one_on_disk(bucket, serve, root) -> None:
    client = serve(roots=(bucket,))
    expected = detect(client, tone(3)[5000:25_000]).json()
    for name in ("roof.sigmf-meta", "roof.sigmf"):
        answer = client.post("/v1/detect", json={"uri": f"{bucket}/{name}", "start_s": 0.005, "duration_s": 0.02}).json()
        assert [chunk["detections"] for chunk in answer["chunks"]] == [chunk["detections"] for chunk in expected["chunks"]]
    for uri in ("s3://captures/2026-secret/roof.sigmf-meta", "s3://other/2026/roof.sigmf-meta", f"{bucket}/../2026-secret/roof"):
        assert_problem(client.post("/v1/detect", json={"uri": uri}), 400, "bad-reference")
    assert_problem(client.post("/v1/detect", json={"uri": f"{bucket}/none.sigmf"}), 400, "bad-reference", "no such file")


def test_a_storage_that_does_not_answer_is_the_servers_trouble(root, monkeypatch) -> None:
    from longhaul.storage import Storage

    def fail(self, name):
        raise OSError("AWS Error NETWORK_CONNECTION during HeadObject: key secret")

    monkeypatch.setattr(Storage, "size", fail)
    with pytest.raises(NotReady, match="does not answer") as refusal:
        opened(root / "roof.sigmf-meta", root)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("root", ["captures", "s3://", "http://x/y", "~/captures"])
def test_a_root_that_is_no_place_is_refused_at_the_start(root) -> None:
    with pytest.raises(ValidationError, match="root"):
        ApiSettings(roots=(root,))
