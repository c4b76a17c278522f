"""Sweeps on a real Ray cluster, by Ray Tune: nothing is trained twice, whatever happens on the way."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import boto3
import pyarrow.parquet as pq
import pytest
import torch
from interruptible import interruptible

from longhaul.errors import UserError
from longhaul.recipe.load import parse_sweep
from longhaul.recipe.sweep import SweepRecipe
from longhaul.resilience.checkpoint import CheckpointStore, load_weights
from longhaul.resilience.run_directory import RunDirectory
from longhaul.resilience.sweep_directory import SweepDirectory, SweepState

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

ROOT = Path(__file__).parents[2]
SWEEP = """
name: grid
recipe:
  seed: 3
  model: {name: tiny_cnn}
  data: {kind: imagefolder, root: ROOT, resolution: 16, loader_workers: 0}
  training: {epochs: 2, global_batch: 10, micro_batch: 10, optimizer: {name: adamw, lr: 3.0e-3}}
  checkpoints: {every: 2 steps, keep_latest: 2, keep_best: 1}
  tracking: {log_every: 1 steps}
  resilience: {preflight: false, poll_s: 0.05}
"""
GRID = SWEEP + "grid: {data.resolution: [8, 16]}\n"
STEPS = 8  # of two epochs of 40 images


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of the digits: 10 training, 6 validation and 6 test images each."""
    from PIL import Image
    from sklearn.datasets import load_digits

    root, digits = tmp_path_factory.mktemp("images"), load_digits()
    for label in range(4):
        chosen = digits.images[digits.target == label]
        for part, place, count in (("train", 0, 10), ("val", 10, 6), ("test", 16, 6)):
            folder = root / part / str(label)
            folder.mkdir(parents=True)
            for number in range(place, place + count):
                Image.fromarray((chosen[number] * 15).astype("uint8")).save(folder / f"{number}.png")
    return root


def sweep_of(images: Path, text: str = GRID, *overrides: str) -> SweepRecipe:
    return parse_sweep(text.replace("ROOT", str(images)), overrides=overrides)


def call(sweep: SweepRecipe, storage: str, name: str = "grid", **options: Any) -> SweepState:
    """What `longhaul sweep` does."""
    from longhaul.tuning.sweep import run
    from longhaul.tuning.sweep_plan import plan

    return run(plan(sweep, storage, name, folder=Path.cwd(), **options))


def standings(state: SweepState) -> dict[str, str]:
    return {record.label: record.standing for record in state.cells}


def runs(storage: str, state: SweepState) -> dict[str, RunDirectory]:
    return {record.label: SweepDirectory.at(storage, "any").run(record.key) for record in state.cells}


def segments(storage: str, state: SweepState) -> dict[str, int]:
    return {label: run.summary().segment for label, run in runs(storage, state).items()}


def steps_trained(run: RunDirectory) -> Counter[int]:
    """How often each step was computed: the log has a training loss of each."""
    return Counter(row["step"] for row in run.metrics().to_pylist() if row["name"] == "train/loss")


def leftovers(storage: Path, name: str = "grid") -> list[str]:
    return sorted(path.name for path in (storage / name).iterdir())


def test_a_grid_trains_each_cell_once_and_an_extended_one_the_new_cells_alone(images: Path, tmp_path: Path) -> None:
    storage = str(tmp_path)
    sweep = sweep_of(images)
    began = time.time()
    state = call(sweep, storage)
    assert standings(state) == {"8": "finished", "16": "finished"}
    assert leftovers(tmp_path) == ["sweep.json", "sweep.yaml", "table.parquet"]
    assert SweepDirectory.open(storage, "grid").state() == state
    for record in state.cells:
        run = runs(storage, state)[record.label]
        assert steps_trained(run) == Counter(range(1, STEPS + 1))
        assert [epoch for epoch, _ in record.scores] == [1.0, 2.0]
        assert record.score == max(score for _, score in record.scores) == run.summary().best
        assert record.results == run.summary().results
        assert "test/top1" in record.results
        assert record.steps == STEPS
        assert json.loads(run.storage.read_bytes("cell.json"))["content"]
    assert 0 < sum(record.seconds for record in state.cells) <= 2 * (time.time() - began)
    table = pq.read_table(tmp_path / "grid" / "table.parquet").to_pydict()
    assert table["data.resolution"] == [8, 16]
    assert table["standing"] == ["finished", "finished"]

    # By Ray Train, the same recipe gives the same weights, bit for bit.
    from longhaul.training.on_ray.launch import fit

    alone = runs(storage, state)["8"]
    by_ray = RunDirectory.create(storage, "by-ray", alone.recipe())
    assert fit(alone.recipe(), by_ray).results == state.cells[0].results
    mine, other = load_weights(alone).state, load_weights(by_ray).state
    assert mine.keys() == other.keys()
    assert [name for name in mine if not torch.equal(mine[name], other[name])] == []

    before = segments(storage, state)
    again = call(sweep, storage)
    assert standings(again) == standings(state)
    assert segments(storage, again) == before
    assert [record.seconds for record in again.cells] == [record.seconds for record in state.cells]

    # Another sweep below the same storage, in another order, with one cell more.
    wider = sweep_of(images, GRID, "grid.data.resolution=[12, 16, 8]")
    other = call(wider, storage, "wider")
    assert standings(other) == {"12": "finished", "16": "finished", "8": "finished"}
    assert segments(storage, other) == {**before, "12": 1}
    assert other.cells[2].results == state.cells[0].results  # type: ignore[attr-defined]


