"""ZeRO 1, 2 and 3: two ranks -> one -> two; every tensor of the optimizer is the one that was saved, bit for bit."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from longhaul.recipe import parse
from longhaul.resilience.checkpoint import CheckpointStore, Manifest, checkpoint_name
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.checkpoints.reshard import UniversalDamagedError, digest, universal
from longhaul.training.checkpoints.universal import to_universal
from longhaul.training.ranks import Ranks

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("reshard_ranks.py")
PLATFORM = Path(__file__).parents[2] / "platform"
STAGES = ["zero1", "zero2", "zero3"]
CASES = [f"{stage}-{rest}" for stage in STAGES for rest in ("adamw-fp32", "sgd-fp32", "adamw-bf16")]
ALONE = Ranks(0, 1, torch.device("cpu"))
RECIPE = """
name: reshard
data: {kind: digits, resolution: 16, loader_workers: 0}
model: {name: test_resnet}
training: {steps: 6, global_batch: 8, micro_batch: 8, engine: zero3}
"""


def _phase(phase: str, root: Path, world_size: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(PLATFORM), "DS_ACCELERATOR": "cpu"}
    commands = [
        [sys.executable, str(SCRIPT), phase, str(root), str(rank), str(world_size), str(port)] for rank in range(world_size)
    ]
    processes = [subprocess.Popen(c, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) for c in commands]
    ends = [process.communicate()[1].decode(errors="replace") for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(ends)[-4000:]


def _convert(root: Path, phase: str) -> None:
    for case in CASES:
        target = root / case / f"{phase}-universal"
        target.mkdir()
        to_universal(root / case / phase, target)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks -> one -> two for every case; also a universal checkpoint with one number changed, loaded by one rank."""
    root = tmp_path_factory.mktemp("reshard")
    _phase("begin", root, 2)
    _convert(root, "begin")
    for stage in STAGES:
        case = root / f"{stage}-adamw-fp32"
        shutil.copytree(case / "begin-universal", case / "begin-control")
        file = case / "begin-control" / "engine" / "zero" / "3.weight" / "exp_avg.pt"
        held = torch.load(file, weights_only=False)
        (held["param"] if isinstance(held, dict) else held).view(-1)[700] += 1e-6
        torch.save(held, file)
    _phase("shrink", root, 1)
    _convert(root, "shrink")
    _phase("grow", root, 2)
    return root


def _state(root: Path, case: str, name: str) -> dict[str, Any]:
    state = torch.load(root / case / f"{name}.pt", weights_only=False)
    return {f"{group}: {key}": value for group, values in state.items() for key, value in values.items()}


def _differences(mine: dict[str, Any], other: dict[str, Any]) -> list[str]:
    assert mine.keys() == other.keys()
    same = {key: torch.equal(value, other[key]) if torch.is_tensor(value) else value == other[key] for key, value in mine.items()}
    return [key for key, equal in same.items() if not equal]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("saved", "loaded"), [("begin", "shrink"), ("shrink", "grow")])
def test_what_another_world_size_loads_is_what_was_saved(root: Path, case: str, saved: str, loaded: str) -> None:
    """Weights, moments or momentum, step counts, options of the groups, buffers, frozen weights: bit for bit."""
    before, after = _state(root, case, saved), _state(root, case, f"{loaded}-loaded")
    assert _differences(before, after) == []
    moments = [value for key, value in before.items() if "exp_avg" in key or "momentum" in key]
    assert len(moments) == (8 if "adamw" in case else 4)
    assert all(value.any() for value in moments)  # zeros would agree as well
    assert before["weights: 1.running_mean"].any()
    assert [group["weight_decay"] for group in after["others: options"]] == [0.1, 0.0]


@pytest.mark.parametrize("case", [case for case in CASES if "adamw" in case])
def test_every_group_counts_its_own_steps_after_a_reshard(root: Path, case: str) -> None:
    assert [_state(root, case, phase)["others: steps"] for phase in ("begin", "shrink", "grow")] == [{3.0}, {6.0}, {9.0}]


