"""Rows as arrays: in memory, or written for workers to map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sp_ray_ml._places import here, share
from sp_ray_ml.storage import remove

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Arrays", "rows_of", "write_parts"]


@dataclass(frozen=True)
class Arrays:
    """All rows in memory, or mapped from files that several processes share.

    Attributes:
        x: float32 [rows, width].
        y: float32 [rows] or int64 [rows].
        weight: float32 [rows], or None.
    """

    x: NDArray[np.float32]
    y: NDArray[Any]
    weight: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.y)

    def save(self, folder: Path) -> None:
        """Write `x.npy`, `y.npy` and perhaps `weight.npy`; of what an earlier start left there, nothing stays."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("x", "y", "weight"):
            file = folder / f"{name}.npy"
            # Not written over: a worker of the earlier start may still have it mapped.
            file.unlink(missing_ok=True)
            if (values := getattr(self, name)) is not None:
                np.save(file, values)

    @classmethod
    def load(cls, folder: Path) -> Arrays:
        """Map what `save` wrote."""

        def open_(name: str) -> NDArray[Any]:
            # Copied where it is written to, which nobody does: torch would warn of what cannot be written to.
            return np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False)  # type: ignore[no-any-return]

        return cls(open_("x"), open_("y"), open_("weight") if (folder / "weight.npy").exists() else None)


def write_parts(parts: Mapping[str, Arrays], folder: Path) -> Path:
    """Write rows for workers to map, and return the folder's absolute path."""
    for part in ("train", "validation"):
        if (rows := parts.get(part)) is not None:
            rows.save(folder / part)
        else:
            remove(folder / part)  # an earlier start may have had such a part
    share(folder)
    return folder.resolve()


def rows_of(rows: Mapping[str, Arrays] | Path, part: str) -> Arrays | None:
    """The rows of a part, out of memory or of what `write_parts` wrote; None where there is none."""
    if isinstance(rows, Path):
        folder = here(rows) / part
        return Arrays.load(folder) if folder.exists() else None
    return rows.get(part)
