"""A folder as it is at one moment while others write in it: small files copied, large ones pinned by hard links."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sp_ray_ml._places import is_shared
from sp_ray_ml.storage import remove

__all__ = ["State", "pin", "stat_of"]

_SMALL = 1 << 20
_TRIES = 5
Stat = tuple[int, int, int]
State = dict[str, Stat]
"""Inode, size and time of the last change of each file."""


def stat_of(file: Path) -> Stat | None:
    """Inode, size and time of the last change; None where there is no such file."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _state(folder: Path) -> State:
    """The files below a folder; those that are being written under a name of their own are none yet."""
    found: State = {}
    waiting = [folder]
    while waiting:
        try:
            place = waiting.pop()
            entries = [] if is_shared(place) else list(os.scandir(place))
        except FileNotFoundError:
            continue
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith((".tmp", ".old")):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False) and (stat := stat_of(Path(entry.path))):
                found[Path(entry.path).relative_to(folder).as_posix()] = stat
    return found


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links
        shutil.copy2(file, target)


def pin(folder: Path, target: Path, looked: State) -> State:
    """Have a folder as it is at one moment: small files copied, large ones as second names of what they are.

    Args:
        folder: The folder.
        target: Where to.
        looked: What it was the last time: a file that has changed since, and is the same one, grows; it is copied.

    Returns:
        Its files; none where it changes faster than it can be looked at.
    """
    for _ in range(_TRIES):
        remove(target)
        before = _state(folder)
        try:
            for name, stat in before.items():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                known = looked.get(name, stat)
                if stat[1] <= _SMALL or (known != stat and known[0] == stat[0]):
                    shutil.copy2(folder / name, target / name)
                else:
                    _link(folder / name, target / name)
        except FileNotFoundError:
            continue
        if _state(folder) == before:
            return before
    remove(target)
    return {}