def test_a_cell_that_fails_leaves_the_others_alone_and_is_tried_again(images: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(images, tmp_path / "broken"))
    spare, picture = sorted((broken / "train" / "2").iterdir())[:2]
    spare.unlink()  # or it would be the same data, and the same cell
    whole = picture.read_bytes()
    picture.write_bytes(b"\x00" * len(whole))  # of the same size: the same fingerprint
    storage = str(tmp_path / "runs")
    sweep = sweep_of(images, SWEEP + f"grid: {{data.root: [{images}, {broken}]}}\n")
    state = call(sweep, storage)
    good, bad = state.cells
    assert good.standing == "finished"
    assert bad.standing == "failed"
    assert picture.name in (bad.reason or "")
    rows = pq.read_table(f"{storage}/grid/table.parquet").to_pylist()
    assert [row["standing"] for row in rows] == ["finished", "failed"]
    before = segments(storage, state)
    assert before[bad.label] == 1  # a mistake is no reason to try again in the same call

    picture.write_bytes(whole)
    mended = call(sweep, storage)
    assert [record.standing for record in mended.cells] == ["finished", "finished"]
    assert mended.cells[1].reason is None
    assert segments(storage, mended)[good.label] == before[good.label]


def test_a_stopped_cell_is_forced_to_its_end_from_where_it_stood(images: Path, tmp_path: Path) -> None:
    text = SWEEP + "grid: {training.optimizer.lr: [0.01, 1.0e-9, 1.0e-8]}\n"
    rule = ["stopping={kind: asha, least_epochs: 2, reduction: 2}", "recipe.training.epochs=5", "resources.parallel=1"]
    sweep, storage = sweep_of(images, text, *rule), str(tmp_path)
    state = call(sweep, storage)
    assert [record.standing for record in state.cells] == ["finished", "stopped", "stopped"]
    first, stopped, other = (runs(storage, state)[record.label] for record in state.cells)
    assert state.cells[1].reason == "stopped early by asha"
    assert stopped.summary().status == "paused"
    assert state.cells[1].scores[-1][0] == 2.0
    assert steps_trained(stopped) == Counter(range(1, 9))
    again = call(sweep, storage)  # stopped is over: nothing is trained
    assert again.cells == state.cells

    forced = call(sweep, storage, force=[state.cells[1].label])
    assert [record.standing for record in forced.cells] == ["finished", "finished", "stopped"]
    assert steps_trained(stopped) == Counter(range(1, 21))  # none twice
    assert [event["step"] for event in stopped.events().to_pylist() if event["kind"] == "resumed"] == [8]
    assert [epoch for epoch, _ in forced.cells[1].scores] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert first.summary().segment == other.summary().segment == 1


@pytest.mark.exhaustive
def test_a_spent_budget_ends_a_sweep_and_a_raised_one_goes_on(images: Path, tmp_path: Path) -> None:
    storage = str(tmp_path)
    state = call(sweep_of(images, GRID, "budget.trials=1", "resources.parallel=1"), storage)
    assert sorted(standings(state).values()) == ["finished", "planned"]
    assert state.notes == ["budget.trials 1: 1 cells have been trained"]
    before = segments(storage, state)
    # All its hours are gone at once: what began is paused.
    paused = call(sweep_of(images, GRID, "budget.hours=1.0e-9"), storage)
    assert segments(storage, paused) == before
    assert "budget.hours" in paused.notes[-1]
    done = call(sweep_of(images), storage)
    assert set(standings(done).values()) == {"finished"}
    assert max(segments(storage, done).values()) == 1
    assert done.hours > state.hours > 0


DRIVER = """
import sys
from pathlib import Path
import ray
from longhaul.recipe.load import load_sweep
from longhaul.tuning.sweep import run
from longhaul.tuning.sweep_plan import plan

if __name__ == "__main__":
    planned = plan(load_sweep(sys.argv[2]), sys.argv[3], "first", folder=Path.cwd())
    ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
    try:
        run(planned)
    except KeyboardInterrupt:
        print(planned.state.cells[0].standing, flush=True)
"""


def wait_for(condition: Any, what: str, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what} in vain"
        time.sleep(0.1)


