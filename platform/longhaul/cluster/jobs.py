"""Submitting runs as Ray jobs and following them: a wrapper around `ray.job_submission.JobSubmissionClient`.

A job gets two things from this machine: the repository without `platform/` as its working directory, and the package as a
py_module. So nothing called `platform` lies on the job's path beside the standard library's module, and the package is
importable in the driver, in tasks and in actors on every node, installed there or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from longhaul import __version__
from longhaul.cluster.connect import TOKEN_FIX, check_reachable, ensure_token, find_gcs, speaks_grpc
from longhaul.errors import LonghaulError, UserError
from longhaul.recipe import load
from longhaul.recipe.paths import refuse_relative_paths
from longhaul.resilience.run_directory import check_run_name, new_run_name

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

DEFAULT_DASHBOARD = "http://127.0.0.1:8265"
_PACKAGE = Path("platform", "longhaul")
_ENTRY = Path("jobs", "train.py")
# Ray applies these to the working directory and, from its own top, to the package too: `/data` or `/models` here would
# drop rooms of the package. What only the working directory shall leave out stands in .rayignore and .gitignore.
_EXCLUDES = ("/platform", "__pycache__/")
_NEVER_SENT = ("platform", "runs", "models", "data", ".venv", ".git", ".demo", "build", "wandb")
_LOST_AFTER = 6
_RETRY_PAUSE_S = 2.0


@dataclass(frozen=True)
class Submission:
    """A job that a cluster has accepted.

    Attributes:
        submission_id: `<run>-attempt-<n>`; what `ray job status|logs|stop` take.
        run: the run's name.
        dashboard: `http://host:port` of the cluster.
        storage: where the run directory lies; None where the cluster decides (`cluster.connect.default_storage`).
    """

    submission_id: str
    run: str
    dashboard: str
    storage: str | None

    def command(self, verb: str, *options: str) -> str:
        """A `ray job` command about this job that works in any shell."""
        mode = os.environ.get("RAY_AUTH_MODE")
        prefix = f"RAY_AUTH_MODE={mode} " if mode else ""
        return prefix + shlex.join(["ray", "job", verb, *options, "--address", self.dashboard, self.submission_id])


def submit(
    recipe_path: str | Path,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    storage: str | None = None,
    address: str | None = None,
) -> Submission:
    """Submit the training of a recipe; the cluster sees only recipes that are valid here.

    Args:
        recipe_path: a YAML file inside a clone of the repository.
        overrides: texts such as `training.epochs=3`.
        name: of the run; an existing run is resumed. Left out, the recipe's name and the time.
        storage: where run directories lie; a local path is made absolute here.
        address: `dashboard_address` says what it may be.

    Raises:
        UserError: the recipe, the repository or the address is wrong, or a job of this run is still alive.
    """
    root = find_root(Path(recipe_path))
    check_platform_folder(root)
    recipe = load(recipe_path, overrides)
    inside = _path_in_job(Path(recipe_path), root)
    refuse_relative_paths(recipe)
    run = check_run_name(name or new_run_name(recipe.name))
    where = absolute_storage(storage)
    command = ["python", _ENTRY.as_posix(), inside, *(part for text in overrides for part in ("--set", text)), "--name", run]
    command += ["--storage", where] if where else []
    dashboard = dashboard_address(address)
    client = _client(dashboard)
    metadata = {
        "longhaul_run": run,
        "longhaul_recipe": inside,
        "longhaul_recipe_sha256": recipe.sha256,
        "longhaul_version": __version__,
    }
    with _explained(dashboard):
        submission_id = _next_attempt(run, client.list_jobs())
        client.submit_job(
            entrypoint=shlex.join(command), submission_id=submission_id, runtime_env=runtime_env(root), metadata=metadata
        )
    return Submission(submission_id, run, dashboard, where)


def runtime_env(root: Path) -> dict[str, Any]:
    """What a job from the clone at `root` gets: the repository without `platform/`, and the package as a py_module."""
    return {"working_dir": str(root), "py_modules": [str(root / _PACKAGE)], "excludes": list(_EXCLUDES)}


def follow(submission: Submission, write: Callable[[str], None]) -> int:
    """Hand the job's log to `write` as it grows, to the job's end; returns the job's exit code.

    A broken connection is taken up again where it broke. Wraps `JobSubmissionClient.tail_job_logs`.

    Raises:
        LonghaulError: the cluster cannot be reached any more; the job may go on.
    """
    client = _client(submission.dashboard)
    details = asyncio.run(_tail(client, submission, write))
    if details.status == "SUCCEEDED":
        return 0
    code = details.driver_exit_code
    if code is None:  # the driver never ran, or was stopped: there is no log that says so
        write(f"job {submission.submission_id} {str(details.status).lower()}: {details.message or 'no message'}\n")
    return code or 1


def check_platform_folder(root: Path) -> None:
    """Refuse a repository whose folder `platform/` is a package.

    With the repository's root on `sys.path`, as in every Ray job, such a package shadows the standard library's module:
    `import torch` dies, and a job hangs in PENDING without a log.

    Raises:
        UserError: `<root>/platform/__init__.py` is there.
    """
    marker = root / "platform" / "__init__.py"
    if marker.exists() or marker.is_symlink():
        raise UserError(f"{marker}: makes `platform` a package, which shadows Python's own module", f"Delete it: rm {marker}")


def find_root(recipe: Path) -> Path:
    """The clone's top folder, looked for above the recipe, above the working directory, and above this package.

    Raises:
        UserError: there is none.
    """
    for start in (recipe.resolve().parent, Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            if (folder / _ENTRY).is_file() and (folder / _PACKAGE / "__init__.py").is_file():
                return folder
    raise UserError("submit: no clone of the repository here, and a job is made from one", "Run it from the clone's top folder")


def absolute_storage(storage: str | None) -> str | None:
    """A local path made absolute (a job's working directory is a copy that goes away); anything else as it is."""
    if storage is None or "://" in storage:
        return storage
    return str(Path(storage).expanduser().resolve())


def dashboard_address(given: str | None) -> str:
    """The address of a cluster's dashboard, which takes jobs.

    Args:
        given: `http://host:port`, or `host:port` of the dashboard or the GCS, or `auto`. Left out: the variables
            `RAY_API_SERVER_ADDRESS` and `RAY_ADDRESS`, then port 8265 here, then any cluster on this machine.

    Raises:
        UserError: nothing answers there.
    """
    chosen = given or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if chosen is None:
        try:
            return _reachable(DEFAULT_DASHBOARD)
        except UserError:
            gcs = find_gcs(None)
            if gcs is None:
                raise
            return _dashboard_of(gcs)
    if chosen == "auto":
        return _dashboard_of(find_gcs("auto") or "")
    url = _reachable(chosen if "://" in chosen else f"http://{chosen}")
    if "://" not in chosen and speaks_grpc(*_host_and_port(url)):
        return _dashboard_of(chosen)
    return url


def _dashboard_of(gcs: str) -> str:
    from ray.dashboard.utils import ray_address_to_api_server_url

    ensure_token()
    return str(ray_address_to_api_server_url(gcs))


def _reachable(url: str) -> str:
    host, port = _host_and_port(url)
    check_reachable(
        host,
        port,
        url,
        "Start one with `ray start --head`, forward its port with `ray dashboard cluster.yaml`, or correct --address",
    )
    return url.rstrip("/")


def _host_and_port(url: str) -> tuple[str, int]:
    """Host and port of an http(s) address; the port defaults by its scheme.

    Raises:
        UserError: it is none.
    """
    fix = "Give for example --address http://127.0.0.1:8265"
    parts = urlsplit(url)
    try:
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        raise UserError(f"Ray cluster {url}: not a dashboard's address", fix) from None
    if not parts.hostname:
        raise UserError(f"Ray cluster {url}: no host in it", fix)
    return parts.hostname, port


def _client(dashboard: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    # Ray tells of each folder that it leaves out; the first two set their own level, to INFO, on import.
    for module in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env"):
        logging.getLogger(f"ray.{module}").setLevel(logging.ERROR)
    with _explained(dashboard), _only_address(dashboard):
        ensure_token()
        return JobSubmissionClient(dashboard)


@contextlib.contextmanager
def _explained(dashboard: str) -> Iterator[None]:
    """Turn what the Jobs API raises for a user's mistakes into one line."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise UserError(f"Ray cluster {dashboard}: refuses this machine's token", TOKEN_FIX) from None
    except ConnectionError as error:
        raise UserError(f"Ray cluster {dashboard}: {error}", "Check the address; it must be a Ray dashboard's") from None
    except ValueError as error:
        if "exceeds the maximum size" not in str(error):
            raise
        raise UserError(f"submit: {str(error).splitlines()[0]}", "Name large files and folders in .rayignore") from None


@contextlib.contextmanager
def _only_address(dashboard: str) -> Iterator[None]:
    """Keep the client from preferring `RAY_ADDRESS` over the address it is given."""
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = dashboard
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def _next_attempt(run: str, jobs: Sequence[JobDetails]) -> str:
    """The next free submission id of a run.

    Raises:
        UserError: an attempt is still alive; two drivers would write the same run directory.
    """
    pattern = re.compile(re.escape(run) + r"-attempt-(\d+)")
    taken = [0]
    for job in jobs:
        match = pattern.fullmatch(job.submission_id or "")
        if match is None:
            continue
        if not job.status.is_terminal():
            raise UserError(
                f"run {run}: its job {job.submission_id} is {str(job.status).lower()}",
                f"Wait for it, stop it with `ray job stop {job.submission_id}`, or give another --name",
            )
        taken.append(int(match.group(1)))
    return f"{run}-attempt-{max(taken) + 1}"


def _path_in_job(recipe: Path, root: Path) -> str:
    """The recipe's path relative to the job's working directory.

    Raises:
        UserError: it lies where nothing is sent from.
    """
    fix = f"Copy it below jobs/recipes: cp {recipe} {root}/jobs/recipes/"
    try:
        relative = recipe.resolve().relative_to(root.resolve())
    except ValueError:
        raise UserError(f"recipe {recipe}: lies outside the repository {root}, a job cannot see it", fix) from None
    if relative.parts[0] in _NEVER_SENT:
        raise UserError(f"recipe {recipe}: the folder {relative.parts[0]}/ is not sent with a job", fix)
    return relative.as_posix()


async def _tail(client: JobSubmissionClient, submission: Submission, write: Callable[[str], None]) -> JobDetails:
    """Write the log to its end, through lost connections; each one starts the log from the beginning again."""
    import aiohttp
    import requests

    seen, failures = 0, 0
    while True:
        position = 0
        problem: object = "the log ended early"
        try:
            async for text in client.tail_job_logs(submission.submission_id):
                fresh = text[max(0, seen - position) :]
                position += len(text)
                if fresh:
                    write(fresh)
                    seen, failures = position, 0
            details = client.get_job_info(submission.submission_id)
            if details.status.is_terminal():
                return details
        except (aiohttp.ClientError, requests.RequestException, OSError, RuntimeError) as error:
            problem = error
        failures += 1
        if failures >= _LOST_AFTER:
            again = submission.command("logs", "--follow")
            raise LonghaulError(f"lost the cluster {submission.dashboard} ({problem}). The job may go on; follow it: {again}")
        await asyncio.sleep(_RETRY_PAUSE_S)
