"""A checkpoint that is not whole is never resumed from: the one before it is, and the log says which and why."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longhaul.errors import IntegrityError, UserError
from longhaul.recipe import Recipe, parse
from longhaul.resilience.checkpoint import CheckpointStore, Manifest, Retention, load_weights
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.checkpoints import saving
from longhaul.training.checkpoints.resuming import Resumer
from longhaul.training.checkpoints.saving import Saver
from longhaul.training.engine.engine import Engine, build_engine
from longhaul.training.loop import Trainer
from longhaul.training.progress import Progress
from longhaul.training.ranks import Ranks
from longhaul.workloads import build

RECIPE = """
name: cut
data: {kind: digits, resolution: 16, loader_workers: 0, augment: shift}
model: {name: test_resnet, drop_rate: 0.1}
training: {steps: 6, global_batch: 8, micro_batch: 8, ema_decay: 0.5}
checkpoints: {every: 2 steps, keep_latest: 3, keep_best: 1}
validation: {every: 6 steps, batch: 144}
"""
ALONE = Ranks(0, 1, torch.device("cpu"))


def nothing(name: str, metrics: dict[str, float]) -> None:
    """A report to nobody."""


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return parse(RECIPE)


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = RunDirectory.create(str(tmp_path_factory.mktemp("runs")), "cut", recipe)
    Trainer(recipe, build(recipe), run, ALONE, nothing).train()
    assert [entry.step for entry in CheckpointStore(run).entries()] == [2, 4, 6]
    return run


@pytest.fixture
def copied(finished: RunDirectory, tmp_path: Path) -> Iterator[RunDirectory]:
    target = tmp_path / "cut"
    shutil.copytree(finished.uri, target)
    yield RunDirectory.open(str(target))
    shutil.rmtree(target)


def resumer(recipe: Recipe, run: RunDirectory) -> Resumer:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    from longhaul.data.loader import BatchPlan

    engine: Engine = build_engine(recipe, build(recipe).build_model(), BatchPlan.derive(8, 8), ALONE)
    averaged = AveragedModel(engine.module, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    return Resumer(run, recipe, ALONE, engine, averaged, build(recipe).splits.train.fingerprint)


def saver(one: Resumer) -> Saver:
    return Saver(one.run, ALONE, one.engine, one.averaged, "feedbeef", nothing, Retention(9, 1, "max"))


def files_of_a_checkpoint() -> list[str]:
    return [
        "model.safetensors",
        "ema.safetensors",
        "ema.pt",
        "progress.json",
        "rank-00000.pt",
        "engine/torch.pt",
        "manifest-00000-of-00001.json",
    ]


def test_the_list_of_files_is_complete(finished: RunDirectory) -> None:
    newest = CheckpointStore(finished).entries()[-1]
    assert sorted(CheckpointStore(finished).folder(newest.name).files()) == sorted(files_of_a_checkpoint())


@pytest.mark.parametrize("damage", ["removed", "cut", "flipped"])
@pytest.mark.parametrize("file", files_of_a_checkpoint())
def test_a_damaged_checkpoint_is_passed_over(
    recipe: Recipe, copied: RunDirectory, caplog: pytest.LogCaptureFixture, file: str, damage: str
) -> None:
    newest = CheckpointStore(copied).entries()[-1]
    path = Path(copied.uri) / "checkpoints" / newest.name / file
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with caplog.at_level(logging.WARNING, "longhaul"):
        progress = resumer(recipe, copied).resume()
    assert progress is not None
    assert progress.step == 4
    assert newest.name in caplog.text
    assert ("manifest" if file.startswith("manifest") else file) in caplog.text
    events = copied.events().to_pylist()
    assert [event["kind"] for event in events if newest.name in event["message"]][-1] == "checkpoint_rejected"


def test_a_checkpoint_cut_at_any_number_of_files_is_passed_over(recipe: Recipe, copied: RunDirectory) -> None:
    """As a crash leaves it: the first n files are there, in the order in which they are written, the manifest last."""
    newest = CheckpointStore(copied).entries()[-1]
    folder = Path(copied.uri) / "checkpoints" / newest.name
    whole = folder.with_name("whole")
    folder.rename(whole)
    written = [*sorted(f for f in files_of_a_checkpoint() if not f.startswith("manifest")), "manifest-00000-of-00001.json"]
    for count in range(len(written)):
        shutil.rmtree(folder, ignore_errors=True)
        for file in written[:count]:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(whole / file, folder / file)
        store = CheckpointStore(copied)
        assert [entry.step for entry in store.entries() if entry.name != "whole"] == [2, 4]
        if count:
            assert store.problems(newest.name)
    shutil.rmtree(folder)
    whole.rename(folder)
    assert CheckpointStore(copied).problems(newest.name) == []  # the control: whole again, it counts again


def test_when_none_is_whole_the_run_stops_and_nothing_is_lost(recipe: Recipe, copied: RunDirectory) -> None:
    names = [entry.name for entry in CheckpointStore(copied).entries()]
    for name in names:
        (Path(copied.uri) / "checkpoints" / name / "engine" / "torch.pt").unlink()
    with pytest.raises(IntegrityError, match="none of its checkpoints verifies"):
        resumer(recipe, copied).resume()
    assert [entry.name for entry in CheckpointStore(copied).entries()] == names  # and none is marked


def test_when_none_was_ever_complete_the_run_starts_over(recipe: Recipe, copied: RunDirectory) -> None:
    for entry in CheckpointStore(copied).entries():
        (Path(copied.uri) / "checkpoints" / entry.name / "manifest-00000-of-00001.json").unlink()
    assert resumer(recipe, copied).resume() is None


def test_other_data_are_not_gone_on_with(recipe: Recipe, copied: RunDirectory) -> None:
    changed = dataclasses.replace(resumer(recipe, copied), fingerprint="0" * 64)
    with pytest.raises(UserError, match="training data are not those"):
        changed.resume()


def test_a_manifest_of_an_older_schema_keeps_its_seal(copied: RunDirectory) -> None:
    """A field that a later version adds, with a default, must not make every older checkpoint look damaged."""
    newest = CheckpointStore(copied).entries()[-1]
    file = Path(copied.uri) / "checkpoints" / newest.name / "manifest-00000-of-00001.json"
    members = json.loads(file.read_text())
    del members["permanent"]  # as if it had been written before the field was there
    rest = {name: value for name, value in members.items() if name != "seal"}
    members["seal"] = hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    file.write_text(json.dumps(members, indent=1))
    assert CheckpointStore(copied).problems(newest.name) == []


def test_a_rejected_checkpoint_never_counts_for_retention(recipe: Recipe, copied: RunDirectory) -> None:
    store = CheckpointStore(copied)
    newest = store.entries()[-1]
    store.reject(newest.name, ["for a test"])
    gone = store.retire(Retention(latest=2, best=0, direction="max"), "feedbeef")
    assert gone == [newest.name]
    assert [entry.step for entry in store.entries()] == [2, 4]


def test_leftovers_of_another_attempt_are_deleted_and_the_running_one_is_not(copied: RunDirectory) -> None:
    store = CheckpointStore(copied)
    for name in ("step-000000008-deadbeef", "step-000000008-feedbeef"):
        store.folder(name).write_bytes("model.safetensors", b"half")
    assert store.retire(Retention(latest=3, best=1, direction="max"), "feedbeef") == ["step-000000008-deadbeef"]


def test_retention_keeps_newest_best_and_permanent(copied: RunDirectory, finished: RunDirectory) -> None:
    store = CheckpointStore(copied)
    for step, goal, permanent in [(10, 0.5, False), (11, 0.9, False), (12, None, True), (13, 0.7, False), (14, 0.2, False)]:
        manifest = Manifest(
            step=step, rank=0, world_size=1, attempt="a", created_s=float(step), permanent=permanent, goal=goal, files={}
        )
        store.publish(f"step-{step:09d}-a", Path(finished.uri) / "metrics", manifest)
    store.retire(Retention(latest=1, best=2, direction="max"), "none")
    assert [entry.step for entry in store.entries()] == [11, 12, 13, 14]
    assert load_weights_step(copied, "max") == 11


def load_weights_step(run: RunDirectory, direction: str) -> int:
    from longhaul.resilience.checkpoint import best_entries

    return best_entries(CheckpointStore(run).entries(), "max" if direction == "max" else "min")[0].step


def test_the_manifests_of_all_ranks_must_be_there(copied: RunDirectory, finished: RunDirectory) -> None:
    store = CheckpointStore(copied)
    for rank in range(2):
        manifest = Manifest(step=20, rank=rank, world_size=3, attempt="a", created_s=1.0, files={})
        store.publish("step-000000020-a", Path(finished.uri) / "metrics", manifest)
    assert store.problems("step-000000020-a") == ["incomplete: the manifests of ranks [2] of 3 are missing"]
    assert 20 not in [entry.step for entry in store.entries()]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_published(recipe: Recipe, copied: RunDirectory, value: float) -> None:
    one = resumer(recipe, copied)
    before = CheckpointStore(copied).candidates()
    with torch.no_grad():
        next(one.engine.module.parameters()).view(-1)[0] = value
    saving = saver(one)
    saving.save(Progress(fingerprint=one.fingerprint, step=9), {}, goal=None, permanent=False)
    [save] = saving.wait()
    assert save.standing[0] == "nonfinite"
    assert "step 9: weights are not finite" in save.standing[1]
    assert CheckpointStore(copied).candidates() == before


def test_what_is_saved_is_the_moment_of_the_save_whatever_training_does_meanwhile(
    recipe: Recipe, copied: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that writes is held until the weights have changed."""
    one = resumer(recipe, copied)
    assert one.averaged is not None
    expected = {name: value.clone() for name, value in one.engine.module.state_dict().items()}
    average = {name: value.clone() for name, value in one.averaged.module.state_dict().items()}
    changed, publish = threading.Event(), CheckpointStore.publish

    def held(self: CheckpointStore, *args: Any) -> None:
        assert changed.wait(60)
        publish(self, *args)

    write = Saver._write

    def held_write(self: Saver, *args: Any) -> None:
        assert changed.wait(60)
        write(self, *args)

    monkeypatch.setattr(Saver, "_write", held_write)
    monkeypatch.setattr(CheckpointStore, "publish", held)
    saving = saver(one)
    assert saving.save(Progress(fingerprint=one.fingerprint, step=9), {}, goal=None, permanent=False) == []
    with torch.no_grad():
        for value in [*one.engine.module.state_dict().values(), *one.averaged.module.state_dict().values()]:
            value.zero_()
    changed.set()
    [save] = saving.wait()
    folder = Path(CheckpointStore(copied).folder(save.name).root)
    saved, saved_average = load_file(folder / "model.safetensors"), load_file(folder / "ema.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in expected.items())
    assert all(torch.equal(saved_average[name], value) for name, value in average.items())


def test_a_save_that_fails_is_told_and_ends_nothing(
    recipe: Recipe, copied: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: CheckpointStore, *args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CheckpointStore, "publish", full)
    saving = saver(resumer(recipe, copied))
    saving.save(Progress(step=9), {}, goal=None, permanent=False)
    [save] = saving.wait()
    assert save.standing == ("failed", "OSError: [Errno 28] No space left on device")


def test_a_rewind_abandons_what_is_from_the_bad_step_on(recipe: Recipe, copied: RunDirectory) -> None:
    progress = resumer(recipe, copied).rewind(before=5)
    assert progress.step == 4
    assert [entry.step for entry in CheckpointStore(copied).entries()] == [2, 4]


def test_weights_come_from_the_average_and_are_checked(copied: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    weights = load_weights(copied, "latest")
    folder = Path(copied.uri) / "checkpoints" / weights.checkpoint
    average, plain = load_file(folder / "ema.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(weights.state[name], average[name]) for name in average)
    assert any(not torch.equal(plain[name], average[name]) for name in average)
    for entry in reversed(CheckpointStore(copied).entries()):
        path = Path(copied.uri) / "checkpoints" / entry.name / "ema.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        if entry.step > 2:
            assert load_weights(copied, "latest").step == entry.step - 2  # the next one, and the log says why
            assert entry.name in caplog.text
    with pytest.raises(IntegrityError, match=r"ema\.safetensors"):
        load_weights(copied, "latest")


def test_old_checkpoints_that_cannot_be_deleted_make_no_save_a_failure(
    recipe: Recipe, copied: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: CheckpointStore, *args: object) -> list[str]:
        raise OSError("AWS Error SLOW_DOWN during DeleteObjects operation")

    monkeypatch.setattr(CheckpointStore, "retire", away)
    [save] = saver(resumer(recipe, copied)).save(Progress(step=9), {}, goal=0.5, permanent=False, wait=True)
    assert save.standing == ("written", "")
    assert CheckpointStore(copied).entries()[-1].step == 9


def test_a_save_that_must_be_is_tried_again(recipe: Recipe, copied: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    publish, left = CheckpointStore.publish, [2]

    def flaky(self: CheckpointStore, *args: Any) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError("AWS Error SLOW_DOWN during PutObject operation")
        publish(self, *args)

    monkeypatch.setattr(CheckpointStore, "publish", flaky)
    monkeypatch.setattr(saving, "_PAUSES_S", (0.0, 0.0))
    saves = saver(resumer(recipe, copied)).save(Progress(step=9), {}, goal=None, permanent=False, wait=True)
    assert [save.standing[0] for save in saves] == ["failed", "failed", "written"]
    left[0] = 3
    with pytest.raises(OSError, match="step 10: no checkpoint could be written"):
        saver(resumer(recipe, copied)).save(Progress(step=10), {}, goal=None, permanent=False, wait=True)


def test_after_a_failed_save_another_is_owed(recipe: Recipe, copied: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(self: CheckpointStore, *args: object) -> None:
        raise OSError("away")

    one = saver(resumer(recipe, copied))
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "publish", away)
        patch.setattr(saving, "_AGAIN_S", 0.0)
        one.save(Progress(step=9), {}, goal=None, permanent=False)
        one.wait()
        assert one.owes_one
    one.save(Progress(step=9), {}, goal=None, permanent=False)
    one.wait()
    assert not one.owes_one


@pytest.mark.parametrize("goal", [float("nan"), float("inf")])
def test_a_goal_that_is_no_number_does_not_spoil_its_checkpoint(recipe: Recipe, copied: RunDirectory, goal: float) -> None:
    saver(resumer(recipe, copied)).save(Progress(step=9), {}, goal=goal, permanent=False, wait=True)
    store = CheckpointStore(copied)
    assert (store.entries()[-1].step, store.entries()[-1].goal) == (9, None)
    assert store.problems(store.entries()[-1].name) == []
