"""`Room`: how much accumulators that are there side by side may hold in memory, and the file for the rest."""

from __future__ import annotations

import tempfile
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Kept", "Room"]

_WHOLE = 8
"""Accumulators that each may hold the most; of more, each holds less, so that all together hold no more than these."""
_FEWEST = 1 << 12  # rows, below which a run of them is not worth its place in the file
_ALIGNED = 64  # bytes


class Room:
    """Shared by accumulators of one process.

    Args:
        holders: How many of them there are.
    """

    def __init__(self, holders: int = 1) -> None:
        self.holders = holders
        self._spill = _Spill()

    def among(self, count: int) -> Room:
        """The same for so many times as many, with the same file."""
        found = Room(self.holders * count)
        found._spill = self._spill
        return found

    def rows(self, most: int) -> int:
        """How many rows one of them may hold, of at most so many."""
        return max(min(most, _FEWEST), min(most, _WHOLE * most // self.holders))

    def keep(self, array: npt.NDArray[Any]) -> Kept:
        """Move an array to the file."""
        return Kept(self._spill, self._spill.put(array), array.dtype, len(array))

    def __getstate__(self) -> dict[str, Any]:
        return {"holders": self.holders}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.holders, self._spill = state["holders"], _Spill()


class Kept:
    """An array `[rows]` in the file, which is there as long as one of these."""

    def __init__(self, spill: _Spill, start: int, kind: np.dtype[Any], rows: int) -> None:
        self._spill, self._start, self._kind, self._rows = spill, start, kind, rows

    def array(self) -> npt.NDArray[Any]:
        """The array, memory-mapped."""
        return self._spill.get(self._start, self._rows * self._kind.itemsize).view(self._kind)


class _Spill:
    """One file without a name for all: a file each, some hundreds of classes and segments would have too many open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: Any = None
        self._end = 0
        self._mapped = np.zeros(0, np.uint8)

    def put(self, array: npt.NDArray[Any]) -> int:
        """Write it at the end, and return where it is."""
        with self._lock:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="sp-ray-scores-")  # noqa: SIM115  goes with this object
            start = -(-self._end // _ALIGNED) * _ALIGNED
            self._file.seek(start)
            array.tofile(self._file)
            self._end = start + array.nbytes
        return start

    def get(self, start: int, size: int) -> npt.NDArray[np.uint8]:
        """So many bytes from there."""
        with self._lock:
            if start + size > len(self._mapped):
                self._mapped = np.memmap(self._file, np.uint8, "r", shape=(self._end,))
            return self._mapped[start : start + size]
