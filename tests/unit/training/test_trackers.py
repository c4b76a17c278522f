"""Trackers: each really writes, is read back, goes on under its id; none of them can hurt the training."""

from __future__ import annotations

import logging
import os
import struct
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from longhaul.recipe import Recipe, parse
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.training.record.tracker_feed import Feed, Row, Shelf, Status
from longhaul.training.record.trackers import Trackers, make_trackers

TEXT = "{name: tiny, model: {name: resnet10t}, data: {kind: digits}, training: {epochs: 2}, tracking: {project: tests}}"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody's key, server or home."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_", "AWS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def recipe_with(*trackers: str) -> Recipe:
    return parse(TEXT, overrides=[f"tracking.trackers=[{', '.join(trackers)}]"])


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "runs")
        return
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (settings | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}).items():
        monkeypatch.setenv(name, value)
    bucket = f"trackers-{uuid.uuid4().hex[:8]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    yield f"s3://{bucket}/runs"
    server.stop()


def train_twice(root: str, tracker: str) -> tuple[RunDirectory, str]:
    """Two lives of one run: steps 1 to 6, then from the checkpoint at step 3 on to 8."""
    recipe = recipe_with(tracker)
    run = RunDirectory.create(root, "twice", recipe)
    first = make_trackers(recipe, run, {})
    for step in range(1, 7):
        first.log({"train/loss": 1 / step}, step, step / 10)
    first.close("failed")
    run.write_summary(Summary(segment=1))
    second = make_trackers(recipe, run, first.run_ids)
    assert second.run_ids == first.run_ids
    for step in range(4, 9):
        second.log({"train/loss": 10 / step}, step, step / 10)
    second.close("finished")
    return run, first.run_ids[tracker]


def fetched(run: RunDirectory, tmp_path: Path) -> Path:
    """The run's `trackers/` on the local disk."""
    if run.storage.is_local:
        return Path(run.uri) / "trackers"
    for name in run.storage.files("trackers"):
        run.storage.download(f"trackers/{name}", tmp_path / "fetched" / name)
    return tmp_path / "fetched"


