"""Nodes that do not see the storage are told by looking, on a real (if small) cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from longhaul.storage import Storage
from longhaul.tuning.shared_storage import blind_nodes, check_shared

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def test_a_node_sees_a_file_that_is_there_and_none_that_is_not(tmp_path: Path) -> None:
    import ray

    (tmp_path / "probe").touch()
    assert blind_nodes(str(tmp_path / "probe"), ray.nodes()) == []
    assert blind_nodes(str(tmp_path / "elsewhere"), ray.nodes()) == [node["NodeManagerAddress"] for node in ray.nodes()]


def test_one_node_needs_no_shared_storage_and_nothing_is_left_there(tmp_path: Path) -> None:
    check_shared(Storage.open(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_of_several_nodes_one_that_does_not_see_it_is_refused_by_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from longhaul.errors import UserError
    from longhaul.tuning import shared_storage

    twice = ray.nodes() * 2  # the same machine under two names: it sees the file, or it does not
    monkeypatch.setattr(shared_storage.ray, "nodes", lambda: twice)
    check_shared(Storage.open(tmp_path))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(Storage, "path", lambda self, name="": "/nowhere")
    monkeypatch.setattr(Storage, "write_bytes", lambda self, name, data: None)
    with pytest.raises(UserError, match=r"2 of 2 nodes do not see it .*s3://bucket/prefix"):
        check_shared(Storage.open(tmp_path))
