"""A step's scratch folder on its way to the run's URL, as it was at one moment, while the step goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from sp_ray_ml._pinned import State, pin, stat_of
from sp_ray_ml._remote import filesystem, join, remote_errors
from sp_ray_ml._sent import Sent
from sp_ray_ml._transfer import Sums, upload_folder
from sp_ray_ml.storage import remove

__all__ = ["ScratchSender"]

_PINNED = ".pinned"


class ScratchSender:
    """Pins what has changed, sends it, and then rests for as long as that took.

    Args:
        folder: The run's folder here.
        url: The run's.
        sent: What is there.
        check: Finds that the run is still held.

    Attributes:
        rested: Until when it rests, by the monotonic clock.
    """

    def __init__(self, folder: Path, url: str, sent: Sent, check: Callable[[], None]) -> None:
        self._folder, self._url, self._sent, self._check = folder, url, sent, check
        self._name: str | None = None
        self._seen: State = {}
        self._looked: State = {}
        self._sums: Sums = {}
        self.rested = 0.0
        remove(folder / _PINNED)

    def begin(self, name: str) -> None:
        """Send what becomes of this folder from now on."""
        self._seen, self._looked, self.rested = {}, {}, 0.0
        self._name = name

    def end(self) -> None:
        """Send no more of it."""
        self._name = None

    def drop(self, step: str) -> None:
        """Remove the scratch folders of a step that are there."""
        fs, top = filesystem(self._url)
        with remote_errors(self._url, "remove"):
            try:
                entries = fs.ls(f"{top}/scratch", detail=False)
            except FileNotFoundError:
                return
            for entry in entries:
                if entry.rstrip("/").rpartition("/")[2].rpartition("-")[0] == step:
                    fs.rm(entry, recursive=True)

    def send(self) -> None:
        """Send the folder where it has changed and there was rest enough.

        Raises:
            LockedError: Another process took the run over.
            StorageError: It could not be sent.
        """
        name, began = self._name, time.monotonic()
        if name is None or began < self.rested:
            return
        pinned = self._folder / _PINNED
        state = pin(self._folder / "scratch" / name, pinned, self._looked)
        self._looked = state
        if not state or state == self._seen:
            return

        def check() -> None:
            now = {file: stat_of(pinned / file) for file in state}
            if self._name != name or any(
                stat is None or stat[1:] != state[file][1:] for file, stat in now.items()
            ):
                raise _ChangedError
            self._check()

        try:
            done = upload_folder(
                pinned,
                join(self._url, "scratch", name),
                check=check,
                sums=self._sums,
                anew=self._sent.is_damaged(f"scratch/{name}"),
            )
        except _ChangedError:
            return
        finally:
            remove(pinned)
        self._sent.remember(f"scratch/{name}", done)
        self._seen = state
        self.rested = 2 * time.monotonic() - began  # half of the time the network is others'
        known = {(stat[0], stat[1], stat[2]) for stat in state.values()}
        self._sums = {key: digest for key, digest in self._sums.items() if key in known}


class _ChangedError(Exception):
    """The scratch folder went on while it was sent: its next state is sent in place of this one."""
