"""Signals to send to `/v1/detect`, in every form that it takes, and what a problem must look like."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from fastapi.testclient import TestClient
from grid_detector import CHUNK_SAMPLES, SAMPLE_RATE_HZ
from PIL import Image

from longhaul.signals.recording import write_recording


def tone(chunks: float = 1.0, seed: int = 0, low: float = 0.1) -> np.ndarray:
    """Noise with a strong burst in the first half of the band's upper part; (chunks * CHUNK_SAMPLES,) complex64."""
    count = round(chunks * CHUNK_SAMPLES)
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, 2)).astype(np.float32).view(np.complex64)[:, 0] * 1e-3
    place = np.arange(count)
    burst = np.where(place % CHUNK_SAMPLES < CHUNK_SAMPLES // 2, 0.5, 0) * np.exp(2j * np.pi * 0.2 * place)
    return (noise + burst).astype(np.complex64)


def local_client(app) -> TestClient:
    """A client that asks as one on this machine does; to be opened with `with`."""
    return TestClient(app, "http://127.0.0.1", headers={"Host": "127.0.0.1"})  # its WebSockets take no base URL


IQ = {"datatype": "cf32_le", "sample_rate": SAMPLE_RATE_HZ, "center_frequency": 2.44e9}
OCTETS = {"Content-Type": "application/octet-stream"}


def detect(client, samples: np.ndarray | bytes, headers=None, **query):
    """POST bare samples."""
    body = samples if isinstance(samples, bytes) else samples.tobytes()
    return client.post("/v1/detect", content=body, params=IQ | query, headers=OCTETS | (headers or {}))


def recorded(folder: Path, samples: np.ndarray, name: str = "roof", **options) -> Path:
    """A SigMF pair; returns the metadata's path."""
    return write_recording(folder / name, samples, **{"sample_rate_hz": SAMPLE_RATE_HZ, "center_hz": 2.44e9} | options)


def packed(*files: Path, folder: str = "") -> bytes:
    """Files as a plain tar."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for file in files:
            archive.add(file, f"{folder}{file.name}")
    return stream.getvalue()


def png(side: int = 64, seed: int = 0, mode: str = "L", size: tuple[int, int] | None = None) -> bytes:
    """A tile of bright and dark cells as PNG bytes."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 2, (side // 8, side // 8), dtype=np.uint8) * 240
    picture = Image.fromarray(np.kron(cells, np.ones((8, 8), np.uint8))).convert(mode)
    stream = io.BytesIO()
    (picture.resize(size) if size else picture).save(stream, "PNG")
    return stream.getvalue()


def assert_problem(response, status: int, slug: str, *words: str) -> dict:
    """That it is a problem of this kind, whose detail has these words."""
    body = response.json()
    assert response.status_code == status, body
    assert response.headers["content-type"] == "application/problem+json"
    assert body["type"] == f"urn:longhaul:problem:{slug}"
    assert body["status"] == status
    assert body["title"]
    assert body["instance"] == f"urn:longhaul:request:{response.headers['x-request-id']}"
    for word in words:
        assert word in body["detail"]
    return body
