"""The journal of a run: every record one JSON line, appended with one write, sent to MLflow later.

A process killed in the middle of a write leaves at most one torn last line, which readers skip.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp_ray_ml.errors import StorageError
from sp_ray_ml.storage import storage_errors

__all__ = [
    "Entry",
    "Journal",
    "count_entries",
    "finish_of",
    "first_entry",
    "last_opening",
    "parse_entry",
    "read_entries",
]

_TAIL = 1 << 16


@dataclass(frozen=True)
class Entry:
    """One line of a journal: its record (None for a torn or foreign line) and where it lies, in bytes."""

    record: dict[str, Any] | None
    start: int
    end: int


class Journal:
    """A journal that is open for appending, safe to use from several threads.

    Args:
        path: The file; made if there is none.

    Raises:
        StorageError: It cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        with storage_errors(self.path):
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._file = os.open(self.path, flags, 0o666)
        size = os.fstat(self._file).st_size
        self._torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"

    def append(self, kind: str, **values: Any) -> None:
        """Append a record of this kind with the time (milliseconds since 1970).

        Raises:
            StorageError: It could not be written, on a full disk for example; earlier records are whole.
        """
        record = {"kind": kind, "time": time.time_ns() // 1_000_000, **values}
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        with self._lock, storage_errors(self.path):
            data = b"\n" + line if self._torn else line
            self._torn = True
            if os.write(self._file, data) != len(data):
                raise StorageError(
                    "cannot write: the disk is full", where=str(self.path), hint=f"df -h {self.path}"
                )
            self._torn = False

    def close(self) -> None:
        """Close the file; appending is over."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1


def read_entries(path: str | os.PathLike[str], start: int = 0) -> Iterator[Entry]:
    """The whole lines from byte `start` on; a line that is still without its end is left for later.

    Raises:
        StorageError: There is no such file, or it cannot be read.
    """
    with storage_errors(path, "read"), Path(path).open("rb") as file:
        file.seek(start)
        position = start
        for line in file:
            if not line.endswith(b"\n"):
                return
            end = position + len(line)
            yield Entry(parse_entry(line), position, end)
            position = end


def count_entries(path: str | os.PathLike[str], start: int = 0) -> int:
    """How many records there are from byte `start` on."""
    if not Path(path).exists():
        return 0
    return sum(entry.record is not None for entry in read_entries(path, start))


def first_entry(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The record that opened the run first."""
    return next((entry.record for entry in read_entries(path) if entry.record), {})


def finish_of(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The record that finished the run; None if there is none since it was last opened."""
    record = _last(path, ("open", "finish"))
    return record if record and record["kind"] == "finish" else None


def last_opening(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The record that opened the run last; empty for none."""
    return _last(path, ("open",)) or {}


def _last(path: str | os.PathLike[str], kinds: tuple[str, ...]) -> dict[str, Any] | None:
    """The last record of these kinds, looked for from the end."""
    with storage_errors(path, "read"), Path(path).open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        rest = b""
        while end > 0:
            begin = max(0, end - _TAIL)
            file.seek(begin)
            lines = (file.read(end - begin) + rest).split(b"\n")
            rest, whole = (lines[0], lines[1:]) if begin else (b"", lines)
            for line in reversed(whole):
                record = parse_entry(line)
                if record and record["kind"] in kinds:
                    return record
            end = begin
    return None


def parse_entry(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None for a torn or foreign one."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("kind"), str) else None


def finite(value: float) -> float | str:
    """A number as JSON has it: those that are not finite as text, which `float` reads back."""
    return value if -float("inf") < value < float("inf") else str(value)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as one level of dotted names and text; lists of plain values stay one value.

    `{"a": {"b": 1}, "c": [1, 2]}` becomes `{"a.b": "1", "c": "[1, 2]"}`.
    """
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            flat.update(flatten({str(i): item for i, item in enumerate(value)}, f"{name}."))
        elif isinstance(value, str):
            flat[name] = value
        elif value is None or isinstance(value, bool | Mapping | list | tuple):
            flat[name] = json.dumps(value, ensure_ascii=False, default=str)
        else:
            flat[name] = str(value)
    return flat