def test_tensorboard_shows_the_newest_value_of_each_step(root: str, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _ = train_twice(root, "tensorboard")
    folder = fetched(run, tmp_path) / "tensorboard"
    events = EventAccumulator(str(folder)).Reload()
    found = {event.step: event.value for event in events.Scalars("train/loss")}
    assert found == pytest.approx({step: 10 / step if step >= 4 else 1 / step for step in range(1, 9)})
    assert len(events.Scalars("train/loss")) == 8  # the first life's steps 4 to 6 are purged
    assert "recipe/text_summary" in events.Tags()["tensors"]
    assert len(list(folder.glob("events.*"))) == 2


def test_mlflow_goes_on_in_the_same_run(root: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    run, run_id = train_twice(root, "mlflow")
    client = MlflowClient(tracking_uri=f"sqlite:///{fetched(run, tmp_path)}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    (stored,) = client.search_runs([experiment.experiment_id])
    assert stored.data.tags["longhaul.id"] == run_id
    assert stored.data.tags["longhaul.segment"] == "2"
    assert (stored.info.status, stored.info.run_name) == ("FINISHED", "twice")
    assert stored.data.params["recipe_sha256"] == run.recipe().sha256
    assert stored.data.params["model.name"] == "resnet10t"
    history = [(point.step, point.value) for point in client.get_metric_history(stored.info.run_id, "train/loss")]
    expected = [(step, 1 / step) for step in range(1, 7)] + [(step, 10 / step) for step in range(4, 9)]
    assert sorted(history) == sorted(expected)
    assert not (Path.cwd() / "mlruns").exists()


def wandb_records(path: Path) -> list[object]:
    """The records of a `.wandb` file: a LevelDB log (7 bytes of head; blocks of 32 KiB; checksum, length, type) of protobufs."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or the last piece of one
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(whole)
            records.append(record)
            whole = b""
    return records


def wandb_history(path: Path) -> list[dict[str, str]]:
    rows = []
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":  # type: ignore[attr-defined]
            items = record.history.item  # type: ignore[attr-defined]
            rows.append({item.key or "/".join(item.nested_key): item.value_json for item in items})
    return rows


def next_second() -> None:
    """wandb names a folder by the second; a restart takes longer than that, a test does not."""
    now = int(time.time())
    while int(time.time()) == now:
        time.sleep(0.05)


def test_wandb_offline_writes_and_goes_on_under_its_id(root: str, tmp_path: Path) -> None:
    recipe = recipe_with("wandb")
    run = RunDirectory.create(root, "twice", recipe)
    ids: dict[str, str] = {}
    for life, steps in enumerate((range(1, 7), range(4, 9))):
        run.write_summary(Summary(segment=life))
        trackers = make_trackers(recipe, run, ids)
        for step in steps:
            trackers.log({"train/loss": 1 / step}, step, step / 10)
        trackers.close("finished")
        ids = trackers.run_ids
        next_second()
    files = sorted((fetched(run, tmp_path) / "wandb").rglob(f"run-{ids['wandb']}.wandb"))
    assert len(files) == 2
    histories = [wandb_history(path) for path in files]
    assert [[int(row["step"]) for row in rows] for rows in histories] == [list(range(1, 7)), list(range(4, 9))]
    assert [{row["segment"] for row in rows} for rows in histories] == [{"1"}, {"2"}]
    assert float(histories[0][1]["train/loss"]) == 0.5
    starts = [record.run for record in wandb_records(files[1]) if record.WhichOneof("record_type") == "run"]  # type: ignore[attr-defined]
    assert (starts[0].run_id, starts[0].project, starts[0].display_name) == (ids["wandb"], "tests", "twice")
    config = {item.key: item.value_json for item in starts[0].config.update}
    assert config["recipe_sha256"] == f'"{recipe.sha256}"'
    assert config["model.name"] == '"resnet10t"'


@pytest.mark.parametrize("how", ["key", "netrc", "nothing"])
def test_wandb_is_online_only_with_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str) -> None:
    from longhaul.training.record import trackers

    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    if how == "key":
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    if how == "netrc":
        (tmp_path / "no-netrc").write_text(f"machine 127.0.0.1 login user password {'0' * 40}\n")
    assert trackers._wandb_key() is (how != "nothing")


def test_no_library_is_imported_that_was_not_chosen(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys; from longhaul.training.record import trackers; from longhaul.recipe import parse\n"
        "from longhaul.resilience.run_directory import RunDirectory\n"
        f"recipe = parse({TEXT!r}); run = RunDirectory.create({str(tmp_path)!r}, 'a', recipe)\n"
        "made = trackers.make_trackers(recipe, run, {}); made.log({'a': 1.0}, 1, 0.1); made.close('finished')\n"
        "print([name for name in ('wandb', 'mlflow', 'tensorboard', 'torch') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


class Collector:
    """A tracker that fails as it is told: at opening, at every row, at one poisonous row."""

    run_id = "x"

    def __init__(self, away: threading.Event | None = None, poison: int = -1) -> None:
        self.rows: list[Row] = []
        self.closed: list[Status] = []
        self.tried = threading.Event()
        self.away, self.poison = away, poison

    def open(self) -> Collector:
        self._answer()
        return self

    def log(self, row: Row) -> None:
        self._answer()
        if row.step == self.poison:
            raise ValueError("refused")
        self.rows.append(row)

    def close(self, status: Status) -> None:
        self.closed.append(status)

    def _answer(self) -> None:
        if self.away is not None and self.away.is_set():
            self.tried.set()
            raise ConnectionError("server is away")


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf.open(RunDirectory.create(str(tmp_path), "a", parse(TEXT)), "collector")


def log_steps(trackers: Trackers, *steps: int) -> None:
    for step in steps:
        trackers.log({"train/loss": 1.0}, step, 0.0)


def test_a_server_that_comes_back_gets_every_row_and_one_warning(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    away = threading.Event()
    away.set()
    collector = Collector(away)
    trackers = Trackers([Feed("test", collector.open, shelf, retry_s=0.01)], {})
    with caplog.at_level(logging.INFO):
        log_steps(trackers, 1, 2, 3)
        assert collector.tried.wait(30)
        collector.tried.clear()
        assert collector.tried.wait(30)  # tried again
        away.clear()
        log_steps(trackers, 4)
        trackers.close("finished")
    assert [row.step for row in collector.rows] == [1, 2, 3, 4]
    assert collector.closed == ["finished"]
    assert [r.levelname for r in caplog.records if r.name.startswith("longhaul")] == ["WARNING", "INFO"]
    assert "server is away" in caplog.text


def test_a_server_that_stays_away_ends_with_the_run(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    away = threading.Event()
    away.set()
    collector = Collector(away)
    trackers = Trackers([Feed("test", collector.open, shelf, retry_s=3600)], {})
    log_steps(trackers, 1, 2)
    trackers.close("finished")
    assert collector.rows == []
    assert "2 rows are in the run directory only" in caplog.text


def test_a_row_that_is_always_refused_does_not_block_the_others(shelf: Shelf) -> None:
    collector = Collector(poison=2)
    trackers = Trackers([Feed("test", collector.open, shelf, retry_s=0.0)], {})
    log_steps(trackers, 1, 2, 3)
    while len(collector.rows) < 2:  # the deadline is the test's own
        time.sleep(0.01)
    trackers.close("failed")
    assert [row.step for row in collector.rows] == [1, 3]
    assert collector.closed == ["failed"]


def test_a_tracker_that_hangs_holds_up_nothing(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    hang = threading.Event()
    feed = Feed("test", lambda: hang.wait(60) and Collector(), shelf)  # type: ignore[arg-type, return-value]
    for step in range(3000):
        feed.put(Row({}, step, 0.0, 0, 0.0))
    feed.finish("finished")
    feed.join(0.01)
    assert "2000 rows are in the run directory only" in caplog.text  # the newest; the oldest gave way
    hang.set()


def test_a_lower_step_begins_a_segment(shelf: Shelf) -> None:
    collector = Collector()
    trackers = Trackers([Feed("test", collector.open, shelf)], {}, segment=5)
    log_steps(trackers, 1, 2, 2, 1, 2, 1)
    trackers.close("stopped")
    assert [(row.step, row.segment) for row in collector.rows] == [(1, 5), (2, 5), (2, 5), (1, 6), (2, 6), (1, 7)]


def test_a_run_without_trackers(tmp_path: Path) -> None:
    recipe = recipe_with()
    run = RunDirectory.create(str(tmp_path), "a", recipe)
    trackers = make_trackers(recipe, run, {})
    log_steps(trackers, 1)
    trackers.close("finished")
    assert trackers.run_ids == {}
    assert not (tmp_path / "a" / "trackers").exists()