@pytest.mark.parametrize("stage", STAGES)
def test_one_changed_number_is_seen(root: Path, stage: str) -> None:
    """The negative control of the comparison: it names the one tensor."""
    case = f"{stage}-adamw-fp32"
    assert _differences(_state(root, case, "begin"), _state(root, case, "shrink-control")) == ["3.weight: exp_avg"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("phase", ["begin", "shrink", "grow"])
def test_a_snapshot_holds_still_while_training_goes_on(root: Path, case: str, phase: str) -> None:
    """It was written after two more steps; loaded again, it is the state at the snapshot, and the two steps come out the same."""
    assert _differences(_state(root, case, phase), _state(root, case, f"{phase}-reloaded")) == []
    losses = torch.load(root / case / f"{phase}-losses.pt", weights_only=False)[""]
    assert losses["again"] == losses["on"] != losses["before"]


@pytest.fixture
def run(root: Path, tmp_path: Path) -> tuple[RunDirectory, str]:
    """A run whose newest checkpoint holds the shards of two ranks."""
    run = RunDirectory.create(str(tmp_path), "reshard", parse(RECIPE))
    return run, _publish(run, root / "zero3-adamw-fp32" / "begin", 3)


def _publish(run: RunDirectory, source: Path, step: int) -> str:
    name = checkpoint_name(step, "a1b2c3d4")
    for rank in range(2):
        manifest = Manifest(step=step, rank=rank, world_size=2, attempt="a1b2c3d4", created_s=0.0, files={})
        CheckpointStore(run).publish(name, source, manifest)
    return name


def _places(run: RunDirectory) -> list[str]:
    return sorted(path.parent.relative_to(run.uri).as_posix() for path in Path(run.uri).glob("universal/*/*/manifest.json"))


@pytest.mark.usefixtures("ray_cluster")
def test_the_universal_form_is_made_once_and_kept_with_the_run(root: Path, run: tuple[RunDirectory, str]) -> None:
    directory, name = run
    beats = []
    with universal(directory, name, ALONE, lambda: beats.append(1)) as folder:
        assert folder.is_relative_to(f"{directory.uri}/universal/{digest(directory, name)}")
        made = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.pt")}
    reference = root / "zero3-adamw-fp32" / "begin-universal"
    assert made.keys() == {file.relative_to(reference) for file in reference.rglob("*.pt")}
    assert len(beats) > 3
    first = _places(directory)
    with universal(directory, name, ALONE, lambda: None):
        assert _places(directory) == first  # the second time it was there

    damaged = Path(directory.uri) / first[0] / "engine" / "zero" / "6.bias" / "fp32.pt"
    content = bytearray(damaged.read_bytes())
    content[-200] ^= 1
    damaged.write_bytes(content)
    with universal(directory, name, ALONE, lambda: None) as folder:
        assert {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.pt")} == made
    assert _places(directory) != first

    later = _publish(directory, root / "zero3-adamw-fp32" / "grow", 9)
    with universal(directory, later, ALONE, lambda: None):
        assert [place.split("/")[1] for place in _places(directory)] == [digest(directory, later)]  # the older one is gone


@pytest.mark.usefixtures("ray_cluster")
def test_a_failed_conversion_says_why(run: tuple[RunDirectory, str]) -> None:
    directory, name = run
    for shard in (Path(directory.uri) / "checkpoints" / name / "engine").glob("*_optim_states.pt"):
        shard.unlink()
    with pytest.raises(FileNotFoundError, match="optim_states"), universal(directory, name, ALONE, lambda: None):
        pass
    assert _places(directory) == []


@pytest.mark.usefixtures("ray_cluster")
def test_on_s3_it_is_fetched_and_checked(root: Path, s3_server: str) -> None:
    import boto3

    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket="reshard")
    run = RunDirectory.create("s3://reshard/runs", "reshard", parse(RECIPE))
    name = _publish(run, root / "zero1-adamw-fp32" / "begin", 3)
    with universal(run, name, ALONE, lambda: None) as folder:
        assert (folder / "engine" / "zero" / "6.bias" / "exp_avg_sq.pt").exists()
    place = f"universal/{digest(run, name)}"
    file = next(f"{place}/{entry}" for entry in run.storage.files(place) if entry.endswith("6.bias/fp32.pt"))
    run.storage.write_bytes(file, b"something else")
    with universal(run, name, ALONE, lambda: None) as folder:
        assert (folder / "engine" / "zero" / "6.bias" / "fp32.pt").read_bytes() != b"something else"


def test_a_file_damaged_on_the_way_is_not_loaded(tmp_path: Path) -> None:
    """What rank 0 found sound may still reach another rank broken."""
    from longhaul.storage import Storage
    from longhaul.training.checkpoints import reshard

    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "a.pt").write_bytes(b"whole")
    folder = Storage.open(tmp_path / "place")
    reshard._publish(folder, tmp_path / "made", "step-1")
    assert reshard._fetch(folder, tmp_path / "scratch", lambda: None) == tmp_path / "place"
    folder.write_bytes("a.pt", b"part")
    with pytest.raises(UniversalDamagedError, match=r"a\.pt is not what was written"):
        reshard._fetch(folder, tmp_path / "scratch", lambda: None)
    folder.delete_file("a.pt")
    with pytest.raises(UniversalDamagedError, match=r"a\.pt is missing"):
        reshard._fetch(folder, tmp_path / "scratch", lambda: None)
