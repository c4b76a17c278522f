"""The road of a classifier on one machine: `make demo-digits`.

Starts a Ray cluster on loopback, submits the digits recipe to it with `ray job submit`, exports and promotes the model,
serves it, posts digits that training never saw, and shows the answers beside the truth. Everything it makes lies in
`.demo/`; everything it starts has ended when it ends.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import httpx
from rich.table import Table

# In place of this script's own folder, whose scripts would shadow modules of the standard library (`profile`).
sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs.demo_road import DEMO, LONGHAUL, RAY, Steps, console, newest_version, own_cluster, run, server  # noqa: E402

RECIPE = "jobs/recipes/classification/digits.yaml"
SHOWN = 20
GOAL = 0.95


def main() -> int:
    """Walk the road; returns the exit code."""
    steps = Steps(5)
    DEMO.mkdir(exist_ok=True)
    name = f"digits-{time.strftime('%Y%m%d-%H%M%S')}"
    trained, registry = DEMO / "runs" / name, DEMO / "models"
    steps.begin("start a Ray cluster on this machine")
    with own_cluster() as cluster:
        steps.begin(f"train {RECIPE} as a Ray job")
        job = [RAY, "job", "submit", "--address", cluster.dashboard, "--working-dir", ".", "--"]
        train = ["python", "jobs/train.py", RECIPE, "--name", name, "--storage", str(trained.parent)]
        run([*job, *train], cluster.environment)
        steps.begin("export to ONNX, check it against torch, register, promote")
        run([LONGHAUL, "export", str(trained), "--registry", str(registry)], cluster.environment)
        version = newest_version(registry, "digits")
        run([LONGHAUL, "models", "promote", "digits", version, "--registry", str(registry)], cluster.environment)
        steps.begin("serve it over HTTP")
        with server(cluster, registry, ["digits"]) as url:
            steps.begin("ask it about digits that training never saw")
            share = _ask(url)
    console.print(steps.table())
    _farewell(trained, registry)
    if share < GOAL:
        console.print(f"[red]only {share:.1%} of the answers are right; at least {GOAL:.0%} were expected[/]")
        return 1
    return 0


def _ask(url: str) -> float:
    """Post the test split, picture by picture; returns the share of right answers."""
    from PIL import Image

    from longhaul.data.digits import default_root
    from longhaul.insight.gallery import Answer, gallery

    answers = []
    pictures = sorted((default_root() / "test").rglob("*.png"), key=lambda path: path.name)
    with httpx.Client(base_url=url, timeout=30) as client:
        for path in pictures:
            reply = client.post("/v1/models/digits/predict", content=path.read_bytes(), headers={"Content-Type": "image/png"})
            best = reply.raise_for_status().json()["predictions"][0]
            answers.append(Answer(Image.open(path).copy(), best["label"], path.parent.name, best["probability"]))
    table = Table("picture", "truth", "answer", "probability", "")
    for path, one in list(zip(pictures, answers, strict=True))[:SHOWN]:
        verdict = "right" if one.answer == one.truth else "[red]wrong[/]"
        table.add_row(path.name, one.truth, one.answer, f"{one.probability:.3f}", verdict)
    console.print(table)
    right = sum(one.answer == one.truth for one in answers)
    title = f"{right} of {len(answers)} digits that training never saw are right ({right / len(answers):.1%})"
    console.print(f"[bold]{title}[/]")
    wrong_first = sorted(answers, key=lambda one: one.answer == one.truth)
    (DEMO / "answers.png").write_bytes(gallery(wrong_first[: 3 * 10], title))
    return right / len(answers)


def _farewell(run: Path, registry: Path) -> None:
    console.print("\nAll that was started has ended. To look at:")
    for picture in [DEMO / "answers.png", *sorted((run / "pictures").glob("*.png"))]:
        console.print(f"  {picture}")
    console.print("\nTo try next (with .venv/bin on the PATH):")
    console.print(f"  longhaul runs show {run}")
    console.print(f"  longhaul models ls --registry {registry}")
    console.print(f"  longhaul serve --registry {registry}")
    console.print(f"  longhaul train {RECIPE} --set training.engine=zero2 --set training.epochs=5")


if __name__ == "__main__":
    sys.exit(main())
