"""Jobs on a real head with token authentication, through the command line, from a copy of the clone.

The head has its own ports, temporary folder and home, so that it meets no other cluster on this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from interruptible import interruptible

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DIGITS = "jobs/recipes/classification/digits.yaml"
START_S = 120.0
CALL_S = 300.0

# Stands in for jobs/train.py in the copy: says what it sees, in the driver, in a task and in an actor.
PROBE = """
import argparse, json, os, sys, time
from pathlib import Path
sys.path[0] = str(Path(__file__).resolve().parents[1] / "platform")
parser = argparse.ArgumentParser()
parser.add_argument("recipe")
parser.add_argument("--set", action="append")
parser.add_argument("--name")
parser.add_argument("--storage")
args = parser.parse_args()
if args.name == "fails":
    sys.exit(3)
if args.name == "waits":
    print("waiting for the file", flush=True)
    while not Path(args.storage, "go").exists():
        time.sleep(0.1)
    sys.exit(0)

def look():
    import platform
    import longhaul
    return {"system": platform.system(), "platform": platform.__file__, "longhaul": longhaul.__file__}

from longhaul.cluster.connect import connect, default_storage
info = connect()
import ray

@ray.remote(num_cpus=0)
class Actor:
    def look(self):
        return look()

seen = {
    "driver": look(), "task": ray.get(ray.remote(num_cpus=0)(look).remote()), "actor": ray.get(Actor.remote().look.remote()),
    "shipped": info.shipped, "started": info.started, "in_job": info.in_job, "recipe": Path(args.recipe).is_file(),
    "cwd": os.getcwd(), "default_storage": default_storage(), "set": args.set,
}
Path(args.storage).mkdir(parents=True, exist_ok=True)
Path(args.storage, args.name + ".json").write_text(json.dumps(seen))
print("probe says goodbye", flush=True)
"""


def free_ports(count: int) -> list[int]:
    """Ports under 10002: Ray refuses those up to 19999 as its own workers' range."""
    found: list[int] = []
    for port in range(9700, 9999):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports between 9700 and 9999")


@dataclass(frozen=True)
class Head:
    """A running head, and the environment of its user."""

    dashboard: str
    gcs: str
    env: dict[str, str]

    def call(self, *command: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the cluster's user."""
        return subprocess.run(
            command, cwd=cwd, env={**self.env, **env}, capture_output=True, text=True, timeout=CALL_S, check=False
        )


def user_env(home: Path) -> dict[str, str]:
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "LONGHAUL_"))}
    return {
        **keep,
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # a job's `python` must be this one
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Not pytest's folder: the path of a Unix socket may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="lh", dir="/tmp", ignore_cleanup_errors=True) as name:
        home = Path(name, "home")
        (home / ".ray").mkdir(parents=True)
        (home / ".ray" / "auth_token").write_text("0123456789abcdef0123456789abcdef")
        gcs, dashboard, client, agent = free_ports(4)
        env = user_env(home)
        command = [
            *(
                "ray",
                "start",
                "--head",
                "--block",
                f"--port={gcs}",
                f"--dashboard-port={dashboard}",
                "--dashboard-host=127.0.0.1",
            ),
            *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}", "--num-cpus=2"),
            *("--object-store-memory=100000000", f"--temp-dir={name}/ray", "--disable-usage-stats"),
        ]
        with Path(name, "head.log").open("wb") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            head = Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", env)
            wait_until_up(head, process, Path(name, "head.log"))
            yield head
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its own session: nothing but this head's processes
            process.wait()


