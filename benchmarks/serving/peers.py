"""The peers of `overhead.py`: the same work behind plain uvicorn + FastAPI, and behind LitServe, as one would write them.

    python benchmarks/serving/peers.py plain|litserve|direct --registry DIR --port N [--threads 1]

"direct" is no peer: it is our own application under plain uvicorn, without Ray.

The work: IQ samples from the body, one chunk into one tile, three detectors on ONNX Runtime side by side, what scores over 0.5
after NMS, as JSON with seconds and hertz. No checks of what comes in, no deadline, no merge between models.
"""

import argparse
import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import litserve
import numpy as np
import onnxruntime
import torch
import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from torchvision.ops import batched_nms

from longhaul.export.registry import Registry
from longhaul.serving.http.api import build_api
from longhaul.serving.http.settings import ApiSettings
from longhaul.serving.models.catalog import LoadSettings, choose, load
from longhaul.signals.geometry import Corners
from longhaul.signals.tile_folder import TileSettings


class Detectors:
    """Three sessions and a front end.

    Args:
        registry: the folder of the registry; every detector in it takes part.
        threads: cores for each session.
    """

    def __init__(self, registry: str, threads: int = 1) -> None:
        torch.set_num_threads(1)
        source = Registry(registry)
        self._sessions = {}
        with TemporaryDirectory() as scratch:
            for name in source.names():
                manifest = source.resolve(name)
                folder = Path(scratch) / name
                folder.mkdir()
                file = source.fetch(manifest, folder)[manifest.model_file(1)]
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = threads
                options.add_session_config_entry("session.intra_op.allow_spinning", "0")
                session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
                self._sessions[name] = (session, manifest.signature.classes)
                made = dict(manifest.signature.preprocess["tiles"])
        made.pop("sample_rates_hz")
        self.settings = TileSettings.model_validate(made)
        self._pool = ThreadPoolExecutor(len(self._sessions))

    def __call__(self, body: bytes, sample_rate_hz: float) -> dict[str, Any]:
        """One chunk of cf32_le samples -> its detections."""
        iq = torch.from_numpy(np.frombuffer(body, np.complex64).copy())
        front_end = self.settings.front_end
        tile = front_end.to_uint8(iq).float()[None, None].div_(255).numpy()
        geometry = front_end.geometry(len(iq), sample_rate_hz)
        found = []
        for part in self._pool.map(lambda item: self._detect(*item, tile, geometry), self._sessions.items()):  # type: ignore[call-arg]
            found += part
        return {"detections": found}

    def _detect(self, name: str, model: Any, tile: Any, geometry: Any) -> list[dict[str, Any]]:
        session, classes = model
        boxes, scores, labels = (torch.from_numpy(a[0]) for a in session.run(["boxes", "scores", "labels"], {"image": tile}))
        sure = scores > 0.5
        boxes, scores, labels = boxes[sure], scores[sure], labels[sure].long()
        answer = []
        for index in batched_nms(boxes, scores, labels, 0.5).tolist():
            box = boxes[index].tolist()
            region = geometry.region(Corners(*box))
            answer.append(
                {"model": name, "label": classes[int(labels[index]) - 1], "score": float(scores[index]), "box_px": box}
                | region._asdict()
            )
        return answer


def plain(detectors: Detectors) -> FastAPI:
    """FastAPI: the body is read on the event loop, the work is done on its thread pool."""
    app = FastAPI()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/detect")
    async def detect(request: Request, sample_rate: float) -> Response:
        body = await request.body()
        answer = await asyncio.to_thread(detectors, body, sample_rate)
        return Response(json.dumps(answer), media_type="application/json")

    return app


async def _posted(request: Request) -> tuple[bytes, float]:
    return await request.body(), float(request.query_params["sample_rate"])


class LitDetectors(litserve.LitAPI):
    """LitServe's four steps around the same work.

    Args:
        registry: see `Detectors`.
        threads: see `Detectors`.
    """

    def __init__(self, registry: str, threads: int) -> None:
        super().__init__(api_path="/v1/detect")
        self._given = (registry, threads)

    def setup(self, device: str) -> None:
        """In the worker process."""
        self._detectors = Detectors(*self._given)

    def decode_request(self, request: Annotated[tuple, Depends(_posted)]) -> tuple[bytes, float]:
        """The dependency has read it: LitServe itself knows JSON and forms only."""
        return request

    def predict(self, x: tuple[bytes, float]) -> dict[str, Any]:
        """All of the work."""
        return self._detectors(*x)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """It is JSON already."""
        return output


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("plain", "litserve", "direct"))
    parser.add_argument("--registry", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.peer == "plain":
        uvicorn.run(plain(Detectors(given.registry, given.threads)), host="127.0.0.1", port=given.port, log_level="warning")
    elif given.peer == "direct":
        torch.set_num_threads(given.threads)
        source = Registry(given.registry)
        catalog = load(source, choose(source), LoadSettings(threads=given.threads))
        app = build_api(catalog, ApiSettings(open_loopback=True))
        uvicorn.run(app, host="127.0.0.1", port=given.port, log_level="warning", access_log=False)
    else:
        api = LitDetectors(given.registry, given.threads)
        server = litserve.LitServer(api, accelerator="cpu", healthcheck_path="/healthz", fast_queue=True)
        server.run(host="127.0.0.1", port=given.port, log_level="warning", generate_client_file=False, num_api_servers=1)


if __name__ == "__main__":
    main()
