"""Ray jobs on a cluster, through the dashboard's HTTP API: submit, follow, read their logs. No Ray is needed here."""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from sp_ray_ml._names import near_match
from sp_ray_ml.errors import ClusterError, ClusterNotFoundError, ConfigError
from sp_ray_ml.storage import storage_errors

__all__ = ["Dashboard", "Job", "follow", "list_jobs", "submit"]

_ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
_LOG_FOLLOWS = ", last available logs"
"""What follows in Ray's message on a job that failed is up to 20,000 characters of its log."""
_LINES_TOLD = 20
_JOBS_TOLD = 5
_LARGEST_PACKAGE = 512 * 2**20
_LEFT_OUT = {".git", ".venv", "__pycache__", "node_modules", ".mypy_cache", ".ruff_cache", ".pytest_cache"}


class Dashboard(Protocol):
    """Sends requests to a cluster's dashboard, however it is reached.

    Attributes:
        namespace: The cluster's namespace.
        name: The cluster's name.
    """

    namespace: str
    name: str

    def request(self, method: str, path: str, body: bytes | None = None, *, content_type: str = ...) -> bytes:
        """Send one and return what it answers; an error where that is none of success."""
        ...


class Job:
    """A job on a cluster.

    Attributes:
        id: Its submission id.
    """

    def __init__(self, dashboard: Dashboard, id: str) -> None:
        self._dashboard = dashboard
        self.id = id

    def info(self) -> dict[str, Any]:
        """What Ray says of it: `status`, `entrypoint`, `message`, times in milliseconds."""
        found: dict[str, Any] = self._ask("")
        return found

    @property
    def status(self) -> str:
        """`PENDING`, `RUNNING`, `SUCCEEDED`, `FAILED` or `STOPPED`."""
        return str(self.info()["status"])

    def logs(self) -> str:
        """What it has printed so far."""
        return str(self._ask("/logs").get("logs") or "")

    def stop(self) -> None:
        """Ask it to stop."""
        self._ask("/stop", "POST")

    def _ask(self, what: str, method: str = "GET") -> Any:
        path = f"/api/jobs/{quote(self.id, safe='')}{what}"
        try:
            return json.loads(self._dashboard.request(method, path, b"{}" if method == "POST" else None))
        except ClusterNotFoundError:
            raise _no_such_job(self._dashboard, self.id) from None

    def wait(self, on_output: Callable[[str], None] | None = None) -> str:
        """Wait for its end and return its status.

        Args:
            on_output: Gets what it prints, as it comes.

        Returns:
            `SUCCEEDED`, or `STOPPED` where somebody has stopped it.

        Raises:
            ClusterError: It failed; the message is Ray's, with the end of its log unless `on_output` has got that.
        """
        for text in follow(self):
            if on_output:
                on_output(text)
        info = self.info()
        if info["status"] == "FAILED":
            said, _, log = str(info.get("message") or "it does not say why").partition(_LOG_FOLLOWS)
            lines = [] if on_output else log.partition("\n")[2].splitlines()[-_LINES_TOLD:]
            raise ClusterError("\n".join([f"the job failed: {said.strip()}", *lines]), where=self.id)
        return str(info["status"])

    def __repr__(self) -> str:
        return f"Job({self.id!r})"


def _no_such_job(dashboard: Dashboard, id: str) -> ClusterNotFoundError:
    jobs = sorted(list_jobs(dashboard), key=lambda job: job.get("start_time") or 0, reverse=True)
    known = [str(job.get("submission_id") or job.get("job_id")) for job in jobs]
    command = f"sp-ray logs cluster {dashboard.name} -n {dashboard.namespace} --job"
    told = f"{', '.join(known[:_JOBS_TOLD])}{', …' if len(known) > _JOBS_TOLD else ''}"
    return ClusterNotFoundError(
        f"there is no job {id}{near_match(id, known)}", where=f"{dashboard.namespace}/{dashboard.name}",
        hint=f"There are, the latest first: {told}. Run: {command} {known[0]}" if known
        else f"It has had no job yet: sp-ray submit cluster {dashboard.name} -n {dashboard.namespace} -- CMD",
    )  # fmt: skip


def follow(job: Job, every_s: float = 1.0, *, tail: int | None = None) -> Iterator[str]:
    """What a job prints, as it comes, until its end. Ray's dashboard has nothing to watch here: it is asked again.

    Args:
        job: The job.
        every_s: How often to ask.
        tail: Of what it has printed before, only so many lines.
    """
    seen = 0
    while True:
        ended = job.status in _ENDED  # asked before the log, so that the last lines are not missed
        text = job.logs()
        if len(text) > seen:
            yield "".join(text.splitlines(keepends=True)[-tail:]) if tail and not seen else text[seen:]
            seen = len(text)
        if ended:
            return
        time.sleep(every_s)


def list_jobs(dashboard: Dashboard) -> list[dict[str, Any]]:
    """All jobs that Ray knows, as Ray describes them."""
    found: list[dict[str, Any]] = json.loads(dashboard.request("GET", "/api/jobs/"))
    return found


def submit(
    dashboard: Dashboard,
    entrypoint: str,
    *,
    working_dir: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    job_id: str | None = None,
) -> Job:
    """Start a command on the head.

    Args:
        dashboard: The cluster's dashboard.
        entrypoint: The command line.
        working_dir: A folder here that the job starts in there.
        env: Environment variables.
        runtime_env: More of Ray's runtime environment (`pip`, …).
        job_id: Its id; Ray makes one without.

    Raises:
        ConfigError: The folder is none, or too large.
        ClusterError: The cluster refused.
    """
    environment: dict[str, Any] = dict(runtime_env or {})
    if env:
        environment["env_vars"] = {**environment.get("env_vars", {}), **env}
    if working_dir is not None:
        environment["working_dir"] = _upload(dashboard, Path(working_dir))
    body: dict[str, Any] = {"entrypoint": entrypoint, "runtime_env": environment}
    if job_id:
        body["submission_id"] = job_id
    answer = json.loads(dashboard.request("POST", "/api/jobs/", json.dumps(body).encode()))
    return Job(dashboard, str(answer["submission_id"]))


def _upload(dashboard: Dashboard, folder: Path) -> str:
    data = _package(folder)
    name = f"_ray_pkg_{hashlib.sha256(data).hexdigest()[:16]}.zip"
    dashboard.request("PUT", f"/api/packages/gcs/{name}", data, content_type="application/octet-stream")
    return f"gcs://{name}"


def _package(folder: Path) -> bytes:
    """A folder as a zip that is the same to the byte for the same files."""
    if not folder.is_dir():
        raise ConfigError("there is no such folder", where=str(folder))
    buffer, size = io.BytesIO(), 0
    with storage_errors(folder, "read"), zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as package:
        for file in sorted(folder.rglob("*")):
            inside = file.relative_to(folder)
            if not file.is_file() or _LEFT_OUT.intersection(inside.parts):
                continue
            size += file.stat().st_size
            if size > _LARGEST_PACKAGE:
                raise ConfigError(
                    f"the folder has more than {_LARGEST_PACKAGE // 2**20} MiB", where=str(folder),
                    hint="Leave data out of it: read it from the warehouse or object storage instead",
                )  # fmt: skip
            entry = zipfile.ZipInfo(inside.as_posix())
            entry.external_attr = (file.stat().st_mode & 0xFFFF) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            package.writestr(entry, file.read_bytes())
    return buffer.getvalue()
