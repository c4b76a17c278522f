"""Finding a cluster: every wrong address is one line within seconds; what a job brings is not sent twice."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import longhaul
from longhaul.cluster import connect as room
from longhaul.errors import UserError


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process that is not in a job and has nothing set."""
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "LONGHAUL_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Accepts connections (the kernel does) and hangs up on whatever is said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        import threading

        def serve() -> None:
            for _ in range(2):  # the reachability check, the handshake
                server.accept()[0].close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ("http://127.0.0.1:8265", "longhaul submit RECIPE --address http://127.0.0.1:8265"),
        ("ray://127.0.0.1:10001", "longhaul submit"),
        ("banana", "--address"),
        ("head:port", "--address"),
        (":6379", "--address"),
    ],
)
def test_what_is_no_gcs_address_is_refused(given: str, fix: str) -> None:
    with pytest.raises(UserError, match=r"^Ray cluster ") as refused:
        room.find_gcs(given)
    assert given in refused.value.problem
    assert fix in refused.value.fix


def test_local_means_a_new_one() -> None:
    assert room.find_gcs("local") is None


def test_an_address_is_taken_as_it_is() -> None:
    assert room.find_gcs("10.0.0.5:6379") == "10.0.0.5:6379"


def test_connect_to_an_unreachable_address_is_one_line_and_no_traceback(unused_port: int) -> None:
    """In a process of its own: this one may be connected to a cluster, and Ray ends a process that fails to attach."""
    code = "import sys; from longhaul.cluster.connect import connect; connect(sys.argv[1])"
    wrapped = (
        f"from longhaul.errors import UserError\ntry:\n    {code}\nexcept UserError as e:\n    print(e); raise SystemExit(2)"
    )
    done = subprocess.run(
        [sys.executable, "-c", wrapped, f"127.0.0.1:{unused_port}"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert f"127.0.0.1:{unused_port}: nothing answers there" in done.stdout
    assert "ray start --head" in done.stdout
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_a_server_that_is_no_gcs_is_refused_before_ray_waits_for_it(silent_port: int) -> None:
    with pytest.raises(UserError, match="not a Ray GCS"):
        room._check_gcs(f"127.0.0.1:{silent_port}", "here")


def test_storage_outside_a_job_is_runs(outside: pytest.MonkeyPatch) -> None:
    assert room.default_storage() == "runs"


def test_storage_in_a_job_survives_the_job(outside: pytest.MonkeyPatch, tmp_path: Path) -> None:
    outside.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    outside.setenv("HOME", str(tmp_path))
    assert room.default_storage() == str(tmp_path / "longhaul" / "runs")


@pytest.mark.parametrize("in_job", [False, True])
def test_the_cluster_says_where_runs_lie(outside: pytest.MonkeyPatch, in_job: bool) -> None:
    if in_job:
        outside.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    outside.setenv("LONGHAUL_STORAGE", "s3://bucket/runs")
    assert room.default_storage() == "s3://bucket/runs"


PACKAGE = str(Path(longhaul.__file__).parent)


@pytest.mark.parametrize(
    ("job", "sent"),
    [
        (None, {"py_modules", "excludes", "env_vars"}),
        ({}, {"py_modules", "excludes", "env_vars"}),
        ({"working_dir": "gcs://a.zip", "env_vars": {}}, {"py_modules", "excludes", "env_vars"}),
        ({"excludes": ["/x"]}, {"py_modules", "env_vars"}),
        ({"py_modules": ["gcs://b.zip"], "excludes": ["/x"]}, {"env_vars"}),
        ({"py_modules": ["gcs://b.zip"], "env_vars": {"RAY_ADDRESS": "x"}}, set()),
    ],
)
def test_only_what_the_job_has_not_brought_is_sent(
    outside: pytest.MonkeyPatch, job: dict[str, Any] | None, sent: set[str]
) -> None:
    if job is not None:
        outside.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": job}))
    env = room._runtime_env("h:1")
    assert set(env) == sent
    assert env.get("py_modules", [PACKAGE]) == [PACKAGE]
    from ray.runtime_env.runtime_env import _merge_runtime_env

    assert _merge_runtime_env(job, env) is not None, "Ray refuses this combination"


def test_the_cluster_in_words() -> None:
    info = room.ClusterInfo("h:1", False, False, 2, 8.0, 0, 32, "http://h:8265", True)
    assert str(info) == "attached to the Ray cluster at h:1: 2 nodes, 8 CPUs, 0 GPUs, up to 32 GPUs, dashboard http://h:8265"
