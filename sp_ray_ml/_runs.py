"""A run's folder: locked while it runs, one subfolder a step, kept with the fingerprint of what made it."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from sp_ray_ml.config import fingerprint
from sp_ray_ml.errors import StorageError
from sp_ray_ml.storage import Lock, new_folder, read_json, remove, storage_errors, write_json

__all__ = ["Reporter", "RunFolder", "Step", "StepContext", "code_fingerprint", "list_runs"]


class Reporter(Protocol):
    """What a run tells while it works. The command line and notebooks show it, tests collect it."""

    def step_started(self, name: str) -> None:
        """A step begins to work."""

    def progress(self, done: float, total: float, text: str) -> None:
        """The step that works has done so much of its total."""

    def step_finished(self, step: Step) -> None:
        """A step has ended, or was kept."""

    def note(self, message: str) -> None:
        """Something that the user should know."""


@dataclass(frozen=True)
class Step:
    """What a step left.

    Attributes:
        name: Its name.
        folder: Where its output lies.
        fingerprint: Of its inputs, settings and code.
        summary: A few figures about it, as JSON.
        seconds: How long it took when it was run.
        kept: Whether its output was kept from an earlier start of the run.
        finished: When it ended (ISO 8601, UTC).
    """

    name: str
    folder: Path
    fingerprint: str
    summary: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    kept: bool = False
    finished: str = ""


@dataclass(frozen=True)
class StepContext:
    """What a step's function is given.

    Attributes:
        output: A new folder for its output; it becomes the step's when the function returns.
        scratch: A folder that outlives a crash, for a step that can resume in the middle.
        progress: `progress(done, total, text)`.
        note: Tells the user something.
    """

    output: Path
    scratch: Path
    progress: Callable[[float, float, str], None]
    note: Callable[[str], None]


def code_fingerprint(paths: Iterable[str]) -> str:
    """Digest of the package's modules below `paths` ("data", "pipeline.py"): new code makes a new output."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for name in sorted(paths):
        path = root / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


class RunFolder:
    """The folder `<runs>/<name>` of a run; a context manager that holds its lock.

    Args:
        path: The folder; made where it is missing.
        fresh: Start over: what earlier starts left is removed.

    Raises:
        LockedError: Another process runs in this folder.
        StorageError: The folder cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], reporter: Reporter, *, fresh: bool = False) -> None:
        self.path = Path(path)
        self.reporter = reporter
        self._fresh = fresh
        self.steps: list[Step] = []
        self.resumed = False
        self.info: dict[str, Any] = {}

    def __enter__(self) -> RunFolder:
        with storage_errors(self.path, "make the run's folder"):
            self.path.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self.path / ".lock", f"the run {self.path.name}")
        self._lock.__enter__()
        try:
            if self._fresh:
                for item in self.path.iterdir():
                    if item.name != ".lock":
                        remove(item)
            for leftover in self.path.glob("steps/.*"):
                remove(leftover)
            self.resumed = (self.path / "run.json").exists()
            self.info = (
                read_json(self.path / "run.json")
                if self.resumed
                else {"id": uuid.uuid4().hex, "created": _now()}
            )
            self.save(status="running", process=os.getpid())
        except BaseException:
            self._lock.__exit__()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = (
            "finished"
            if error is None
            else "interrupted"
            if isinstance(error, KeyboardInterrupt)
            else "failed"
        )
        try:
            self.save(
                status=status, error=None if error is None else f"{type(error).__name__}: {error}"[:1000]
            )
        except StorageError:
            if error is None:
                raise
        finally:
            self._lock.__exit__()

    def save(self, **values: Any) -> None:
        """Add to `run.json`, which `sp-ray get runs` reads."""
        self.info = {**self.info, **values, "updated": _now()}
        write_json(self.path / "run.json", self.info)

    def step(
        self,
        name: str,
        work: Callable[[StepContext], dict[str, Any]],
        *,
        inputs: Iterable[Any] = (),
        after: Iterable[Step] = (),
        code: Iterable[str] = (),
        keep: bool = True,
    ) -> Step:
        """Run a step, or keep its output where nothing that it depends on has changed.

        Args:
            name: Its name, also that of its folder.
            work: Writes the output and returns a summary.
            inputs: Settings and data fingerprints that it depends on.
            after: Steps whose output it reads.
            code: Parts of the package that it runs.
            keep: Whether an unchanged output may be kept; without, the step always runs.
        """
        mark = fingerprint(list(inputs), [step.fingerprint for step in after], code_fingerprint(code))
        folder, scratch = self.path / "steps" / name, self.path / "scratch" / f"{name}-{mark}"
        if keep and (kept := self._kept(name, folder, mark)):
            self.steps.append(kept)
            self.reporter.step_finished(kept)
            return kept
        self.reporter.step_started(name)
        self.save(step=name)
        began = time.perf_counter()
        for old in (self.path / "scratch").glob(f"{name}-*"):
            if old != scratch:
                remove(old)
        with storage_errors(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as output:
            with storage_errors(output):
                summary = work(StepContext(output, scratch, self.reporter.progress, self.reporter.note))
            seconds = time.perf_counter() - began
            done = Step(name, folder, mark, summary, round(seconds, 3), finished=_now())
            record = {
                key: getattr(done, key) for key in ("name", "fingerprint", "summary", "seconds", "finished")
            }
            write_json(output / "_step.json", record)
        remove(scratch)
        self.steps.append(done)
        self.reporter.step_finished(done)
        return done

    def _kept(self, name: str, folder: Path, mark: str) -> Step | None:
        file = folder / "_step.json"
        if not file.exists():
            return None
        try:
            record = read_json(file)
        except StorageError:
            return None
        if record["fingerprint"] != mark:
            if all(step.kept for step in self.steps):  # what follows from it goes without saying
                self.reporter.note(
                    f"{name}: its input, settings or code changed; from here on all is made anew"
                )
            return None
        return Step(name, folder, mark, record["summary"], record["seconds"], True, record["finished"])


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def list_runs(runs: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What `run.json` of each run below a folder says, the newest first; a run whose process died is `killed`."""
    found = []
    for file in Path(runs).glob("*/run.json"):
        try:
            info = json.loads(file.read_bytes())
        except (OSError, ValueError):
            info = {"status": "damaged"}
        if info.get("status") == "running" and not _is_locked(file.parent / ".lock"):
            info["status"] = "killed"
        found.append({"name": file.parent.name, "path": str(file.parent), **info})
    return sorted(found, key=lambda info: str(info.get("updated", "")), reverse=True)


def _is_locked(path: Path) -> bool:
    import fcntl

    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
