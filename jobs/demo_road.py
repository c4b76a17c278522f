"""What both demos walk on: a Ray cluster of their own on loopback, commands, a server, and an end to all of them."""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / ".demo"
BIN = Path(sys.executable).parent
LONGHAUL, RAY = str(BIN / "longhaul"), str(BIN / "ray")
_POLL_S = 0.5
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster: its dashboard's address, and the environment for commands that shall find it."""

    dashboard: str
    environment: Mapping[str, str]


class Steps:
    """The demo's steps, numbered, and how long each took.

    Args:
        total: how many there will be.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._begun: list[tuple[str, float]] = []

    def begin(self, text: str) -> None:
        """The next step; the one before it ends here."""
        self._begun.append((text, time.monotonic()))
        console.print(f"\n[bold cyan]{len(self._begun)}/{self._total}  {text}[/]")

    def table(self) -> Table:
        """Seconds by step, and in all; the last step ends here."""
        table = Table("step", "seconds", title="where the time went")
        table.columns[1].justify = "right"
        ends = [*(began for _, began in self._begun[1:]), time.monotonic()]
        for (text, began), ended in zip(self._begun, ends, strict=True):
            table.add_row(text, f"{ended - began:.0f}")
        table.add_section()
        table.add_row("in all", f"{ends[-1] - self._begun[0][1]:.0f}")
        return table


@contextlib.contextmanager
def own_cluster(least_cpus: int = 2) -> Iterator[Cluster]:
    """A head node on loopback with a token of its own: nobody else on this machine can use it.

    Args:
        least_cpus: CPUs that Ray shall believe in, though the machine has fewer: so many workers run at a time.

    Yields:
        Where it is; the environment leads commands to it.
    """
    with tempfile.TemporaryDirectory(prefix="longhaul-") as scratch:
        environment = _environment(scratch)
        gcs, dashboard, agent, client = free_ports(4)
        cpus = max(os.cpu_count() or least_cpus, least_cpus)
        options = {
            "port": gcs, "node-ip-address": "127.0.0.1", "dashboard-host": "127.0.0.1", "dashboard-port": dashboard,
            "dashboard-agent-listen-port": agent, "ray-client-server-port": client,  # another cluster here may have Ray's own
            "num-cpus": cpus, "num-gpus": 0, "temp-dir": scratch,
        }  # fmt: skip
        command = [RAY, "start", "--head", "--block", *(f"--{key}={value}" for key, value in options.items())]
        log = DEMO / "ray.log"
        with process(command, environment, log) as head:
            url = f"http://127.0.0.1:{dashboard}"
            headers = {"Authorization": f"Bearer {Path(environment['RAY_AUTH_TOKEN_PATH']).read_text()}"}
            wait_for(f"{url}/api/version", head, log, headers)
            console.print(f"     {cpus} CPUs, dashboard {url}")
            yield Cluster(url, {**environment, "RAY_ADDRESS": f"127.0.0.1:{gcs}"})


def _environment(scratch: str) -> dict[str, str]:
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
def server(cluster: Cluster, registry: Path, models: Sequence[str]) -> Iterator[str]:
    """`longhaul serve` with these models; yields its address."""
    (port,) = free_ports(1)
    log = DEMO / "serve.log"
    chosen = [part for name in models for part in ("--model", name)]
    command = [LONGHAUL, "serve", "--registry", str(registry), *chosen, "--port", str(port)]
    show(command)
    with process(command, cluster.environment, log) as serving:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/healthz", serving, log)
        console.print(f"     {url}/docs lists the routes")
        yield url


def newest_version(registry: Path, name: str) -> str:
    """The version of a model that was registered last."""
    return str(max((int(path.name) for path in (registry / name).iterdir() if path.name.isdigit()), default=0))


def show(command: Sequence[str]) -> None:
    """Print a command as one would type it."""
    console.print(f"[dim]$ {' '.join([Path(command[0]).name, *command[1:]])}[/]", markup=True)


def run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Print a command, run it, and end the demo if it fails."""
    show(command)
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"the demo stops here: that command ended with {done.returncode}")


def run_together(
    commands: Mapping[str, Sequence[str]], environment: Mapping[str, str], watch: Callable[[], None] = lambda: None
) -> None:
    """Run commands side by side, each with its output in `.demo/NAME.log`; one that fails ends the demo with its last lines.

    Args:
        commands: by the name of their log.
        environment: of all of them.
        watch: is called now and then until all have ended.
    """
    with contextlib.ExitStack() as stack:
        running = {}
        for name, command in commands.items():
            show(command)
            running[name] = stack.enter_context(process(command, environment, DEMO / f"{name}.log"))
        while any(one.poll() is None for one in running.values()):
            for name, one in running.items():
                if one.poll():
                    log = DEMO / f"{name}.log"
                    raise SystemExit(f"the demo stops here; the end of {log}:\n{log.read_text()[-3000:]}")
            watch()
            time.sleep(_POLL_S)
        failed = [name for name, one in running.items() if one.returncode]
    if failed:
        log = DEMO / f"{failed[0]}.log"
        raise SystemExit(f"the demo stops here; the end of {log}:\n{log.read_text()[-3000:]}")


@contextlib.contextmanager
def process(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output in `log`; asked to stop, and waited for, when the block ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path, headers: dict[str, str] | None = None) -> None:
    """Until `url` answers 200; ends the demo if the process dies or two minutes pass."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, headers=headers or {}, timeout=5).status_code == httpx.codes.OK:
                return
        time.sleep(0.5)
    raise SystemExit(f"the demo stops here: {url} did not answer; the end of {log}:\n{log.read_text()[-2000:]}")


def free_ports(count: int) -> list[int]:
    """Free ports above 20000: below are those that Ray gives its workers."""
    found: list[int] = []
    while len(found) < count:
        port = 20000 + secrets.randbelow(8000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0 and port not in found:
                found.append(port)
    return found
