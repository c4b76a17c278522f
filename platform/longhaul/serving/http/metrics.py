"""What the server counts, in Prometheus' text format; each application has a registry of its own.

Symbols wrapped: `prometheus_client`'s `CollectorRegistry`, `Counter`, `Gauge`, `Histogram`, `generate_latest`.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from longhaul.serving.detection.answers import ChunkAnswer, Status

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2, 5, 10, 30)
_Shed = Callable[[], Iterable[tuple[str, str, bool, float]]]


class Metrics:
    """Counters of one replica.

    Args:
        replica: its name, a label of every figure.
        shed: gives (model, version, whether it is shed, seconds a tile) of each detector, at every look.
    """

    def __init__(self, replica: str, shed: _Shed) -> None:
        self._registry = CollectorRegistry()
        self._replica = replica
        self._requests = self._counter("http_requests", "Requests answered", "method", "route", "status")
        self._seconds = self._histogram("http_request_seconds", "From the request to the end of its answer", "route")
        self._bytes = self._counter("http_bytes", "Bytes of bodies", "direction")
        self._refusals = self._counter("refusals", "Requests and streams refused, by kind of problem", "problem")
        self._chunks = self._counter("chunks", "Chunks answered", "road", "degraded")
        self._tiles = self._counter("tiles", "Tiles made and looked at")
        self._chunk_seconds = self._histogram("chunk_seconds", "From chunk to answer")
        self._models = self._counter("model_chunks", "What became of each model's part", "model", "version", "status")
        self._model_seconds = self._histogram("model_seconds", "A model's time, waiting included", "model")
        self._misses = self._counter("deadline_misses", "Chunks in which a model was late")
        self._detections = self._counter("detections", "Emissions found", "model", "label")
        self._streams = Gauge("longhaul_streams", "Streams that are open", ["replica"], registry=self._registry)
        self._registry.register(_ShedCollector(replica, shed))

    def request(self, method: str, route: str, status: int, seconds: float, received: int, sent: int) -> None:
        """Count one answered request, or one stream that ended; bytes are of bodies."""
        self._requests.labels(self._replica, method, route, status).inc()
        self._seconds.labels(self._replica, route).observe(seconds)
        self._bytes.labels(self._replica, "in").inc(received)
        self._bytes.labels(self._replica, "out").inc(sent)

    def refusal(self, slug: str) -> None:
        """Count a refusal by the last part of its problem's type."""
        self._refusals.labels(self._replica, slug).inc()

    def chunk(self, answer: ChunkAnswer, road: str, tiles: int) -> None:
        """Count what became of a chunk; `road` is `request` or `stream`."""
        self._chunks.labels(self._replica, road, str(answer.degraded).lower()).inc()
        self._tiles.labels(self._replica).inc(tiles)
        self._chunk_seconds.labels(self._replica).observe(answer.seconds)
        for model in answer.models:
            self._models.labels(self._replica, model.model, model.version, model.status).inc()
            if model.seconds is not None:
                self._model_seconds.labels(self._replica, model.model).observe(model.seconds)
        if any(model.status is Status.LATE for model in answer.models):
            self._misses.labels(self._replica).inc()
        for (model_name, label), count in Tally((d.model, d.label) for d in answer.detections).items():
            self._detections.labels(self._replica, model_name, label).inc(count)

    def streams(self, count: int) -> None:
        """How many streams are open now."""
        self._streams.labels(self._replica).set(count)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"longhaul_{name}", text, ["replica", *labels], registry=self._registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"longhaul_{name}", text, ["replica", *labels], registry=self._registry, buckets=_SECONDS)


class _ShedCollector(Collector):
    """Looks at the detectors when it is asked, so that nobody has to tell it."""

    def __init__(self, replica: str, shed: _Shed) -> None:
        self._replica = replica
        self._shed = shed

    def collect(self) -> Iterable[GaugeMetricFamily]:
        shed = GaugeMetricFamily("longhaul_model_shed", "Whether a model is shed", labels=["replica", "model", "version"])
        cost = GaugeMetricFamily("longhaul_model_seconds_per_tile", "What a tile costs", labels=["replica", "model", "version"])
        for model, version, is_shed, seconds in self._shed():
            shed.add_metric([self._replica, model, version], float(is_shed))
            cost.add_metric([self._replica, model, version], seconds)
        return [shed, cost]
