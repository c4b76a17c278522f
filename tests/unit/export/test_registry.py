"""The registry keeps what was published, notices every damage, and hides what is not complete."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from longhaul.errors import IntegrityError, UserError
from longhaul.export.manifest import Description, Manifest, ParityRecord
from longhaul.export.registry import Registry
from longhaul.storage import Storage
from longhaul.workloads.base import Signature, TensorSpec

PARITY = ParityRecord(
    samples=360,
    batch_sizes=(1, 4, 8),
    max_abs_difference=1e-5,
    mean_abs_difference=1e-6,
    top1_agreement=1.0,
    metric="top1",
    torch_metric=0.97,
    onnx_metric=0.97,
    tolerance=1e-2,
    passed=True,
)


def description(name: str = "digits", **changes: object) -> Description:
    fields = {
        "name": name,
        "signature": Signature(
            task="classification",
            inputs=(TensorSpec(name="image", dtype="float32", shape=(3, 32, 32)),),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=(2,)),),
            classes=("cat", "dog"),
        ),
        "max_batch": 8,
        "metrics": {"top1": 0.97},
        "parity": PARITY,
        "recipe_sha256": "0" * 64,
        "run": "runs/one",
        "checkpoint": "step-000000020-abcd1234",
        "step": 20,
    }
    return Description.model_validate(fields | changes)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "model.onnx").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "model.rtx.plan").write_bytes(b"plan" * 100)
    return [tmp_path / "model.onnx", tmp_path / "model.rtx.plan"]


@pytest.fixture
def small(tmp_path: Path) -> Registry:
    return Registry(str(tmp_path / "small"))


def test_two_publishes_give_versions_1_and_2(small: Registry, files: list[Path]) -> None:
    first, second = (small.publish(description(step=step), files) for step in (1, 2))
    assert (first.version, second.version) == ("1", "2")
    assert small.names() == ["digits"]
    assert small.versions("digits") == ["1", "2"]
    assert small.resolve("digits", "1") == first
    assert small.resolve("digits") == small.resolve("digits", "latest") == second
    assert small.verify(first) == small.verify(second) == []
    stored = {path.name for path in Path(small.folder("digits", "1")).iterdir()}
    assert stored == {"model.onnx", "model.rtx.plan", "manifest.json"}


def test_versions_sort_as_numbers(small: Registry, files: list[Path]) -> None:
    for _ in range(10):
        last = small.publish(description(), files)
    assert small.versions("digits")[-1] == last.version == "10"
    assert small.resolve("digits").version == "10"


def test_without_its_manifest_a_version_does_not_exist(small: Registry, files: list[Path]) -> None:
    small.publish(description(), files)
    second = small.publish(description(), files)
    Path(small.folder("digits", "2"), "manifest.json").unlink()
    assert small.versions("digits") == ["1"]
    assert small.resolve("digits").version == "1"
    with pytest.raises(UserError, match=r"digits@2: no such version"):
        small.resolve("digits", "2")
    assert any("manifest.json: is missing" in problem for problem in small.verify(second))
    assert small.publish(description(), files).version == "3"  # what lies in folder 2 is not built upon


def test_a_publish_that_fails_leaves_nothing(small: Registry, files: list[Path]) -> None:
    with pytest.raises(FileNotFoundError):
        small.publish(description(), [*files, files[0].with_name("absent.plan")])
    assert small.names() == []
    assert small.publish(description(), files).version == "1"


def test_only_one_of_two_claimants_gets_a_version(small: Registry, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    write = Storage.write_bytes
    stranger: list[Manifest] = []

    def write_when_another_publishes(storage: Storage, name: str, data: bytes) -> None:
        if name.startswith(".claim-") and not stranger:
            monkeypatch.setattr(Storage, "write_bytes", write)
            stranger.append(Registry(small.uri).publish(description(step=99), files))  # between our look and our claim
        write(storage, name, data)

    monkeypatch.setattr(Storage, "write_bytes", write_when_another_publishes)
    ours = small.publish(description(step=1), files)
    assert (stranger[0].version, ours.version) == ("1", "2")
    assert [small.resolve("digits", version).step for version in small.versions("digits")] == [99, 1]
    assert small.verify(stranger[0]) == small.verify(ours) == []


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x01
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink], ids=["truncated", "flipped", "removed"])
@pytest.mark.parametrize("file", ["model.onnx", "model.rtx.plan", "manifest.json"])
def test_every_damage_is_named_and_refused(
    small: Registry, files: list[Path], tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    manifest = small.publish(description(), files)
    damage(Path(small.folder("digits", "1"), file))
    problems = small.verify(manifest)
    assert len(problems) == 1
    assert problems[0].startswith(f"{small.folder('digits', '1')}/{file}: ")
    target = tmp_path / "fetched"
    with pytest.raises(IntegrityError, match=file.replace(".", r"\.")):
        small.fetch(manifest, target)
    assert not (target / file).exists()
    assert not list(target.glob("*.partial-*"))
    with pytest.raises((IntegrityError, UserError)):
        small.promote("digits", "1")
    assert small.aliases("digits") == {}


def test_every_bit_of_a_manifest_counts(small: Registry, files: list[Path]) -> None:
    manifest = small.publish(description(), files)
    data = manifest.encode()
    assert Manifest.decode(data, "here") == manifest
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 8)
        for damaged in (bytes(flipped), data[:at]):
            with pytest.raises(IntegrityError, match="here: "):
                Manifest.decode(damaged, "here")


def test_a_manifest_of_another_version_is_refused(small: Registry, files: list[Path]) -> None:
    small.publish(description(), files)
    small.publish(description(), files)
    first, second = (Path(small.folder("digits", version), "manifest.json") for version in "12")
    second.write_bytes(first.read_bytes())
    with pytest.raises(IntegrityError, match="is the manifest of digits@1"):
        small.resolve("digits", "2")


def test_a_file_name_cannot_leave_its_folder(small: Registry, files: list[Path]) -> None:
    manifest = small.publish(description(), files)
    record = manifest.files["model.onnx"].model_dump()
    with pytest.raises(ValueError, match="pattern"):
        Manifest.model_validate(manifest.model_dump() | {"files": {"../model.onnx": record}})


def test_aliases(small: Registry, files: list[Path]) -> None:
    small.publish(description(), files)
    small.publish(description(), files)
    small.promote("digits", "1")
    small.promote("digits", "latest", "canary")
    assert small.aliases("digits") == {"prod": "1", "canary": "2"}
    assert small.resolve("digits").version == "1"
    assert small.resolve("digits", "canary").version == "2"
    small.promote("digits", "canary")
    assert small.resolve("digits").version == "2"
    with pytest.raises(UserError, match="alias 'latest'"):
        small.promote("digits", "1", "latest")
    with pytest.raises(UserError, match="alias '7'"):
        small.promote("digits", "1", "7")


def test_a_dangling_alias_is_named(small: Registry, files: list[Path]) -> None:
    small.publish(description(), files)
    small.publish(description(), files)
    small.promote("digits", "2")
    Path(small.folder("digits", "2"), "manifest.json").unlink()
    with pytest.raises(UserError, match=r"digits@prod: no such version \(points to 2, which is not there\)"):
        small.resolve("digits")


def test_damaged_aliases_are_named(small: Registry, files: list[Path]) -> None:
    small.publish(description(), files)
    small.promote("digits", "1")
    truncate(Path(small.uri, "digits", "names.json"))
    with pytest.raises(IntegrityError, match=r"digits/names\.json: is damaged"):
        small.resolve("digits")


@pytest.mark.parametrize(
    ("name", "version", "hint"),
    [
        ("digit", None, "Did you mean digits?"),
        ("digits", "9", "Give one of: 1, latest"),
        ("digits", "latset", "Did you mean latest?"),
        ("../small/digits", None, "There are: digits"),
        ("", None, "There are: digits"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(
    small: Registry, files: list[Path], name: str, version: str | None, hint: str
) -> None:
    small.publish(description(), files)
    with pytest.raises(UserError) as refused:
        small.resolve(name, version)
    assert hint in str(refused.value)


def test_an_empty_registry_says_how_to_fill_it(small: Registry) -> None:
    assert small.names() == []
    with pytest.raises(UserError, match="longhaul export RUN"):
        small.resolve("digits")


def test_failed_parity_is_not_promoted(small: Registry, files: list[Path]) -> None:
    failed = PARITY.model_copy(update={"max_abs_difference": float("inf"), "onnx_metric": float("nan"), "passed": False})
    small.publish(description(parity=failed), files)
    assert small.resolve("digits", "1").parity.max_abs_difference == float("inf")
    with pytest.raises(UserError, match="no version of it agrees"):
        small.resolve("digits")  # nobody gets it without asking for it
    with pytest.raises(UserError, match="does not agree with the torch model"):
        small.promote("digits", "1")
    assert small.aliases("digits") == {}
    assert "Infinity" in json.loads(Path(small.folder("digits", "1"), "manifest.json").read_text())["parity"].values()


def test_fetch_takes_what_is_there_only_if_it_verifies(small: Registry, files: list[Path], tmp_path: Path) -> None:
    manifest = small.publish(description(), files)
    target = tmp_path / "fetched"
    paths = small.fetch(manifest, target)
    assert {name: path.read_bytes() for name, path in paths.items()} == {file.name: file.read_bytes() for file in files}
    flip(paths["model.onnx"])
    before = paths["model.rtx.plan"].stat().st_ino
    assert small.fetch(manifest, target)["model.onnx"].read_bytes() == files[0].read_bytes()
    assert paths["model.rtx.plan"].stat().st_ino == before


def test_on_s3(bucket: str, files: list[Path], tmp_path: Path) -> None:
    registry = Registry(f"{bucket}/models")
    assert registry.names() == []
    first = registry.publish(description(), files)
    second = registry.publish(description(), files)
    assert (first.version, second.version) == ("1", "2")
    assert registry.names() == ["digits"]
    paths = registry.fetch(registry.resolve("digits"), tmp_path / "fetched")
    assert {name: path.read_bytes() for name, path in paths.items()} == {file.name: file.read_bytes() for file in files}
    registry.promote("digits", "1")
    assert Registry(f"{bucket}/models").resolve("digits") == first

    storage = Storage.open(registry.folder("digits", "2"))
    storage.write_bytes("model.onnx", b"x" + files[0].read_bytes()[1:])
    assert [problem.rsplit(": ", 1)[0] for problem in registry.verify(second)] == [f"{bucket}/models/digits/2/model.onnx"]
    with pytest.raises(IntegrityError, match=r"digits/2/model\.onnx"):
        registry.fetch(second, tmp_path / "again")
    storage.delete_file("manifest.json")
    assert registry.versions("digits") == ["1"]
    assert registry.publish(description(), files).version == "3"
    with pytest.raises(FileNotFoundError):
        registry.publish(description("other"), [*files, tmp_path / "absent"])
    assert registry.names() == ["digits"]


def test_a_manifest_from_before_batches_and_decisions_still_decodes(small: Registry, files: list[Path]) -> None:
    plans = [{"file": "model.rtx.plan", "builder": "tensorrt_rtx", "builder_version": "1.3", "device": "any"}]
    manifest = small.publish(description(plans=plans), files)
    members = json.loads(manifest.encode())
    del members["batches"], members["parity"]["decisions"], members["plans"][0]["batch"], members["plans"][0]["precision"]
    del members["sha256"]
    canonical = json.dumps(members, sort_keys=True, separators=(",", ":"))
    members["sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
    old = Path(small.folder("digits", "1"), "manifest.json")
    old.write_text(json.dumps(members, indent=1) + "\n")
    read = small.resolve("digits", "1")
    assert read == manifest
    assert read.model_files == {None: "model.onnx"}
    assert read.model_file(3) == "model.onnx"
    assert (read.plans[0].batch, read.plans[0].precision, read.parity.decisions) == (None, "fp32", None)
