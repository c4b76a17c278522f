"""Do tracks keep their identity? Emitters that are known, seen by a detector that misses, misplaces and makes things up.

    python benchmarks/tracks.py [--chunks 60] [--scenes 8] [--jitter-px 1] [--false-alarms 0.2]
        [--drops 0,0.05,0.1,0.2,0.4] [--first-seed 100] [--one-off]

Wi-Fi and Bluetooth are those of `longhaul signals make mixed --small` at 40 MHz: an emitter is a channel of Wi-Fi (its stations
differ in power alone, which no box tells) or a piconet. The scenes' LTE users and chirpers send once each and are gone, so here
four users return to blocks of their own and three chirpers to their sweeps; `--one-off` takes those of the scenes. Sightings are
bursts within a chunk; a track that was never confirmed counts as none.

Prediction, for 1 px of jitter and 0.2 false alarms a chunk: Wi-Fi, LTE and chirps keep one track an emitter at any drop rate up
to 0.2, with no switches; the piconet, whose track may hop anywhere, loses bursts to tracks of false alarms, IDF1 0.9 or more.
Fragmentations are the detector's misses and grow with the drops. With one emitter a burst (`--one-off`), users in turn on the
same blocks share a track, and IDF1 is below 0.5: boxes cannot tell them apart.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/shared"))

import numpy as np
from annotated_answers import DetectorModel, answers

from longhaul.serving.detection.track_metrics import IdentityMetrics, Sighting, identity_metrics
from longhaul.serving.detection.tracks import Tracker, TrackerSettings
from longhaul.signals.annotations import Annotation
from longhaul.signals.scene_settings import SceneSettings, preset
from longhaul.signals.scenes import Scene


def sightings_of(
    annotations: list[Annotation], settings: SceneSettings, detector: DetectorModel, tracker: TrackerSettings | None = None
) -> dict[str, list[Sighting]]:
    """What the tracker made of a scene, by label; a track that it never told counts as none."""
    rate = settings.sample_rate_hz
    chunks, length = round(settings.duration_s / settings.chunk_s), round(settings.chunk_s * rate)
    one = Tracker(tracker)
    told: set[int] = set()
    raw: list[tuple[str, str | None, int | None]] = []
    for seen in answers(annotations, chunks, length, rate, detector):
        told |= {track.id for track in one.update(seen.answer)}
        real = {place for _, place in seen.truths if place is not None}
        raw += [(box.label, box.emitter, None if place is None else one.assigned.get(place)) for box, place in seen.truths]
        raw += [
            (detection.label, None, one.assigned.get(place))
            for place, detection in enumerate(seen.answer.detections)
            if place not in real
        ]
    found: dict[str, list[Sighting]] = {}
    for label, emitter, track in raw:
        found.setdefault(label, []).append(Sighting(emitter, track if track in told else None))
    return found


def scene_of(seed: int, chunks: int, *, one_off: bool) -> tuple[list[Annotation], SceneSettings]:
    """A mixed scene's annotations without its edge cases, Wi-Fi's by channel; LTE's and the chirps' are other ones."""
    small = preset("mixed", small=True)
    settings = small.model_copy(update={"edge_cases": False, "duration_s": chunks * small.chunk_s, "collisions": 0.0})
    boxes = [replace(box, emitter=_who(box)) for box in Scene(settings, seed).annotations]
    if not one_off:
        boxes = [box for box in boxes if box.label in ("wifi", "bluetooth")] + list(returning(settings, seed))
    return sorted(boxes, key=lambda box: box.start), settings


def returning(settings: SceneSettings, seed: int) -> Iterator[Annotation]:
    """Users of an LTE cell on blocks of their own, and chirpers with one sweep each, all again and again after random pauses."""
    rng = np.random.default_rng(seed)
    rate = settings.sample_rate_hz
    users = [(f"lte_uplink/{user}", (4.5 * user - 9) * 1e6, rng.integers(6, 24) * 180e3) for user in range(4)]
    chirpers = [(f"creamy_chicken/{which}", (8 * which - 12) * 1e6, rng.uniform(3e6, 7e6)) for which in range(3)]
    for emitter, low, width in [*users, *chirpers]:
        sweep_s = rng.uniform(1e-3, 4e-3)
        now = rng.exponential(settings.chunk_s)
        while now < settings.duration_s:
            lasting = sweep_s if emitter.startswith("creamy") else 1e-3 * int(rng.integers(1, 5))
            samples = round(min(lasting, settings.duration_s - now) * rate)
            if samples:
                yield Annotation(emitter.partition("/")[0], round(now * rate), samples, low, low + float(width), emitter)
            now += lasting + 1e-3 + rng.exponential(settings.chunk_s)


def main() -> None:
    """Print a line a label and drop rate."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=60)
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--jitter-px", type=float, default=1.0)
    parser.add_argument("--false-alarms", type=float, default=0.2, help="a chunk")
    parser.add_argument("--drops", default="0,0.05,0.1,0.2,0.4")
    parser.add_argument("--first-seed", type=int, default=100, help="the costs were chosen on seeds 0 to 7")
    parser.add_argument("--one-off", action="store_true", help="LTE users and chirpers that send once each")
    parser.add_argument("--hopping", default="bluetooth", help="labels whose emitters hop, with commas")
    chosen = parser.parse_args()
    association = TrackerSettings().association.model_copy(update={"hopping": frozenset(chosen.hopping.split(","))})
    tracker = TrackerSettings(association=association)
    print("| drops | label | sightings | emitters | tracks | kept | switches | fragmentations | IDF1 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for drop in (float(text) for text in chosen.drops.split(",")):
        results: dict[str, list[IdentityMetrics]] = {}
        for seed in range(chosen.first_seed, chosen.first_seed + chosen.scenes):
            detector = DetectorModel(drop=drop, jitter_px=chosen.jitter_px, false_alarms=chosen.false_alarms, seed=seed)
            annotations, settings = scene_of(seed, chosen.chunks, one_off=chosen.one_off)
            for label, found in sightings_of(annotations, settings, detector, tracker).items():
                results.setdefault(label, []).append(identity_metrics(found))
        for label in sorted(results):
            print(_row(drop, label, results[label]))


def _row(drop: float, label: str, runs: list[IdentityMetrics]) -> str:
    sightings, emitters, tracks = (sum(getattr(run, name) for run in runs) for name in ("sightings", "emitters", "tracks"))
    kept, tracked = sum(run.kept for run in runs), sum(run.tracked for run in runs)
    switches, fragments = sum(run.switches for run in runs), sum(run.fragmentations for run in runs)
    idf1 = sum(run.idf1 for run in runs) / len(runs)
    cells = (f"{drop:g}", label, sightings, emitters, tracks, f"{kept} of {tracked}", switches, fragments, f"{idf1:.3f}")
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _who(box: Annotation) -> str | None:
    return box.emitter.rpartition("/")[0] if box.emitter and box.label == "wifi" else box.emitter


if __name__ == "__main__":
    main()
