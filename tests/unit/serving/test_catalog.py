"""What is served: chosen, verified, loaded, checked."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import numpy as np
import pytest

from longhaul.errors import IntegrityError, UserError
from longhaul.export.registry import Registry
from longhaul.serving.batching import EngineFailed
from longhaul.serving.catalog import Catalog, choose, load
from longhaul.serving.refusals import UnknownModel


def names(manifests) -> list[str]:
    return [f"{m.name}@{m.version}" for m in manifests]


def test_choose_takes_prod_then_latest_and_versions_by_name(registry, publish_tiny) -> None:
    for _ in range(2):
        publish_tiny(registry)
    publish_tiny(registry, "other")
    assert names(choose(registry)) == ["other@1", "tiny@2"]
    registry.promote("tiny", "1")
    assert names(choose(registry)) == ["other@1", "tiny@1"]
    assert names(choose(registry, ["tiny@2", "tiny", "tiny@2"])) == ["tiny@2", "tiny@1"]


def test_an_empty_registry_and_an_unknown_model_are_user_errors(registry, publish_tiny) -> None:
    with pytest.raises(UserError, match=r"holds no model.*longhaul export"):
        choose(registry)
    publish_tiny(registry)
    with pytest.raises(UserError, match="Did you mean tiny"):
        choose(registry, ["tinny"])


def test_the_first_of_several_versions_answers_by_default(registry, publish_tiny) -> None:
    for seed in range(2):
        publish_tiny(registry, seed=seed)
    catalog = load(registry, choose(registry, ["tiny@2", "tiny@1"]))
    assert catalog.versions("tiny") == ["2", "1"]
    assert catalog.find("tiny").manifest.version == "2"
    assert catalog.find("tiny", "1").manifest.version == "1"
    with pytest.raises(UnknownModel, match=r"version '3': not served. Served: 2, 1"):
        catalog.find("tiny", "3")
    with pytest.raises(UnknownModel, match="Did you mean 'tiny'"):
        catalog.find("tinny")
    catalog.close()
    assert catalog.problem == "no model is loaded"


def test_a_flipped_bit_is_refused_at_load_and_named(registry, publish_tiny) -> None:
    publish_tiny(registry, "good")
    manifest = publish_tiny(registry, "tiny")
    file = Path(registry.folder("tiny", manifest.version)) / "model.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"tiny/1/model\.onnx: its SHA-256 differs"):
        load(registry, choose(registry))


def test_no_copy_of_a_model_is_left_behind(registry, publish_tiny, tmp_path, monkeypatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    publish_tiny(registry)
    load(registry, choose(registry)).close()
    assert list(scratch.iterdir()) == []


def test_a_served_model_has_answered_before_it_counts(registry, publish_tiny, engine) -> None:
    from longhaul.serving.catalog import ServedModel

    def warm_up() -> None:
        raise RuntimeError("no memory")

    engine.warm_up = warm_up
    with pytest.raises(RuntimeError, match="no memory"):
        ServedModel(publish_tiny(registry), engine)


def test_the_health_check_runs_every_engine_and_is_remembered(scripted: Catalog, engine) -> None:
    asyncio.run(scripted.check())
    assert engine.seen == [1]
    assert scripted.problem == ""
    engine.failure = RuntimeError("the device is gone")
    with pytest.raises(EngineFailed):
        asyncio.run(scripted.check())
    assert scripted.problem.startswith("model tiny version 1: ")
    engine.failure = None
    engine.logits = np.full(4, np.nan, np.float32)
    with pytest.raises(RuntimeError, match="not finite"):
        asyncio.run(scripted.check())
    engine.logits = None
    asyncio.run(scripted.check())
    assert scripted.problem == ""


def test_a_relative_registry_and_an_absolute_one_are_the_same(tmp_path, monkeypatch, publish_tiny) -> None:
    monkeypatch.chdir(tmp_path)
    publish_tiny(Registry("models"))
    assert names(choose(Registry(str(tmp_path / "models")))) == ["tiny@1"]


def test_models_of_other_tasks_are_left_out_and_refused_by_name(registry, publish_tiny, caplog) -> None:
    publish_tiny(registry)
    publish_tiny(registry, name="detector", task="detection")
    assert names(choose(registry)) == ["tiny@1"]
    assert "detector is left out: task detection is not served yet" in caplog.text
    with pytest.raises(UserError, match="detector: is of task 'detection', which is not served yet"):
        choose(registry, ["tiny", "detector"])
