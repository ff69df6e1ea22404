"""A run's folder: locked while it runs, one subfolder a step, kept with the fingerprint of what made it."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from sp_ray_ml._claims import is_held
from sp_ray_ml._mirror import Mirror, hold
from sp_ray_ml._remote import filesystem, is_remote, join, read_bytes, remote_errors
from sp_ray_ml.config import fingerprint
from sp_ray_ml.errors import StorageError
from sp_ray_ml.storage import Lock, new_folder, read_json, remove, storage_errors, write_json

__all__ = [
    "Reporter",
    "RunFolder",
    "Step",
    "StepContext",
    "code_fingerprint",
    "hold_run",
    "list_runs",
    "read_run_file",
]

_AT_ONCE = 8


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
        path: The folder; made where it is missing. At a URL it is worked on in a folder of this machine.
        fresh: Start over: what earlier starts left is removed.

    Attributes:
        path: The folder on this machine.
        url: Where it is kept, if that is a URL.

    Raises:
        LockedError: Another process runs in this folder.
        StorageError: The folder cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], reporter: Reporter, *, fresh: bool = False) -> None:
        self.url = os.fspath(path) if is_remote(path) else None
        self.path = Path(path)
        self._mirror = None if self.url is None else Mirror(self.url, reporter.note)
        self.reporter = reporter
        self._fresh = fresh
        self.steps: list[Step] = []
        self.resumed = False
        self.info: dict[str, Any] = {}

    def __enter__(self) -> RunFolder:
        self._lock = self._mirror or Lock(self.path / ".lock", f"the run {self.path.name}")
        if self._mirror is None:
            with storage_errors(self.path, "make the run's folder"):
                self.path.mkdir(parents=True, exist_ok=True)
        self._lock.__enter__()
        try:
            self._begin()
        except BaseException as error:
            self._lock.__exit__(type(error), error)
            raise
        return self

    def _begin(self) -> None:
        if self._mirror is not None:
            self.path = self._mirror.path
            self._mirror.begin(fresh=self._fresh)
        elif self._fresh:
            for item in self.path.iterdir():
                if item.name != ".lock":
                    remove(item)
        for leftover in self.path.glob("steps/.*"):
            remove(leftover)
        self.resumed = (self.path / "run.json").exists()
        self.info = (
            read_json(self.path / "run.json") if self.resumed else {"id": uuid.uuid4().hex, "created": _now()}
        )
        self.remember(status="running", process=os.getpid())  # whoever may not write there learns it now

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
            if self._mirror is not None and self._mirror.waiting:
                self.reporter.progress(0, 0, f"{self.url} takes the rest")
            self._lock.__exit__(kind, error, trace)
            self._tell()

    def save(self, **values: Any) -> None:
        """Add to `run.json`, which `sp-ray get runs` reads."""
        self.info = {**self.info, **values, "updated": _now()}
        write_json(self.path / "run.json", self.info)

    def remember(self, **values: Any) -> None:
        """The same, where the run is kept before this returns: what comes next depends on it."""
        self.save(**values)
        if self._mirror is not None:
            self._mirror.put(self.path / "run.json")

    def _progress(self, done: float, total: float, text: str) -> None:
        if self._mirror is not None:
            self._mirror.raise_lost()
            self._tell()
        self.reporter.progress(done, total, text)

    def _tell(self) -> None:
        """Hand on, in this thread, what the background has to say."""
        while self._mirror is not None and self._mirror.notes:
            self.reporter.note(self._mirror.notes.popleft())

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
        if self._mirror is not None:
            self._tell()
            self._mirror.settle()
            if keep and self._mirror.bring_step(name, mark):
                self._say_changed(name)
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
        if self._mirror is not None:
            self._mirror.begin_scratch(scratch.name)
        with storage_errors(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as output:
            with storage_errors(output):
                summary = work(StepContext(output, scratch, self._progress, self.reporter.note))
            seconds = time.perf_counter() - began
            done = Step(name, folder, mark, summary, round(seconds, 3), finished=_now())
            record = {
                key: getattr(done, key) for key in ("name", "fingerprint", "summary", "seconds", "finished")
            }
            write_json(output / "_step.json", record)
        if self._mirror is not None:
            self._mirror.end_scratch(name)
        remove(scratch)
        self.steps.append(done)
        self.reporter.step_finished(done)
        return done

    def _say_changed(self, name: str) -> None:
        if all(step.kept for step in self.steps):  # what follows from it goes without saying
            self.reporter.note(f"{name}: its input, settings or code changed; from here on all is made anew")

    def _kept(self, name: str, folder: Path, mark: str) -> Step | None:
        file = folder / "_step.json"
        if not file.exists():
            return None
        try:
            record = read_json(file)
        except StorageError:
            return None
        if record["fingerprint"] != mark:
            if self._mirror is None:
                self._say_changed(name)
            return None
        return Step(name, folder, mark, record["summary"], record["seconds"], True, record["finished"])


def hold_run(folder: Path | str, reporter: Reporter) -> contextlib.AbstractContextManager[object]:
    """Keep runs out of a folder, given by its path or its URL, without one of one's own.

    Raises:
        LockedError: A run is under way.
    """
    if isinstance(folder, str):
        return hold(folder, reporter.note)
    return Lock(folder / ".lock", f"the run {folder.name}", shared=True)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read_run_file(folder: Path | str, name: str) -> bytes | None:
    """A file of a run's folder, given by its path or its URL, such as `run.json`; None where it is not there.

    Raises:
        StorageError: It cannot be read.
    """
    if isinstance(folder, Path):
        with storage_errors(folder / name, "read"):
            return (folder / name).read_bytes() if (folder / name).exists() else None
    return read_bytes(join(folder, name))


def list_runs(runs: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What `run.json` of each run below a folder or a URL says, the newest first; one whose process died is `killed`.

    Raises:
        StorageError: The store at the URL cannot be read.
    """
    if is_remote(runs):
        found = _runs_at(os.fspath(runs))
    else:
        files = list(Path(runs).glob("*/run.json"))
        found = [_info(file.parent.name, str(file.parent), file.read_bytes) for file in files]
        for info in found:
            if info.get("status") == "running" and not _is_locked(Path(info["path"], ".lock")):
                info["status"] = "killed"
    return sorted(found, key=lambda info: str(info.get("updated", "")), reverse=True)


def _runs_at(url: str) -> list[dict[str, Any]]:
    fs, top = filesystem(url)
    with remote_errors(url, "read"):
        try:
            names = [entry.rstrip("/").rpartition("/")[2] for entry in fs.ls(top, detail=False)]
        except FileNotFoundError as error:
            if "bucket does not exist" in str(error):
                raise
            return []

    def one(name: str) -> dict[str, Any] | None:
        place = join(url, name)
        content = read_run_file(place, "run.json")
        if content is None:
            return None
        info = _info(name, place, lambda: content)
        if info.get("status") == "running" and not is_held(place):
            info["status"] = "killed"
        return info

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [info for info in pool.map(one, names) if info is not None]


def _info(name: str, path: str, read: Callable[[], bytes]) -> dict[str, Any]:
    try:
        info = json.loads(read())
    except (OSError, ValueError):
        info = None
    if not isinstance(info, dict):
        info = {"status": "damaged"}
    return {"name": name, "path": path, **info}


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