def wait_until_up(head: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while head.call("ray", "job", "list", "--address", head.dashboard, cwd=ROOT).returncode != 0:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(1)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a job is made from, with the probe in place of jobs/train.py."""
    root = tmp_path_factory.mktemp("clone")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "platform" / "longhaul", root / "platform" / "longhaul", ignore=ignore)
    shutil.copytree(ROOT / "jobs", root / "jobs", ignore=ignore)
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, root / name)
    (root / "jobs" / "train.py").write_text(PROBE)
    return root


def longhaul(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", "from longhaul.cli.main import main; main()", *arguments)


def submit(head: Head, *arguments: str) -> tuple[str, ...]:
    return longhaul("submit", DIGITS, "--address", head.dashboard, *arguments)


def check_seen(path: Path) -> dict[str, Any]:
    """What holds in every form of submission."""
    seen = json.loads(path.read_text())
    for place in ("driver", "task", "actor"):
        assert seen[place]["system"] == platform.system()
        assert Path(seen[place]["platform"]).parent == Path(sysconfig.get_path("stdlib")), place
        assert str(ROOT) not in seen[place]["longhaul"], f"{place} runs the installed package, not the job's"
    assert seen["in_job"]
    assert not seen["started"]
    assert seen["recipe"]
    assert seen["default_storage"].endswith("/longhaul/runs")
    return seen  # type: ignore[no-any-return]


def test_submit_runs_the_sent_package_in_driver_task_and_actor(head: Head, clone: Path) -> None:
    done = head.call(*submit(head, "--name", "probe", "--storage", "out", "--set", "training.epochs=2"), cwd=clone)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "submitted probe-attempt-1" in done.stdout
    assert "probe says goodbye" in done.stdout
    seen = check_seen(clone / "out" / "probe.json")  # relative --storage is this folder's, not the job's
    assert all("py_modules_files" in seen[place]["longhaul"] for place in ("driver", "task", "actor"))
    assert not seen["shipped"], "the job has brought the package already"
    assert not Path(seen["cwd"], "platform").exists()
    assert seen["set"] == ["training.epochs=2"]


def test_ray_job_submit_from_a_clone_ships_the_package_itself(head: Head, clone: Path, tmp_path: Path) -> None:
    done = head.call(
        *("ray", "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--"),
        *("python", "jobs/train.py", DIGITS, "--name", "plain", "--storage", str(tmp_path)),
        cwd=clone,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = check_seen(tmp_path / "plain.json")
    assert "working_dir_files" in seen["driver"]["longhaul"]
    assert all("py_modules_files" in seen[place]["longhaul"] for place in ("task", "actor"))
    assert seen["shipped"]


def test_a_failing_job_gives_its_exit_code(head: Head, clone: Path) -> None:
    done = head.call(*submit(head, "--name", "fails"), cwd=clone)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    again = head.call(*submit(head, "--name", "fails"), cwd=clone)
    assert "submitted fails-attempt-2" in again.stdout


def test_no_wait_returns_and_interrupting_leaves_the_job_alone(head: Head, clone: Path, tmp_path: Path) -> None:
    arguments = ("--name", "waits", "--storage", str(tmp_path))
    with subprocess.Popen(
        interruptible(*submit(head, *arguments)), cwd=clone, env=head.env, stdout=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        for line in following.stdout:
            if "waiting for the file" in line and "print" not in line:
                break
        following.send_signal(signal.SIGINT)
        rest = following.stdout.read()
    assert following.returncode == 130
    assert "waits-attempt-1 goes on" in rest
    assert f"ray job stop --address {head.dashboard} waits-attempt-1" in rest
    assert f"ray job logs --follow --address {head.dashboard} waits-attempt-1" in rest

    refused = head.call(*submit(head, *arguments), cwd=clone)
    assert refused.returncode == 2
    assert "waits-attempt-1 is running" in refused.stderr

    (tmp_path / "go").touch()
    followed = head.call("ray", "job", "logs", "--follow", "--address", head.dashboard, "waits-attempt-1", cwd=clone)
    assert "succeeded" in followed.stdout + followed.stderr

    (tmp_path / "go").unlink()
    unwaited = head.call(*submit(head, *arguments, "--no-wait"), cwd=clone)
    assert unwaited.returncode == 0
    assert "submitted waits-attempt-2" in unwaited.stdout
    (tmp_path / "go").touch()
    head.call("ray", "job", "logs", "--follow", "--address", head.dashboard, "waits-attempt-2", cwd=clone)


def test_another_token_is_refused_in_one_line(head: Head, clone: Path) -> None:
    done = head.call(*submit(head), cwd=clone, RAY_AUTH_TOKEN="another0another0another0another0")
    assert done.returncode == 2
    assert "refuses this machine's token" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_gcs_address_finds_its_dashboard_and_the_dashboard_is_no_gcs(head: Head, clone: Path) -> None:
    code = "import sys; from longhaul.cluster.jobs import dashboard_address; print(dashboard_address(sys.argv[1]))"
    found = head.call(sys.executable, "-c", code, head.gcs, cwd=clone)
    assert found.stdout.strip() == head.dashboard, found.stderr
    train = head.call(*longhaul("train", DIGITS, "--address", head.dashboard.removeprefix("http://"), "--name", "x"), cwd=clone)
    assert train.returncode == 2
    assert "not a Ray GCS" in train.stderr
    assert "Traceback" not in train.stderr
