"""What is submitted, and what is refused before a cluster is asked."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from longhaul.cluster import jobs
from longhaul.errors import LonghaulError, UserError

ROOT = Path(__file__).parents[3]
DIGITS = "jobs/recipes/classification/digits.yaml"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of what a job is made from."""
    root = tmp_path / "clone"
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(ROOT / "platform" / "longhaul", root / "platform" / "longhaul", ignore=ignore)
    shutil.copytree(ROOT / "jobs", root / "jobs", ignore=ignore)
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, root / name)
    return root


def package(path: str, target: Path, excludes: list[str]) -> set[str]:
    """The names that Ray packs of a folder."""
    from ray._private.runtime_env.packaging import create_package

    create_package(path, target, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(target) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def test_the_package_is_sent_whole_and_the_folder_platform_is_not(clone: Path, tmp_path: Path) -> None:
    for name in ("data/photos/a.png", "models/m/1/model.onnx", "runs/r/recipe.yaml", "platform/longhaul/__pycache__/x.pyc"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text("x")
    env = jobs.runtime_env(clone)
    module = package(env["py_modules"][0], tmp_path / "module.zip", env["excludes"])
    assert module == {
        p.relative_to(clone / "platform/longhaul").as_posix()
        for p in (clone / "platform/longhaul").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert {"data/order.py", "models/__init__.py", "storage.py"} <= module
    working_dir = package(env["working_dir"], tmp_path / "dir.zip", env["excludes"])
    assert {"jobs/train.py", DIGITS} <= working_dir
    assert {name.split("/")[0] for name in working_dir} == {"jobs", ".gitignore", ".rayignore"}


def test_the_plain_form_sends_the_package_and_never_its_trap(clone: Path, tmp_path: Path) -> None:
    """`ray job submit --working-dir .` knows no excludes of ours; .rayignore keeps the marker out."""
    (clone / "platform" / "__init__.py").touch()
    (clone / ".gitignore").unlink()  # which names it too
    sent = package(str(clone), tmp_path / "dir.zip", [])
    assert {"platform/longhaul/__init__.py", "platform/longhaul/data/order.py", "platform/longhaul/models/__init__.py"} <= sent
    assert "platform/__init__.py" not in sent


def test_a_wrong_recipe_never_reaches_a_cluster(clone: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'epochs'"):
        jobs.submit(clone / DIGITS, ["training.epoch=3"], address="http://127.0.0.1:1")


def test_an_unreachable_dashboard_is_named(clone: Path) -> None:
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:1: nothing answers there") as refused:
        jobs.submit(clone / DIGITS, address="http://127.0.0.1:1")
    assert "ray start --head" in refused.value.fix


@pytest.mark.parametrize("make", [Path.touch, lambda marker: marker.symlink_to("nowhere")])
def test_a_package_called_platform_is_refused_first(clone: Path, make: Callable[[Path], None]) -> None:
    marker = clone / "platform" / "__init__.py"
    make(marker)
    with pytest.raises(UserError, match="shadows") as refused:
        jobs.submit(clone / DIGITS, ["no=such"], address="http://127.0.0.1:1")
    assert str(marker) in str(refused.value)


def test_a_recipe_outside_the_clone_is_refused(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine.yaml"
    shutil.copy(clone / DIGITS, mine)
    monkeypatch.chdir(clone)
    with pytest.raises(UserError, match="outside the repository"):
        jobs.submit(mine, address="http://127.0.0.1:1")


def test_a_recipe_in_a_folder_that_stays_behind_is_refused(clone: Path) -> None:
    saved = clone / "runs" / "a" / "recipe.yaml"
    saved.parent.mkdir(parents=True)
    shutil.copy(clone / DIGITS, saved)
    with pytest.raises(UserError, match="runs/ is not sent"):
        jobs.submit(saved, address="http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("overrides", "field_path"),
    [(["data.kind=imagefolder", "data.root=photos"], "data.root"), (["model.weights=w.pt"], "model.weights")],
)
def test_relative_paths_in_a_recipe_are_refused(clone: Path, overrides: list[str], field_path: str) -> None:
    with pytest.raises(UserError, match=rf"^{field_path}: .*relative") as refused:
        jobs.submit(clone / DIGITS, overrides, address="http://127.0.0.1:1")
    assert f"--set {field_path}=/" in refused.value.fix


def test_the_root_is_found_from_the_recipe_from_here_and_from_the_package(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert jobs.find_root(clone / DIGITS) == clone
    assert jobs.find_root(tmp_path / "x.yaml") == ROOT
    monkeypatch.chdir(clone / "jobs")
    assert jobs.find_root(tmp_path / "x.yaml") == clone


def test_local_storage_is_made_absolute_and_addresses_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert jobs.absolute_storage("runs") == str(tmp_path / "runs")
    assert jobs.absolute_storage("s3://bucket/runs") == "s3://bucket/runs"
    assert jobs.absolute_storage(None) is None


@pytest.mark.parametrize("given", ["http://", "http://a:b", "ftp://a", "http://:80"])
def test_what_is_no_dashboard_address_is_refused(given: str) -> None:
    with pytest.raises(UserError, match=r"^Ray cluster "):
        jobs.dashboard_address(given)


def test_the_address_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:2")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1: nothing"):
        jobs.dashboard_address("http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:2: nothing"):
        jobs.dashboard_address(None)
    with jobs._only_address("http://127.0.0.1:1"):
        assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:1"
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:2"


@dataclass
class Status:
    name: str

    def is_terminal(self) -> bool:
        return self.name != "RUNNING"

    def __str__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        return str(other) == self.name

    __hash__ = None  # type: ignore[assignment]


@dataclass
class Job:
    submission_id: str | None
    status: Status
    driver_exit_code: int | None = None
    message: str | None = None


def test_attempts_are_counted_by_run() -> None:
    done = Status("FAILED")
    there = [Job("a-attempt-1", done), Job("a-attempt-10", done), Job("a-b-attempt-3", Status("RUNNING")), Job(None, done)]
    assert jobs._next_attempt("a", there) == "a-attempt-11"  # type: ignore[arg-type]
    assert jobs._next_attempt("b", there) == "b-attempt-1"  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a-b-attempt-3 is running"):
        jobs._next_attempt("a-b", there)  # type: ignore[arg-type]


@dataclass
class Client:
    """A Jobs API whose connection breaks: each part is one connection's log, from the beginning, and how it ends."""

    parts: list[tuple[list[str], Exception | None]]
    asked: list[str] = field(default_factory=list)

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        self.asked.append(job)
        texts, end = self.parts.pop(0)
        for text in texts:
            yield text
        if end is not None:
            raise end

    def get_job_info(self, job: str) -> Job:
        return Job(job, Status("RUNNING" if self.parts else "SUCCEEDED"))


SUBMISSION = jobs.Submission("a-attempt-1", "a", "http://h:8265", None)


def tail(parts: list[tuple[list[str], Exception | None]], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(jobs, "_RETRY_PAUSE_S", 0.0)
    written: list[str] = []
    asyncio.run(jobs._tail(Client(parts), SUBMISSION, written.append))  # type: ignore[arg-type]
    return "".join(written)


def test_a_log_goes_on_where_its_connection_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = RuntimeError("closed unexpectedly")
    log = tail(
        [(["one\n", "tw"], broken), ([], broken), (["one\ntwo\nth"], None), (["one\n", "two\n", "three\n"], None)], monkeypatch
    )
    assert log == "one\ntwo\nthree\n"


def test_a_lost_cluster_says_how_to_follow_again(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[tuple[list[str], Exception | None]] = [([], ConnectionError("refused")) for _ in range(50)]
    with pytest.raises(LonghaulError, match="ray job logs --follow") as lost:
        tail(parts, monkeypatch)
    assert not isinstance(lost.value, UserError)
    assert len(parts) == 50 - jobs._LOST_AFTER


def test_commands_carry_address_and_authentication(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert SUBMISSION.command("stop") == "RAY_AUTH_MODE=token ray job stop --address http://h:8265 a-attempt-1"


def test_the_script_of_a_job_runs_its_own_clone_and_its_neighbours_shadow_nothing(clone: Path) -> None:
    (clone / "jobs" / "profile.py").write_text("raise SystemExit('jobs/profile.py shadows the standard library')")
    stub = "import cProfile, sys\ndef main():\n    print(__file__, sys.argv[1:])\n"
    (clone / "platform" / "longhaul" / "cli" / "main.py").write_text(stub)
    done = subprocess.run(
        [sys.executable, "jobs/train.py", DIGITS, "--name", "a"],
        cwd=clone,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.strip() == f"{clone}/platform/longhaul/cli/main.py ['train', '{DIGITS}', '--name', 'a']"
