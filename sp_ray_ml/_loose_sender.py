"""A run's files beside its steps on their way to its URL: journal and log as they grow, the others as they change."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from sp_ray_ml._appended import Appended
from sp_ray_ml._remote import filesystem, join, remote_errors
from sp_ray_ml._run_here import JOURNAL, LARGE, LOG, SENT_STATE, loose_files

__all__ = ["LooseSender"]


class LooseSender:
    """Sends them in an order in which each is there before what names it.

    Args:
        folder: The run's folder here.
        url: The run's.
        number: Of the claim, to which parts of what grows belong.
        journal: Bytes of the journal that are there already.
        check: Finds that the run is still held.
    """

    def __init__(self, folder: Path, url: str, number: int, journal: int, check: Callable[[], None]) -> None:
        self._folder, self._url, self._check = folder, url, check
        log = folder / LOG
        self._grown = [
            Appended(folder / JOURNAL, join(url, "journal"), number, journal),
            Appended(log, join(url, "log"), number, log.stat().st_size if log.exists() else 0),
        ]
        self._seen: dict[Path, tuple[int, int]] = {}
        self._turn = threading.Lock()

    def send(self) -> None:
        """Send what has grown or changed.

        Raises:
            LockedError: Another process took the run over.
            StorageError: It could not be sent.
        """
        with self._turn:
            # A file before the line of the journal that names it, the journal before the note of what MLflow has of it.
            state = self._folder / SENT_STATE
            noted = state.read_bytes() if state.exists() else None
            sizes = [file.size() for file in self._grown]
            for file in loose_files(self._folder):
                self._put(file)
            for grown, size in zip(self._grown, sizes, strict=True):
                grown.send(self._check, size)
            if noted is not None:
                self._put(state, noted)

    def put(self, file: Path) -> None:
        """Send one file, now.

        Raises:
            LockedError: Another process took the run over.
            StorageError: It could not be sent.
        """
        with self._turn:
            self._put(file)

    def _put(self, file: Path, content: bytes | None = None) -> None:
        try:
            stat = file.stat()
            seen = (stat.st_mtime_ns, stat.st_size)
            if self._seen.get(file) == seen:
                return
            if content is None and stat.st_size <= LARGE:
                content = file.read_bytes()
        except FileNotFoundError:
            return
        place = join(self._url, file.relative_to(self._folder).as_posix())
        fs, path = filesystem(place)
        self._check()
        with remote_errors(place):
            if content is None:
                fs.put_file(str(file), path)
            else:
                fs.pipe_file(path, content)
        self._seen[file] = seen
