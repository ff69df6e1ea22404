"""The journal of a run at a URL, brought to this machine with the files that it names, for the sender to send.

What was brought is kept below `$SP_RAY_CACHE`, with the sender's note of what MLflow has: a later call brings and sends
what has come since.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from sp_ray_ml._appended import read_appended
from sp_ray_ml._claims import is_held
from sp_ray_ml._remote import filesystem, join, read_bytes, remote_errors
from sp_ray_ml._transfer import cache_folder, complete_name, copy_of, inside, read_file
from sp_ray_ml.storage import remove, storage_errors, write_bytes
from sp_ray_ml.tracking._state import JOURNAL, LOCK
from sp_ray_ml.tracking.journal import parse_entry

__all__ = ["bring_journal", "folder_of", "is_running"]

_FILES = {"artifact", "model"}
_MOST_PARENTS = 3


def folder_of(url: str) -> Path:
    """The folder of this machine for the journal of the run at a URL."""
    key = hashlib.sha256(url.encode()).hexdigest()[:16]
    folder = cache_folder() / "tracking" / key / url.rpartition("/")[2]
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def is_running(url: str) -> bool:
    """Whether a process works on the run at a URL, or on what it is a part of, as a night of `sp-ray predict` is."""
    places = [url]
    while len(places) < _MOST_PARENTS and "/" in places[-1].partition("://")[2]:
        places.append(places[-1].rpartition("/")[0])
    return any(is_held(place) for place in places if place.partition("://")[2].count("/"))


def bring_journal(url: str, folder: Path, *, running: bool) -> None:
    """Make the journal in a folder that of the run at a URL, as far as the files that it names are there.

    Args:
        url: The run's.
        folder: Of `folder_of`, locked.
        running: Whether files that are not there yet may still come: then the journal ends before the line that
            names one.

    Raises:
        StorageError: The store cannot be read.
    """
    there, file = _read(url), folder / JOURNAL
    here = file.read_bytes() if file.exists() else b""
    if not there.startswith(here):  # the run was started over
        for item in folder.iterdir():
            if item.name != LOCK:
                remove(item)
        here = b""
    end = len(here)
    for line in there[len(here) :].splitlines(keepends=True):
        record = parse_entry(line)
        if record and isinstance(record.get("path"), str):
            inside(
                folder, record["path"]
            )  # or the sender would send, or write, what is elsewhere on this machine
        named = record["path"] if record and record["kind"] in _FILES else None
        if named is not None and not _bring(url, str(named), folder) and running:
            break
        end += len(line)
    with storage_errors(file), file.open("ab") as opened:  # the sender knows a journal by its inode
        opened.write(there[len(here) : end])


def _read(url: str) -> bytes:
    return read_appended(join(url, "journal")) or read_bytes(join(url, JOURNAL)) or b""


def _bring(url: str, path: str, folder: Path) -> bool:
    """Have a file or folder of the run here; whether it is there."""
    target = inside(folder, path)
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        return target.exists()  # in a folder that was brought whole
    target.parent.mkdir(parents=True, exist_ok=True)
    parts = path.split("/")
    if parts[0] == "steps" and len(parts) > 2:
        return _bring_of_step(join(url, *parts[:2]), "/".join(parts[2:]), target)
    fs, top = filesystem(url)
    with remote_errors(join(url, path), "read"):
        found = fs.find(f"{top}/{path}")
        for entry in found:
            file = inside(folder, entry.removeprefix(f"{top}/"))
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(file, fs.cat_file(entry))
    return bool(found)


def _bring_of_step(step: str, path: str, target: Path) -> bool:
    if complete_name(step) is None:
        return False
    content = read_file(step, path)
    if content is not None:
        write_bytes(target, content)
        return True
    copy = copy_of(step, path)
    remove(target)
    target.symlink_to(copy)
    return True