def test_of_two_sweeps_that_share_a_cell_one_waits_and_goes_on_where_ctrl_c_ends_the_other(
    images: Path, tmp_path: Path, ray_cluster: str
) -> None:
    long = sweep_of(
        images, SWEEP + "grid: {training.epochs: [100]}\n", "resources.parallel=1", "recipe.checkpoints.every=1000 steps"
    )
    file, script, storage = tmp_path / "sweep.yaml", tmp_path / "driver.py", str(tmp_path / "runs")
    from longhaul.recipe.load import dump_sweep

    file.write_text(dump_sweep(long))
    script.write_text(DRIVER)
    command = interruptible(sys.executable, str(script), ray_cluster, str(file), storage)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as driver:
        first = SweepDirectory.at(storage, "first")
        key: list[str] = []

        def has_validated() -> bool:
            assert driver.poll() is None, driver.communicate()
            key[:] = [record.key for record in first.state().cells if record.steps] if first.exists else []
            return bool(key)

        wait_for(has_validated, "the first validation")
        second: list[str] = []

        def interrupt() -> None:
            wait_for(lambda: "running" in second, "the second sweep's trial")
            time.sleep(1)
            driver.send_signal(signal.SIGINT)

        timer = threading.Thread(target=interrupt, daemon=True)
        timer.start()
        from longhaul.tuning.sweep import run
        from longhaul.tuning.sweep_plan import plan

        planned = plan(long, storage, "second", folder=Path.cwd())
        state = run(planned, lambda state: second.append(state.cells[0].standing))
        out, err = driver.communicate(timeout=60)
    assert (driver.returncode, out.strip().splitlines()[-1:]) == (0, ["planned"]), err
    assert [record.standing for record in state.cells] == ["finished"]
    cell = first.run(key[0])
    assert cell.summary().segment == 2
    assert steps_trained(cell) == Counter(range(1, 401))  # saved where the first ended: none twice
    finished = call(long, storage, "first")
    assert [record.standing for record in finished.cells] == ["finished"]
    assert cell.summary().segment == 2


def test_a_cell_of_two_workers_trains_by_ray_train_and_its_validations_are_heard(images: Path, tmp_path: Path) -> None:
    sweep = sweep_of(images, SWEEP + "grid: {seed: [1]}\n", "recipe.scaling.workers=2", "recipe.training.epochs=3")
    seen: list[list[tuple[float, float]]] = []
    from longhaul.tuning.sweep import run
    from longhaul.tuning.sweep_plan import plan

    state = run(plan(sweep, str(tmp_path), "two", folder=Path.cwd()), lambda state: seen.append(state.cells[0].scores))
    assert standings(state) == {"1": "finished"}
    cell = runs(str(tmp_path), state)["1"]
    assert cell.summary().workers == 2
    assert [epoch for epoch, _ in state.cells[0].scores] == [1.0, 2.0, 3.0]
    assert state.cells[0].seconds > 0


@pytest.mark.exhaustive
def test_a_trial_of_a_folded_search_is_its_folds(images: Path, tmp_path: Path) -> None:
    space = "{training.optimizer.lr: {log_uniform: [1.0e-3, 1.0e-1]}}"
    text = SWEEP + f"folds: 2\nsearch: {{kind: random, trials: 2, seed: 4, space: {space}}}\n"
    sweep, storage = sweep_of(images, text, "recipe.training.epochs=1"), str(tmp_path)
    state = call(sweep, storage, "folded")
    assert [record.standing for record in state.cells] == ["finished"] * 4
    rates = [record.coordinates["training.optimizer.lr"] for record in state.cells]
    assert rates[0] == rates[1] != rates[2] == rates[3]
    assert [record.coordinates["data.fold"] for record in state.cells] == [0, 1, 0, 1]
    before = segments_by_key(storage, state)
    more = call(sweep_of(images, text, "recipe.training.epochs=1", "search.trials=3"), storage, "folded")
    assert [record.key for record in more.cells[:4]] == [record.key for record in state.cells]
    assert [record.standing for record in more.cells] == ["finished"] * 6
    assert segments_by_key(storage, state) == before


def segments_by_key(storage: str, state: SweepState) -> dict[str, int]:
    return {record.key: SweepDirectory.at(storage, "any").run(record.key).summary().segment for record in state.cells}


@pytest.mark.exhaustive
def test_a_grid_on_s3_is_trained_once(images: Path, s3_server: str) -> None:
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket="longhaul-sweeps")
    sweep, storage = sweep_of(images, GRID, "grid.data.resolution=[8]", "recipe.training.epochs=1"), "s3://longhaul-sweeps/here"
    state = call(sweep, storage)
    assert standings(state) == {"8": "finished"}
    assert sorted(entry.name for entry in SweepDirectory.open(storage, "grid").storage.list()) == [
        "sweep.json", "sweep.yaml", "table.parquet",
    ]  # fmt: skip
    assert CheckpointStore(runs(storage, state)["8"]).entries()
    again = call(sweep, storage)
    assert segments(storage, again) == {"8": 1}
    assert SweepDirectory.all(storage)[0].state() == again


def test_one_sweep_is_driven_once_at_a_time(images: Path, tmp_path: Path) -> None:
    from longhaul.resilience.lease import lease

    with lease(RunDirectory(SweepDirectory.at(str(tmp_path), "grid").storage)), pytest.raises(UserError, match="grid"):
        call(sweep_of(images), str(tmp_path))
