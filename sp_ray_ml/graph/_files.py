"""The files of a graph: arrays written as a stream, a manifest with their sizes and checksums, and how they open."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sp_ray_ml.errors import DataError, StorageError
from sp_ray_ml.storage import read_json, storage_errors, write_json

__all__ = [
    "FORMAT",
    "HEADER_BYTES",
    "ArrayFile",
    "GraphFiles",
    "array_header",
    "open_array",
    "read_manifest",
    "verify_files",
]

FORMAT = 2
_MANIFEST = "graph.json"
HEADER_BYTES = 128
_PIECE = 16 << 20


def array_header(kind: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What a `.npy` file begins with, version 1.0 of the format, always of one length."""
    text = f"{{'descr': {kind.str!r}, 'fortran_order': False, 'shape': {shape}, }}"
    length = (HEADER_BYTES - 10).to_bytes(2, "little")
    return b"\x93NUMPY\x01\x00" + length + text.ljust(HEADER_BYTES - 11).encode() + b"\n"


class ArrayFile:
    """One `.npy` file whose rows come piece by piece; how many is known only in the end.

    Plain writes, not a memory map: what is written does not count as this process's memory.
    """

    def __init__(self, file: Path, dtype: DTypeLike, width: int | None = None) -> None:
        self.path, self.dtype, self.width = file, np.dtype(dtype), width
        self.rows = 0
        self._crc = 0
        with storage_errors(file):
            self._file = file.open("wb")
            self._file.write(bytes(HEADER_BYTES))

    def write(self, rows: NDArray[Any]) -> None:
        """Append rows."""
        rows = np.ascontiguousarray(rows, self.dtype)
        if not rows.size:
            return
        data = rows.data.cast("B")
        self._crc = zlib.crc32(data, self._crc)
        with storage_errors(self.path):
            self._file.write(data)
        self.rows += len(rows)

    def pieces(self) -> Iterator[NDArray[Any]]:
        """What was written so far, a piece at a time."""
        with storage_errors(self.path):
            self._file.flush()
        step = _PIECE // self.dtype.itemsize
        for begin in range(0, self.rows, step):
            count = min(step, self.rows - begin)
            with storage_errors(self.path, "read"):
                yield np.fromfile(
                    self.path, self.dtype, count, offset=HEADER_BYTES + begin * self.dtype.itemsize
                )

    def close(self) -> dict[str, int]:
        """Write the header; what the manifest says of the file."""
        shape = (self.rows,) if self.width is None else (self.rows, self.width)
        head = array_header(self.dtype, shape)
        with storage_errors(self.path), self._file:
            self._file.seek(0)
            self._file.write(head)
        size = HEADER_BYTES + self.rows * (1 if self.width is None else self.width) * self.dtype.itemsize
        return {"bytes": size, "crc32": zlib.crc32(head) ^ self._crc}


class GraphFiles:
    """A folder that becomes a graph when its manifest is written, last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, dict[str, int]] = {}

    def array(self, name: str, dtype: DTypeLike, width: int | None = None) -> ArrayFile:
        """Start `<name>.npy`; `keep` ends it."""
        return ArrayFile(self.folder / f"{name}.npy", dtype, width)

    def keep(self, *files: ArrayFile) -> None:
        """Close array files and take them up in the manifest."""
        for file in files:
            self.files[file.path.name] = file.close()

    def save(self, name: str, array: NDArray[Any]) -> None:
        """Write a whole array as `<name>.npy`."""
        file = self.array(name, array.dtype, array.shape[1] if array.ndim == 2 else None)
        rows = max(1, _PIECE // max(1, array.itemsize * math.prod(array.shape[1:])))
        for begin in range(0, len(array), rows):
            file.write(array[begin : begin + rows])
        file.rows = len(array)
        self.keep(file)

    def add(self, file: Path) -> None:
        """Take up a file that something else has written."""
        with storage_errors(file, "read"):
            self.files[file.name] = {"bytes": file.stat().st_size, "crc32": _checksum(file)}

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest."""
        write_json(self.folder / _MANIFEST, {"format": FORMAT, **manifest, "files": self.files})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a graph, after a look at whether each of its files is as long as it was.

    Raises:
        StorageError: No graph there, or a file of it is missing.
        DataError: A file is truncated, or a newer version wrote it.
    """
    manifest: dict[str, Any] = read_json(folder / _MANIFEST)
    written = manifest.get("format") if isinstance(manifest, dict) else None
    if written != FORMAT:
        newer = isinstance(written, int) and written > FORMAT
        raise DataError(
            f"written in format {written}, this version reads {FORMAT}",
            where=str(folder),
            hint="Install the version of sp_ray_ml that wrote it: pip install -U sp_ray_ml"
            if newer
            else "Make the graph again",
        )
    for name, about in manifest["files"].items():
        file = _inside(folder, name)
        with storage_errors(file, "read"):
            size = file.stat().st_size
        if size != about["bytes"]:
            raise DataError(
                f"damaged: it has {size:,} bytes, {about['bytes']:,} were written",
                where=str(file),
                hint="Make the graph again (a run: with --fresh)",
            )
    return manifest


def verify_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Read every file and compare its checksum.

    Raises:
        DataError: One has other content than was written.
    """
    for name, about in manifest["files"].items():
        file = _inside(folder, name)
        with storage_errors(file, "read"):
            same = _checksum(file) == about["crc32"]
        if not same:
            raise DataError(
                "damaged: its checksum is another than when it was written",
                where=str(file),
                hint="Make the graph again (a run: with --fresh)",
            )


def open_array(folder: Path, name: str) -> NDArray[Any]:
    """Open `<name>.npy`, memory-mapped.

    Raises:
        StorageError: It is not there.
        DataError: It is no array.
    """
    file = _inside(folder, f"{name}.npy")
    with storage_errors(file, "read"):
        try:
            return np.load(file, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
        except ValueError as error:
            raise DataError(f"damaged: {error}", where=str(file), hint="Make the graph again") from None


def _inside(folder: Path, name: str) -> Path:
    # A manifest is data: it names files of its own folder only.
    if Path(name).name != name:
        raise StorageError(f"damaged: it names the file {name!r}", where=str(folder / _MANIFEST))
    return folder / name


def _checksum(file: Path) -> int:
    """CRC-32 of an array's header XOR that of what follows; of other files as a whole."""
    with file.open("rb") as stream:
        head = zlib.crc32(stream.read(HEADER_BYTES)) if file.suffix == ".npy" else 0
        rest = 0
        while piece := stream.read(_PIECE):
            rest = zlib.crc32(piece, rest)
    return head ^ rest
