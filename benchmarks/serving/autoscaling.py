"""From one replica to several and back on a burst of requests: a picture, and how long it takes.

    python benchmarks/serving/autoscaling.py [--registry DIR] [--burst-s 90] [--picture autoscaling.png]

The server starts from serve_configs/local.yaml with at most three replicas and shorter delays than one would use in production
(up after 2 s, down after 20 s). A third of one replica's capacity for 20 s, then two and a half times that capacity for
`burst-s`, then a third again until one replica is left. A replica counts from when its process answers.

Prediction, written before the first run: the second replica 10 to 15 s after the burst begins (metrics come every few seconds, a
replica takes 6 to 10 s to import and load), the third soon after; back to one 30 to 40 s after the burst ends, one at a time.
On a machine with few cores the answers a second do not triple.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

import matplotlib as mpl
import psutil
import yaml

mpl.use("Agg")
import matplotlib.pyplot as plt

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "tests" / "shared"), str(Path(__file__).resolve().parent)]

from load import DEADLINE_S, Load, chunk_body, light_registry  # noqa: E402
from servers import ROOT, ask, free_port, longhaul, server  # noqa: E402

from longhaul.export.registry import Registry  # noqa: E402

CALM_S = 20.0
MOST = 3


def main() -> None:
    """Load in three stages, watch, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", help="detectors that all take the same chunks; three light ones if left out")
    parser.add_argument("--burst-s", type=float, default=90)
    parser.add_argument("--picture", type=Path, default=Path("autoscaling.png"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        registry = Registry(given.registry) if given.registry else light_registry(scratch)
        config = Path(scratch) / "serve.yaml"
        config.write_text(yaml.safe_dump(_config()))
        body, rate_hz = chunk_body(registry)
        port = free_port()
        path = f"/v1/detect?datatype=cf32_le&sample_rate={rate_hz:.0f}&deadline_ms={1e3 * DEADLINE_S:g}"
        with server(longhaul(registry.uri, port, config), port) as process:
            ask(port, path, body, requests=50, clients=4)
            began = time.perf_counter()
            capacity = len(ask(port, path, body, requests=200, clients=4).seconds) / (time.perf_counter() - began)
            print(f"one replica: {capacity:.1f} answers a second", flush=True)
            _walk(given, process, port, path, body, capacity)


def _config() -> dict[str, object]:
    config: dict[str, object] = yaml.safe_load((ROOT / "serve_configs" / "local.yaml").read_text())
    (deployment,) = config["applications"][0]["deployments"]  # type: ignore[index]
    deployment["autoscaling_config"] |= {"max_replicas": MOST, "upscale_delay_s": 2, "downscale_delay_s": 20}
    return config


def _walk(given: argparse.Namespace, process: int, port: int, path: str, body: bytes, capacity: float) -> None:
    begun = time.perf_counter()
    counts: list[tuple[float, int]] = []
    stages: list[tuple[float, Load]] = []
    for factor, seconds in ((0.33, CALM_S), (2.5, given.burst_s), (0.33, 240.0)):
        load = Load(port, path, body, factor * capacity)
        stages.append((time.perf_counter() - begun, load))
        end = time.perf_counter() + seconds
        try:
            while time.perf_counter() < end:
                counts.append((time.perf_counter() - begun, _replicas(process)))
                if len(stages) == 3 and counts[-1][1] == 1 and counts[-1][0] > stages[-1][0] + 5:
                    break
                time.sleep(0.5)
        finally:
            load.stop()
    burst, calm = stages[1][0], stages[2][0]
    for number in range(2, MOST + 1):
        up = next((at - burst for at, count in counts if count >= number and at >= burst), None)
        print(f"{number} replicas: " + (f"{up:.0f} s after the burst began" if up is not None else "not reached"))
    down = next((at - calm for at, count in counts if count == 1 and at >= calm), None)
    print("one again: " + (f"{down:.0f} s after it ended" if down is not None else "not reached"))
    for name, (_, load) in zip(("calm", "burst", "after"), stages, strict=True):
        print(f"{name}: {dict(load.outcomes.counts)}, lost {load.sent - sum(load.outcomes.counts.values())}")
    _draw(given.picture, counts, stages)
    print(f"picture {given.picture}")


def _replicas(process: int) -> int:
    count = 0
    for child in psutil.Process(process).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            count += "ServeReplica" in " ".join(child.cmdline())
    return count


def _draw(picture: Path, counts: list[tuple[float, int]], stages: list[tuple[float, Load]]) -> None:
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(9, 6), layout="constrained")
    above.step([at for at, _ in counts], [count for _, count in counts], where="post", color="#0072b2", linewidth=2)
    above.set(ylabel="replicas", ylim=(0, MOST + 0.5), yticks=range(MOST + 1), title="A burst of requests: replicas and answers")
    colours = {"whole": "#009e73", "degraded": "#e69f00", "refused": "#999999"}
    for kind, colour in colours.items():
        rates = [
            (offset + second, load.outcomes.by_second[second][kind])
            for offset, load in stages
            for second in sorted(load.outcomes.by_second)
        ]
        below.plot([at for at, _ in rates], [rate for _, rate in rates], color=colour, label=kind)
    below.set(xlabel="time, s", ylabel="requests a second", ylim=(0, None))
    below.legend(frameon=False, ncols=3)
    for axes in (above, below):
        axes.axvspan(stages[1][0], stages[2][0], color="#f0e442", alpha=0.2)
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main()
