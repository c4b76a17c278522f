"""The whole road on one machine: `make demo`.

Starts a Ray cluster on loopback, submits the digits recipe to it with `ray job submit`, exports and promotes the model,
serves it, posts digits that training never saw, and shows the answers beside the truth. Everything it makes lies in
`.demo/`; everything it starts has ended when it ends.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / ".demo"
RECIPE = "jobs/recipes/classification/digits.yaml"
BIN = Path(sys.executable).parent
SHOWN = 20
GOAL = 0.95
console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    """Walk the road; returns the exit code."""
    began = time.monotonic()
    DEMO.mkdir(exist_ok=True)
    name = f"digits-{time.strftime('%Y%m%d-%H%M%S')}"
    run, registry = DEMO / "runs" / name, DEMO / "models"
    with tempfile.TemporaryDirectory(prefix="longhaul-") as scratch:
        environment = _environment(scratch)
        with _ray_cluster(environment, scratch) as dashboard:
            _step(f"2/5  train {RECIPE} as a Ray job")
            job = ["job", "submit", "--address", dashboard, "--working-dir", ".", "--"]
            train = ["python", "jobs/train.py", RECIPE, "--name", name, "--storage", str(run.parent)]
            _run([str(BIN / "ray"), *job, *train], environment)
            _step("3/5  export to ONNX, check it against torch, register, promote")
            _run([str(BIN / "longhaul"), "export", str(run), "--registry", str(registry)], environment)
            version = max((int(p.name) for p in (registry / "digits").iterdir() if p.name.isdigit()), default=0)
            _run([str(BIN / "longhaul"), "models", "promote", "digits", str(version), "--registry", str(registry)], environment)
            _step("4/5  serve it over HTTP")
            with _server(environment, registry) as url:
                _step("5/5  ask it about digits that training never saw")
                share = _ask(url)
    minutes = (time.monotonic() - began) / 60
    _farewell(run, registry, minutes)
    if share < GOAL:
        console.print(f"[red]only {share:.1%} of the answers are right; at least {GOAL:.0%} were expected[/]")
        return 1
    return 0


def _environment(scratch: str) -> dict[str, str]:
    """A token of this demo's own: nobody else on this machine can use its cluster."""
    token = Path(scratch) / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    mine = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nothing is left to drain when the head is told to stop
        "PYTHONUNBUFFERED": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return kept | mine


@contextlib.contextmanager
def _ray_cluster(environment: dict[str, str], scratch: str) -> Iterator[str]:
    """A head node on loopback; yields its dashboard's address. The block's commands find the cluster by RAY_ADDRESS."""
    gcs, dashboard = _free_ports(2)
    _step("1/5  start a Ray cluster on this machine")
    cpus = max(os.cpu_count() or 2, 2)  # two workers, also on one core
    options = {
        "port": gcs, "node-ip-address": "127.0.0.1", "dashboard-host": "127.0.0.1", "dashboard-port": dashboard,
        "num-cpus": cpus, "num-gpus": 0, "temp-dir": scratch,
    }  # fmt: skip
    command = [str(BIN / "ray"), "start", "--head", "--block", *(f"--{key}={value}" for key, value in options.items())]
    log = DEMO / "ray.log"
    with _process(command, environment, log) as head:
        url = f"http://127.0.0.1:{dashboard}"
        headers = {"Authorization": f"Bearer {Path(environment['RAY_AUTH_TOKEN_PATH']).read_text()}"}
        _wait_for(f"{url}/api/version", head, log, headers)
        environment["RAY_ADDRESS"] = f"127.0.0.1:{gcs}"
        console.print(f"     {cpus} CPUs, dashboard {url}")
        yield url


@contextlib.contextmanager
def _server(environment: dict[str, str], registry: Path) -> Iterator[str]:
    (port,) = _free_ports(1)
    log = DEMO / "serve.log"
    command = [str(BIN / "longhaul"), "serve", "--registry", str(registry), "--model", "digits", "--port", str(port)]
    with _process(command, environment, log) as server:
        url = f"http://127.0.0.1:{port}"
        _wait_for(f"{url}/healthz", server, log)
        console.print(f"     {url}/docs lists the routes")
        yield url


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


def _farewell(run: Path, registry: Path, minutes: float) -> None:
    console.print(f"\nDone in {minutes:.1f} minutes; all that was started has ended. To look at:")
    for picture in [DEMO / "answers.png", *sorted((run / "pictures").glob("*.png"))]:
        console.print(f"  {picture}")
    console.print("\nTo try next (with .venv/bin on the PATH):")
    console.print(f"  longhaul runs show {run}")
    console.print(f"  longhaul models ls --registry {registry}")
    console.print(f"  longhaul serve --registry {registry}")
    console.print(f"  longhaul train {RECIPE} --set training.engine=zero2 --set training.epochs=5")


def _step(text: str) -> None:
    console.print(f"\n[bold cyan]{text}[/]")


def _run(command: Sequence[str], environment: dict[str, str]) -> None:
    console.print(f"[dim]$ {' '.join(Path(command[0]).name if i == 0 else part for i, part in enumerate(command))}[/]")
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"the demo stops here: that command ended with {done.returncode}")


@contextlib.contextmanager
def _process(command: Sequence[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output in `log`; asked to stop, and waited for, when the block ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path, headers: dict[str, str] | None = None) -> None:
    """Until `url` answers 200; ends the demo if the process dies or two minutes pass."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, headers=headers or {}, timeout=5).status_code == httpx.codes.OK:
                return
        time.sleep(0.5)
    raise SystemExit(f"the demo stops here: {url} did not answer; the end of {log}:\n{log.read_text()[-2000:]}")


def _free_ports(count: int) -> list[int]:
    """Free ports above 20000: below are those that Ray gives its workers."""
    found: list[int] = []
    while len(found) < count:
        port = 20000 + secrets.randbelow(8000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0 and port not in found:
                found.append(port)
    return found


if __name__ == "__main__":
    sys.exit(main())
