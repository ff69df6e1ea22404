"""A run's folder at a URL, worked on in a folder of this machine: what is done here is sent there as it is done.

    URL/run.json, config.yaml, …   as they are here
    URL/steps/STEP/                sent when the step is complete, its marker last
    URL/scratch/STEP-MARK/         the step under way, as it was at one moment: what a start elsewhere goes on from
    URL/journal/, URL/log/         in parts that grow
    URL/lock/                      who works on it

Scratch folders hold, at any moment, what a process that is killed then can go on from; so any moment will do to send
them. They are looked at every few seconds, pinned by hard links, and sent in the background, one at a time, the newest
state as soon as the last one is there.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sp_ray_ml._claims import Claim
from sp_ray_ml._loose_sender import LooseSender
from sp_ray_ml._places import forget, keep_at
from sp_ray_ml._remote import join
from sp_ray_ml._run_here import bring_journal, bring_loose, clear, own_folder, value_of
from sp_ray_ml._scratch_sender import ScratchSender
from sp_ray_ml._secrets import redact
from sp_ray_ml._sent import Sent
from sp_ray_ml._transfer import DamagedError, complete_name, download_folder, read_file, upload_folder
from sp_ray_ml.errors import ConfigError, LockedError, StorageError
from sp_ray_ml.storage import storage_errors

__all__ = ["Mirror", "hold"]


def _every() -> float:
    """Seconds between two looks at what there is to send."""
    return float(os.environ.get("SP_RAY_RUN_EVERY", "3"))


class Mirror:
    """A context manager that holds the run, and its folder here.

    Args:
        url: The run's.
        note: Told what the user should know while it is waited for another process.

    Attributes:
        path: The folder of this machine; known in the block.

    Raises:
        ConfigError: The URL has a password in it.
        LockedError: Another process works on the run.
        StorageError: The store cannot be read or written.
    """

    def __init__(self, url: str, note: Callable[[str], None]) -> None:
        if redact(url) != url:
            raise ConfigError(
                "a password in the URL of runs would be shown wherever they are named",
                where=f"runs: {redact(url)}",
                hint=f"Give it as FSSPEC_{url.partition('://')[0].upper()}_PASSWORD, or in fsspec's configuration",
            )
        self.url = url.rstrip("/")
        self.notes: deque[str] = deque()
        self._note = note
        self._steps: deque[str] = deque()
        self._broken: BaseException | None = None
        self._begun = False
        self._trouble: dict[str, str] = {}
        self._stop = threading.Event()
        self._turn = threading.Lock()

    def __enter__(self) -> Mirror:
        name = self.url.rpartition("/")[2]
        self.path, self._lock = own_folder(self.url, name)
        try:
            self._claim = Claim(self.url, f"the run {name}", self.path, self._note).__enter__()
        except BaseException:
            self._lock.__exit__()
            raise
        self._threads = [
            threading.Thread(target=self._loop, args=(work,), name="sp_ray_ml-mirror", daemon=True)
            for work in (self._send_small, self._send_folders)
        ]
        return self

    def begin(self, *, fresh: bool) -> None:
        """Make the folder here what is there, as far as a start looks at it, and begin to send.

        Args:
            fresh: Remove what is there, and here.
        """
        clear(self.url, self.path, fresh=fresh)
        self._sent = Sent(self.path)
        self._scratch = ScratchSender(self.path, self.url, self._sent, self.check)
        journal = bring_journal(self.url, self.path)
        bring_loose(self.url, self.path)
        keep_at(self.path, self.url)
        self._loose = LooseSender(self.path, self.url, self._claim.number, journal, self.check)
        self._begun = True
        for thread in self._threads:
            thread.start()

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._stop.set()
        forget(self.path)
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        try:
            if self._begun:
                self._scratch.rested = 0.0
                self._send_folders()
                self._send_small()
        except LockedError:
            if kind is None:
                raise
        except StorageError as failed:
            if kind is None:
                failed.hint = f"{failed.hint or ''}\nWhat is done is kept here, and sent by the next start: {self.path}".strip()
                raise
            self.notes.append(f"not all is in {self.url}: {failed.message}; the next start here sends it")
        finally:
            try:
                self._claim.__exit__()
            except StorageError:
                if kind is None:
                    raise
            finally:
                self._lock.__exit__()

    @property
    def waiting(self) -> bool:
        """Whether a step is not there yet."""
        return bool(self._steps)

    # --- asked by the run's folder ----------------------------------------------------------------------------------

    def check(self) -> None:
        """Find that the run is still held, before a write that counts.

        Raises:
            LockedError: Another process took it over.
        """
        self._claim.check()

    def settle(self) -> None:
        """Stop, where what was done cannot be sent: what follows would be done for nothing.

        Raises:
            LockedError: Another process took the run over.
            StorageError: The store refuses what is sent, tried once more.
        """
        self._claim.raise_lost()
        if self._broken is not None:
            raise self._broken
        if self._trouble:
            self._send_folders()
            self._send_small()
            self._trouble = {}

    def raise_lost(self) -> None:
        """As `Claim.raise_lost`."""
        self._claim.raise_lost()

    def bring_step(self, name: str, mark: str) -> bool:
        """Have a complete step with this fingerprint here, where there is one; whether there is another one."""
        url, folder = join(self.url, "steps", name), self.path / "steps" / name
        record = None
        try:
            record = read_file(url, "_step.json")
            if record is not None and value_of(record, "fingerprint") == mark:
                here = self._sent.is_here(f"steps/{name}", complete_name(url))
                if not here or not (folder / "_step.json").is_file():
                    folder.parent.mkdir(parents=True, exist_ok=True)
                    self._sent.remember(f"steps/{name}", download_folder(url, folder))
                return False
        except DamagedError as damaged:
            self._tell_damaged(f"steps/{name}", damaged)
            record = None
        if (folder / "_step.json").is_file() and value_of(
            (folder / "_step.json").read_bytes(), "fingerprint"
        ) == mark:
            self._steps.append(name)  # done here by an earlier start, which did not get to send it
            return False
        return record is not None

    def begin_scratch(self, name: str) -> None:
        """Have a step's scratch folder here as it was sent last, and send what becomes of it from now on."""
        url, folder = join(self.url, "scratch", name), self.path / "scratch" / name
        try:
            there = complete_name(url)
            if there is not None and not (self._sent.is_here(f"scratch/{name}", there) and folder.is_dir()):
                folder.parent.mkdir(parents=True, exist_ok=True)
                self._sent.remember(f"scratch/{name}", download_folder(url, folder))
        except DamagedError as damaged:
            self._tell_damaged(f"scratch/{name}", damaged)
        self._scratch.begin(name)

    def end_scratch(self, step: str | None) -> None:
        """Send no more of the scratch folder; the step, where it is complete, and then remove the former there."""
        self._scratch.end()
        if step is not None:
            self._steps.append(step)

    # --- sending ----------------------------------------------------------------------------------------------------

    def _loop(self, send: Callable[[], None]) -> None:
        while not self._stop.wait(_every()):
            try:
                with storage_errors(self.path, "read"):
                    send()
            except LockedError:
                return
            except StorageError as failed:
                if self._trouble.get(send.__name__) != failed.message:
                    self.notes.append(
                        f"not all can be sent to {self.url}: {failed.message}; it is tried again"
                    )
                self._trouble[send.__name__] = failed.message
            except BaseException as error:
                self._broken = error  # for the run's own thread: nothing of it would be sent any more
                raise
            else:
                self._trouble.pop(send.__name__, None)

    def _send_folders(self) -> None:
        """Complete steps in their order, then the scratch folder where it has changed."""
        with self._turn:
            while self._steps:
                name = self._steps[0]
                done = upload_folder(
                    self.path / "steps" / name,
                    join(self.url, "steps", name),
                    check=self.check,
                    anew=self._sent.is_damaged(f"steps/{name}"),
                )
                self._sent.remember(f"steps/{name}", done)
                self._steps.popleft()
                self._scratch.drop(name)
            self._scratch.send()

    def _send_small(self) -> None:
        self._loose.send()

    def put(self, file: Path) -> None:
        """As `LooseSender.put`."""
        self._loose.put(file)

    def _tell_damaged(self, what: str, damaged: DamagedError) -> None:
        self._sent.mark_damaged(what)
        self.notes.append(f"{damaged.where}: {damaged.message}; what it was is made anew, and sent again")


@contextmanager
def hold(url: str, note: Callable[[str], None]) -> Iterator[None]:
    """Keep runs out of a run's folder at a URL, without working in it.

    Raises:
        LockedError: A run is under way.
    """
    name = url.rstrip("/").rpartition("/")[2]
    folder, lock = own_folder(url, name)
    try:
        with Claim(url, f"the run {name}", folder, note):
            yield
    finally:
        lock.__exit__()
