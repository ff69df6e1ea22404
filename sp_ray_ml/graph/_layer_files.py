"""Where layer-wise inference keeps each layer's vectors: files that ranges of rows are written into, from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.graph._files import HEADER_BYTES, array_header, open_array
from sp_ray_ml.storage import storage_errors

__all__ = ["LayerFiles", "Widths"]

Widths = Mapping[str, int]
"""Of the vectors of each node type, after some step."""

_TYPE = np.dtype(np.float32)


class LayerFiles:
    """`<step>-<i>.npy`: the vectors of node type `i` after a step.

    Args:
        folder: To be found at this path by all that write and read.
        num_nodes: Of each type, in an order that all agree on.
    """

    def __init__(self, folder: Path, num_nodes: Mapping[str, int]) -> None:
        self.folder, self.num_nodes = folder, dict(num_nodes)
        self._places = {name: i for i, name in enumerate(num_nodes)}

    def file(self, step: int, name: str) -> Path:
        """The file of a type's vectors."""
        return self.folder / f"{step}-{self._places[name]}.npy"

    def begin(self, step: int, widths: Widths) -> None:
        """Make a step's files, empty of rows, of their full size."""
        for name, width in widths.items():
            count, file = self.num_nodes[name], self.file(step, name)
            with storage_errors(file), file.open("wb") as out:
                out.write(array_header(_TYPE, (count, width)))
                out.truncate(HEADER_BYTES + count * width * _TYPE.itemsize)

    def write(self, step: int, name: str, first: int, rows: NDArray[np.float32]) -> None:
        """Write rows into their places. The same rows may be written again: they are the same."""
        file = self.file(step, name)
        with storage_errors(file), file.open("r+b") as out:
            out.seek(HEADER_BYTES + first * rows.shape[1] * _TYPE.itemsize)
            out.write(np.ascontiguousarray(rows, _TYPE).data.cast("B") if rows.size else b"")

    def open(self, step: int, widths: Widths) -> dict[str, NDArray[np.float32]]:
        """A finished step's vectors, memory-mapped."""
        return {name: np.asarray(open_array(self.folder, self.file(step, name).stem)) for name in widths}

    def remove(self, step: int) -> None:
        """Remove a step's files."""
        for name in self.num_nodes:
            self.file(step, name).unlink(missing_ok=True)
