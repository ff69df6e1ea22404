"""Which folders at a run's URL are as they are here: kept beside the run, so that the next start sends and gets less."""

from __future__ import annotations

import threading
from pathlib import Path

from sp_ray_ml.storage import read_json, write_json

__all__ = ["Sent"]

_FILE = ".sent.json"


class Sent:
    """Steps and scratch folders by the names of their markers at the URL, and those that are damaged there.

    Args:
        folder: The run's folder here.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / _FILE
        self._names: dict[str, str] = read_json(self._file) if self._file.exists() else {}
        self._damaged: set[str] = set()
        self._turn = threading.Lock()

    def is_here(self, what: str, name: str | None) -> bool:
        """Whether the folder here is the one there whose marker has this name."""
        return self._names.get(what) == name

    def remember(self, what: str, name: str) -> None:
        """The folder is there as it is here, with a marker of this name."""
        with self._turn:
            self._names[what] = name
            write_json(self._file, self._names)
            self._damaged.discard(what)

    def is_damaged(self, what: str) -> bool:
        """Whether what is there has to be sent anew as a whole."""
        return what in self._damaged

    def mark_damaged(self, what: str) -> None:
        """What is there cannot be used."""
        self._damaged.add(what)
