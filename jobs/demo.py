"""The whole road on one machine: `make demo`.

Makes radio scenes and cuts them into tiles, trains three small detectors side by side as jobs on a Ray cluster of its own,
exports, promotes and serves them, and streams a recording that training never saw over the WebSocket: tracks are printed, and
a waterfall with boxes is drawn. Everything it makes lies in `.demo/`; everything it starts has ended when it ends.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

# In place of this script's own folder, whose scripts would shadow modules of the standard library (`profile`).
sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs.demo_road import (  # noqa: E402
    DEMO,
    LONGHAUL,
    RAY,
    Cluster,
    Steps,
    console,
    newest_version,
    own_cluster,
    run,
    run_together,
    server,
)

KINDS = ("wifi_bluetooth", "lte_uplink", "creamy_chicken")
MODELS = tuple(f"demo_{kind}" for kind in KINDS)
RECIPES = "jobs/recipes/detection"
TRAINED_ON, UNSEEN = 5, 77  # seeds of the scenes
RECORDINGS = 12
CHUNKS = ["--chunk-s", "0.01", "--nfft", "1024", "--hop", "512", "--tile", "128", "--workers", "0"]
GOAL = 0.5
_TOLD_EVERY_S = 10.0


def main() -> int:
    """Walk the road; returns the exit code."""
    steps = Steps(7)
    DEMO.mkdir(exist_ok=True)
    for folder in ("recordings", "tiles", "unseen"):  # of the demo before this one
        shutil.rmtree(DEMO / folder, ignore_errors=True)
    stamp, registry = time.strftime("%Y%m%d-%H%M%S"), DEMO / "models"
    steps.begin("start a Ray cluster on this machine")
    with own_cluster(least_cpus=len(KINDS)) as cluster:
        steps.begin(
            "make radio scenes: one kind for each detector, the other kinds as clutter, and one with everything to ask about"
        )
        _make_scenes(cluster)
        steps.begin("cut them into tiles")
        _cut(cluster)
        steps.begin("train three detectors side by side, each as a Ray job")
        _train(cluster, stamp)
        steps.begin("export to ONNX, check against torch, register, promote")
        _export(cluster, stamp, registry)
        steps.begin("serve all three over HTTP")
        with server(cluster, registry, MODELS) as url:
            steps.begin("stream the recording that training never saw")
            share = _ask(cluster, url)
    console.print(steps.table())
    _farewell(stamp, registry)
    if share < GOAL:
        console.print(f"[red]F1 {share:.2f} against the annotations; at least {GOAL} was expected[/]")
        return 1
    return 0


def _make_scenes(cluster: Cluster) -> None:
    for kind in KINDS:
        options = ["--small", "--clutter", "--sample-rate", "40e6", "--recordings", str(RECORDINGS), "--seed", str(TRAINED_ON)]
        run([LONGHAUL, "signals", "make", kind, *options, "--out", str(DEMO / "recordings" / kind)], cluster.environment)
    options = ["--small", "--recordings", "1", "--duration-s", "0.2", "--seed", str(UNSEEN), "--out", str(DEMO / "unseen")]
    run([LONGHAUL, "signals", "make", "mixed", *options], cluster.environment)


def _cut(cluster: Cluster) -> None:
    sources = {kind: DEMO / "recordings" / kind for kind in KINDS} | {"unseen": DEMO / "unseen"}
    chunk = [LONGHAUL, "signals", "chunk", *CHUNKS]
    commands = {f"tiles-{name}": [*chunk, str(source), "--out", str(DEMO / "tiles" / name)] for name, source in sources.items()}
    run_together(commands, cluster.environment)


def _train(cluster: Cluster, stamp: str) -> None:
    job = [RAY, "job", "submit", "--address", cluster.dashboard, "--working-dir", ".", "--"]
    commands = {}
    for kind in KINDS:
        recipe = f"{RECIPES}/demo_{kind}.yaml"
        where = ["--name", f"{kind}-{stamp}", "--storage", str(DEMO / "runs"), "--set", f"data.root={DEMO / 'tiles' / kind}"]
        commands[f"train-{kind}"] = [*job, "python", "jobs/train.py", recipe, *where]
    run_together(commands, cluster.environment, _Watch(stamp))


class _Watch:
    """Says now and then how far the runs are."""

    def __init__(self, stamp: str) -> None:
        self._stamp = stamp
        self._told = time.monotonic()

    def __call__(self) -> None:
        from longhaul.insight.live import RunEye
        from longhaul.resilience.run_directory import RunDirectory

        if time.monotonic() - self._told < _TOLD_EVERY_S:
            return
        self._told = time.monotonic()
        parts = []
        for kind in KINDS:
            if (DEMO / "runs" / f"{kind}-{self._stamp}").is_dir():
                seen = RunEye(RunDirectory.open(str(DEMO / "runs" / f"{kind}-{self._stamp}"))).look()
                best = f", mAP50 {seen.best:.2f}" if seen.best is not None else ""
                parts.append(f"{kind} {seen.step}/{seen.total_steps}{best}")
        console.print(f"     {'   '.join(parts) or 'waiting for the jobs to begin'}")


def _export(cluster: Cluster, stamp: str, registry: Path) -> None:
    commands = {
        f"export-{kind}": [LONGHAUL, "export", str(DEMO / "runs" / f"{kind}-{stamp}"), "--registry", str(registry), "--no-plan"]
        for kind in KINDS
    }
    run_together(commands, cluster.environment)
    for name in MODELS:
        version = newest_version(registry, name)
        run([LONGHAUL, "models", "promote", name, version, "--registry", str(registry)], cluster.environment)


def _ask(cluster: Cluster, url: str) -> float:
    """Stream the unseen recording; returns the F1 of what was found against its annotations."""
    recording = next((DEMO / "unseen").glob("*.sigmf-meta"))
    files = ["--out", str(DEMO / "detections.png"), "--json", str(DEMO / "answers.json")]
    run([LONGHAUL, "detect", str(recording), "--url", url, "--stream", *files], cluster.environment)
    answers = json.loads((DEMO / "answers.json").read_text())
    scores = _scores(answers["chunks"])
    figures = ", ".join(f"{name} {value:.2f}" for name, value in scores.items())
    console.print(f"[bold]against the recording's annotations, at IoU 0.5: {figures}[/]")
    return scores["f1"]


def _scores(chunks: list[dict[str, Any]]) -> dict[str, float]:
    """Precision, recall and F1 at IoU 0.5 of the answered detections, over the boxes of the recording's own tiles."""
    from longhaul.signals.tile_folder import read_tiles
    from longhaul.workloads.detection_metrics import Boxes, ThresholdScores

    tiles = read_tiles(DEMO / "tiles" / "unseen")
    numbers = {label: place for place, label in enumerate(sorted({box.label for tile in tiles for box in tile.boxes.bboxes}))}
    scores = ThresholdScores(score=0.5, iou=0.5)
    for tile, chunk in zip(tiles, chunks, strict=True):
        truth, found = tile.boxes.bboxes, chunk["detections"]
        true: Boxes = {
            "boxes": torch.tensor([[box.x_min, box.y_min, box.x_max, box.y_max] for box in truth]).reshape(-1, 4),
            "labels": torch.tensor([numbers[box.label] for box in truth]),
        }
        given: Boxes = {
            "boxes": torch.tensor([one["box_px"] for one in found]).reshape(-1, 4),
            "labels": torch.tensor([numbers.get(one["label"], -1) for one in found]),
            "scores": torch.tensor([one["score"] for one in found]),
        }
        scores.update([given], [true])
    return {name: float(value) for name, value in scores.compute().items()}


def _farewell(stamp: str, registry: Path) -> None:
    console.print("\nAll that was started has ended. To look at:")
    for picture in [DEMO / "detections.png", *sorted((DEMO / "runs").glob(f"*-{stamp}/pictures/predictions.png"))]:
        console.print(f"  {picture}")
    console.print("\nTo try next (with .venv/bin on the PATH):")
    console.print(f"  longhaul serve --registry {registry}")
    console.print(f"  longhaul detect {DEMO / 'unseen' / 'mixed_000.sigmf-meta'} --stream")
    console.print(f"  longhaul runs ls --storage {DEMO / 'runs'}")


if __name__ == "__main__":
    sys.exit(main())
