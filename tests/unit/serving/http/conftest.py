"""An application over real detectors and a real classifier."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from grid_detector import publish_grid_detector
from http_signals import local_client

from longhaul.export.registry import Registry
from longhaul.serving.http.api import build_api
from longhaul.serving.http.settings import ApiSettings
from longhaul.serving.models.catalog import choose, load


@pytest.fixture(scope="session")
def published(tmp_path_factory, publish_tiny) -> Path:
    """A registry's folder with the detectors `grid` and `wide` and the classifier `tiny`; not to be changed."""
    registry = Registry(str(tmp_path_factory.mktemp("published")))
    publish_grid_detector(registry, "grid", batches=(1, 4))
    publish_grid_detector(registry, "wide", classes=("wide",), gain=0.8, batches=(1, 4))
    publish_tiny(registry)
    return Path(registry.uri)


@pytest.fixture
def detectors(published, registry):
    """The catalog of a registry of its own with those models."""
    shutil.copytree(published, registry.uri)
    loaded = load(registry, choose(registry))
    yield loaded
    loaded.close()


@pytest.fixture
def serve(detectors):
    """`serve(**settings)`: a client of the detectors' application; open unless `settings` say otherwise."""
    opened = []

    def make(**settings) -> TestClient:
        client = local_client(build_api(detectors, ApiSettings(**{"open_loopback": True, **settings}), replica="here"))
        opened.append(client.__enter__())
        return client

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve):
    return serve()
