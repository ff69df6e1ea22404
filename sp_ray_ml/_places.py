"""Folders of this machine that are kept at a URL too: where that is, and how workers on other nodes get at them.

Where Ray's workers are on other nodes there is no disk that they share with this process. What they are to read is
shared by way of the URL: sent there by this process, and copied by each node before it is mapped.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sp_ray_ml._remote import join
from sp_ray_ml._transfer import copy_of, upload_folder
from sp_ray_ml.storage import remove, write_text

__all__ = ["Home", "adopt", "forget", "here", "homes", "is_shared", "keep_at", "share", "url_of"]

SHARED = "shared"


@dataclass(frozen=True)
class Home:
    """A folder of one machine and the URL at which it is kept; `key` tells whether another process sees the folder."""

    folder: str
    url: str
    key: str


_own: dict[str, Home] = {}
_given: dict[str, Home] = {}


def keep_at(folder: Path, url: str) -> None:
    """Say that a folder is kept at a URL from now on."""
    _own[str(folder)] = Home(str(folder), url, uuid.uuid4().hex)


def forget(folder: Path) -> None:
    """Say that it is so no more."""
    _own.pop(str(folder), None)


def homes() -> list[Home]:
    """Such folders that workers on other nodes do not see, for `adopt` in a worker."""
    return list(_own.values()) if os.environ.get("RAY_ADDRESS") else []


def adopt(given: Iterable[Home]) -> None:
    """Know the folders of the process that gave work to this worker."""
    _given.update({home.folder: home for home in given})


def url_of(folder: Path) -> str | None:
    """The URL for what workers on other nodes read and write of a folder; None where all is on this machine."""
    found = _find(homes(), folder)
    return None if found is None else join(found[0].url, found[1])


def share(folder: Path) -> None:
    """Let workers on other nodes read a folder, which is complete; nothing is done where there are none.

    Raises:
        StorageError: It could not be sent.
    """
    found = _find(homes(), folder)
    if found is not None:
        home, path = found
        remove(folder / f".{SHARED}")  # that of an earlier start would make it another content
        upload_folder(folder, join(home.url, path, SHARED))
        write_text(folder / f".{SHARED}", home.key)


def here(folder: Path) -> Path:
    """A folder that was shared, as this process sees it: itself, or this node's copy of it.

    Raises:
        StorageError: It could not be copied.
    """
    found = _find(_given.values(), folder)
    if found is None:
        return folder
    home, path = found
    try:
        seen = (folder / f".{SHARED}").read_text(encoding="utf-8") == home.key
    except OSError:
        seen = False
    return folder if seen else copy_of(join(home.url, path, SHARED))


def is_shared(folder: Path) -> bool:
    """Whether a folder was sent for other nodes, and so need not be sent with what is around it."""
    return (folder / f".{SHARED}").exists()


def _find(known: Iterable[Home], folder: Path) -> tuple[Home, str] | None:
    place = folder.absolute()
    for home in known:
        if place.is_relative_to(home.folder):
            return home, place.relative_to(home.folder).as_posix()
    return None
