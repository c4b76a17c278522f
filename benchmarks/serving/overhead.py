"""What the HTTP road costs over the engines' own time, against plain uvicorn + FastAPI and against LitServe, in one run.

    python benchmarks/serving/overhead.py [--registry DIR] [--requests 200] [--rounds 5] [--sizes 0.1 1 10]

Each contender gets the same bodies: one chunk of cf32_le samples, three detectors on ONNX Runtime with one thread each, one
answer in JSON. "In process" is the same work by a function call: the engines' own time. All servers are up at once, and take
turns, so that all meet the same machine. Without --registry the detectors are three that cost next to nothing, so that the
road itself is seen; with it, whatever lies there. "longhaul, no Ray" is the same application under plain uvicorn.

Prediction, written before the first run, for detectors that cost nothing: with one client p50 of `longhaul serve` within 1 to
2 ms of plain uvicorn (the ensemble's tasks and thread hops, the checks of the samples, one more copy in the proxy), so that it
is slower than uvicorn at 0.1 MB, and level from 1 MB on, where the transform is most of the time; against LitServe, which sends
each body through a queue to another process, faster at 10 MB. With 8 clients p99 below both, because of earliest deadline first
and bounded threads.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "tests" / "shared"), str(Path(__file__).resolve().parent)]

from grid_detector import TILES, publish_grid_detector  # noqa: E402
from peers import Detectors  # noqa: E402
from servers import Timed, ask, free_port, longhaul, server  # noqa: E402

from longhaul.export.registry import Registry  # noqa: E402
from longhaul.signals.front_end import FrontEnd  # noqa: E402

CLIENTS = (1, 8)
OURS, PLAIN, LIT, BARE = "longhaul serve", "uvicorn + FastAPI", "LitServe", "longhaul, no Ray"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.1, 1.0, 10.0], help="of the bodies, in MB")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as running:
        registry = given.registry or _light(scratch)
        ports = {name: free_port() for name in (OURS, BARE, PLAIN, LIT)}
        peers = [sys.executable, str(Path(__file__).with_name("peers.py"))]
        for name, peer in ((PLAIN, "plain"), (LIT, "litserve"), (BARE, "direct")):
            command = [*peers, peer, "--registry", registry, "--port", str(ports[name])]
            running.enter_context(server(command, ports[name]))
        running.enter_context(server(longhaul(registry, ports[OURS]), ports[OURS]))
        work = Detectors(registry)
        for size in given.sizes:
            _measure(size, work, ports, given.requests, given.rounds)


def _light(scratch: str) -> str:
    registry = Registry(str(Path(scratch) / "models"))
    tiles = TILES.model_copy(update={"front_end": FrontEnd(nfft=1024, hop=512, tile=160)})
    for name in ("first", "second", "third"):
        publish_grid_detector(registry, name, tiles=tiles)
    return registry.uri


def _measure(size_mb: float, work: Detectors, ports: dict[str, int], requests: int, rounds: int) -> None:
    samples = round(size_mb * 1e6 / 8)
    body = _signal(samples)
    rate = samples / work.settings.chunk_s
    path = f"/v1/detect?datatype=cf32_le&sample_rate={rate:.0f}&deadline_ms=60000"
    each = max(8, round(requests / max(1.0, size_mb)))
    alone = Timed()
    results = {(name, clients): Timed() for name in ports for clients in CLIENTS}
    for name, port in ports.items():
        warm = ask(port, path, body, requests=8, clients=4)
        if set(warm.statuses) != {200}:
            raise SystemExit(f"{name} answered {warm.statuses}")
    for _ in range(rounds):
        for _ in range(each // 4):
            began = time.perf_counter()
            work(body, rate)
            alone.seconds.append(time.perf_counter() - began)
        for (name, clients), timed in results.items():
            timed.seconds += ask(ports[name], path, body, requests=each, clients=clients).seconds
    found = len(work(body, rate)["detections"])
    print(f"\n{size_mb:g} MB ({samples} samples), {found} detections; {rounds} rounds of {each} requests, ms")
    print(f"in process: p50 {1e3 * alone.quantile(0.5):.1f}, p99 {1e3 * alone.quantile(0.99):.1f}")
    print(
        "| contender | clients | p50 | p99 | p50 over in process | uvicorn / it, p50 | p99 | LitServe / it, p50 | p99 |\n"
        + "|---" * 9
        + "|"
    )
    for (name, clients), timed in results.items():
        plain, lit = results[PLAIN, clients], results[LIT, clients]
        ratios = [f"{peer.quantile(q) / timed.quantile(q):.2f}" for peer in (plain, lit) for q in (0.5, 0.99)]
        extra = f"{1e3 * (timed.quantile(0.5) - statistics.median(alone.seconds)):+.1f}"
        cells = [name, str(clients), f"{1e3 * timed.quantile(0.5):.1f}", f"{1e3 * timed.quantile(0.99):.1f}", extra, *ratios]
        print("| " + " | ".join(cells) + " |", flush=True)


def _signal(samples: int) -> bytes:
    """A few bursts in noise."""
    rng = np.random.default_rng(0)
    iq = 0.01 * (rng.normal(size=samples) + 1j * rng.normal(size=samples))
    for start, length, frequency in ((0.1, 0.2, 0.1), (0.5, 0.3, -0.25), (0.7, 0.1, 0.3)):
        first, count = round(start * samples), round(length * samples)
        symbols = np.repeat(rng.choice((-1.0, 1.0), size=count // 8 + 1), 8)[:count]
        iq[first : first + count] += 0.3 * symbols * np.exp(2j * np.pi * frequency * np.arange(count))
    return iq.astype(np.complex64).tobytes()


if __name__ == "__main__":
    main()
