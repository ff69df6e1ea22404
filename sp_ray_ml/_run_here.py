"""The folder of this machine for a run at a URL, and what a start gets of the run before its first step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sp_ray_ml._appended import read_appended
from sp_ray_ml._remote import filesystem, join, remote_errors
from sp_ray_ml._transfer import cache_folder, inside
from sp_ray_ml.errors import LockedError
from sp_ray_ml.storage import Lock, remove, storage_errors, write_bytes

__all__ = [
    "JOURNAL",
    "LARGE",
    "LOG",
    "SENT_STATE",
    "bring_journal",
    "bring_loose",
    "clear",
    "loose_files",
    "own_folder",
    "value_of",
]

JOURNAL, LOG, SENT_STATE = "journal.jsonl", "run.log", "mlflow.json"
LARGE = 16 << 20
"""Bytes above which a file is not held in memory."""
_NOT_LOOSE = {"steps", "scratch", "predict", JOURNAL, LOG, SENT_STATE, "tracking.log"}


def own_folder(url: str, name: str) -> tuple[Path, Lock]:
    """A folder for a run that no other process of this machine uses, locked; the same one again where it is free."""
    key = hashlib.sha256(url.encode()).hexdigest()[:16]
    number = 0
    while True:
        folder = cache_folder() / "runs" / f"{key}-{number}" / name
        with storage_errors(folder, "make the run's folder"):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            return folder, Lock(folder / ".lock", f"the folder of the run {name}").__enter__()
        except LockedError:
            number += 1


def clear(url: str, folder: Path, *, fresh: bool) -> None:
    """Remove from the folder here what is not of the run that is there.

    Args:
        url: The run's.
        folder: The one here.
        fresh: Remove what is there, too, but for who works on it.

    Raises:
        StorageError: It could not be read, or removed.
    """
    fs, top = filesystem(url)
    known: list[str] = []
    with remote_errors(url, "read"), suppress(FileNotFoundError):
        known = [entry.rstrip("/") for entry in fs.ls(top, detail=False)]
    if fresh:
        with remote_errors(url, "remove"):
            for entry in known:
                if entry.rpartition("/")[2] != "lock":
                    fs.rm(entry, recursive=True)
    there = None
    if not fresh and f"{top}/run.json" in known:
        with remote_errors(join(url, "run.json"), "read"):
            there = fs.cat_file(f"{top}/run.json")
    file = folder / "run.json"
    here = file.read_bytes() if file.is_file() else b""
    # What is here may be of a run that was started over elsewhere.
    if there is None or value_of(there, "id") != value_of(here, "id"):
        for item in folder.iterdir():
            if item.name not in {".lock", ".claim"}:
                remove(item)


def bring_loose(url: str, folder: Path) -> None:
    """Have the run's small files here: config, `run.json`, reports.

    Raises:
        StorageError: They cannot be read.
    """
    fs, top = filesystem(url)
    with remote_errors(url, "read"):
        for entry in fs.ls(top, detail=False):
            name = entry.rstrip("/").rpartition("/")[2]
            if name in _NOT_LOOSE - {SENT_STATE} or name in {"lock", "journal", "log"}:
                continue
            for found, info in fs.find(entry, detail=True).items():
                file = inside(folder, found.removeprefix(f"{top}/"))
                file.parent.mkdir(parents=True, exist_ok=True)
                if info["size"] <= LARGE:
                    write_bytes(file, fs.cat_file(found))
                elif not file.is_file() or file.stat().st_size != info["size"]:
                    fs.get_file(found, str(file))


def bring_journal(url: str, folder: Path) -> int:
    """Have the journal here, and return how long it is there. A longer one here is that of an earlier start here.

    Raises:
        StorageError: It cannot be read.
    """
    there, file = read_appended(join(url, "journal")), folder / JOURNAL
    here = file.read_bytes() if file.exists() else b""
    if not here.startswith(there):
        write_bytes(file, there)
        remove(folder / SENT_STATE)
    elif here and not here.endswith(b"\n"):
        write_bytes(file, here + b"\n")
    return len(there)


def loose_files(folder: Path) -> Iterator[Path]:
    """The files of a run's folder that are sent one by one, as they are."""
    for item in sorted(folder.iterdir()):
        if item.name.startswith(".") or item.name in _NOT_LOOSE:
            continue
        yield from (
            file
            for file in ([item] if item.is_file() else sorted(item.rglob("*")))
            if file.is_file() and not (file.name.startswith(".") and file.name.endswith((".tmp", ".old")))
        )


def value_of(record: bytes, key: str) -> str:
    """A text in JSON; empty where it is not there, or the JSON is damaged."""
    try:
        return str(json.loads(record)[key])
    except (ValueError, KeyError, TypeError):
        return ""
