"""Ray jobs on a cluster, through the dashboard's HTTP API: submit, follow, read their logs. No Ray is needed here."""

from __future__ import annotations

import codecs
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from sp_ray_ml._names import near_match
from sp_ray_ml.cluster._job_log import GrowingLog
from sp_ray_ml.cluster._working_dir import Package, folder_package, upload
from sp_ray_ml.errors import ClusterError, ClusterNotFoundError

__all__ = ["Dashboard", "Job", "follow", "list_jobs", "submit"]

_ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
_LOG_FOLLOWS = ", last available logs"
"""What follows in Ray's message on a job that failed is up to 20,000 characters of its log."""
_LINES_TOLD = 20
_JOBS_TOLD = 5


class Dashboard(Protocol):
    """Sends requests to a cluster's dashboard, however it is reached.

    Attributes:
        namespace: The cluster's namespace.
        name: The cluster's name.
    """

    namespace: str
    name: str

    def request(
        self, method: str, path: str, body: bytes | None = None, *, content_type: str = ..., timeout_s: float = ...,
    ) -> bytes:  # fmt: skip
        """Send one and return what it answers; an error where that is none of success."""
        ...

    def stream(self, path: str) -> Iterator[bytes]:
        """What a GET answers, piece by piece, after a request has found the way there."""
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

    def printed(self) -> Iterator[str]:
        """What it has printed so far, piece by piece, of any length."""
        self.info()  # which says where there is no such job
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        lines = io.IncrementalNewlineDecoder(decoder, translate=True)
        begun = False
        try:
            for piece in self._dashboard.stream(self._log(-1)):
                begun = True
                yield lines.decode(piece)
        except ClusterError:
            if begun:
                raise
            yield self.logs()  # it has no log yet, or is none any more: which is said then
        yield lines.decode(b"", final=True)

    def _log(self, lines: int) -> str:
        return f"/api/v0/logs/file?submission_id={quote(self.id, safe='')}&lines={lines}"

    def last_lines(self, count: int) -> str:
        """The end of what it has printed so far, of any length."""
        try:
            said = self._dashboard.request("GET", self._log(count)).decode(errors="replace")
        except ClusterError:  # it has no log yet, or is none any more: which is said then
            return "".join(self.logs().splitlines(keepends=True)[-count:])
        # A letter of which the end is not written yet comes with the next look.
        return said.replace("\r\n", "\n").replace("\r", "\n").rstrip("\N{REPLACEMENT CHARACTER}")

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
    log = GrowingLog()
    while True:
        ended = job.status in _ENDED  # asked before the log, so that the last lines are not missed
        if text := log.more(job.last_lines, tail):
            yield text
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
    working_dir: str | Path | Package | None = None,
    modules: Sequence[Package] = (),
    env: Mapping[str, str] | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    job_id: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Job:
    """Start a command on the head.

    Args:
        dashboard: The cluster's dashboard.
        entrypoint: The command line.
        working_dir: A folder here that the job starts in there; what `.gitignore` leaves out stays here.
        modules: What can be imported there.
        env: Environment variables.
        runtime_env: More of Ray's runtime environment (`pip`, …).
        job_id: Its id; Ray makes one without.
        metadata: What is said of it where jobs are listed.

    Raises:
        ConfigError: The folder is none, or too large. Nothing was sent.
        ClusterError: The cluster refused.
    """
    environment: dict[str, Any] = dict(runtime_env or {})
    if env:
        environment["env_vars"] = {**environment.get("env_vars", {}), **env}
    if working_dir is not None:
        folder = working_dir if isinstance(working_dir, Package) else folder_package(Path(working_dir))
        environment["working_dir"] = folder.uri
        upload(dashboard, folder)
    for package in modules:
        environment.setdefault("py_modules", []).append(package.uri)
        upload(dashboard, package)
    body: dict[str, Any] = {"entrypoint": entrypoint, "runtime_env": environment}
    if metadata:
        body["metadata"] = dict(metadata)
    if job_id:
        body["submission_id"] = job_id
    answer = json.loads(dashboard.request("POST", "/api/jobs/", json.dumps(body).encode()))
    return Job(dashboard, str(answer["submission_id"]))
