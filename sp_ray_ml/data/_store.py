"""Where a Parquet warehouse keeps its files: a folder here, or a URL of an object store, behind the same few verbs."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.fs as pafs

from sp_ray_ml import storage
from sp_ray_ml._remote import check_url, create, filesystem, is_remote, join, remote_errors
from sp_ray_ml.errors import StorageError
from sp_ray_ml.storage import Lock, storage_errors

__all__ = ["LocalStore", "RemoteStore", "Store", "store_at"]

_LOCK = ".lock"
_COPY_BYTES = 16 << 20


class Store(ABC):
    """Files below a folder. Paths are relative to it, with slashes.

    Attributes:
        url: What messages call it.
    """

    is_local: ClassVar[bool]
    url: str

    @abstractmethod
    def place(self, path: str) -> str:
        """A path as messages call it."""

    @abstractmethod
    def full(self, path: str) -> str:
        """A path in the file system `arrow`."""

    @property
    @abstractmethod
    def arrow(self) -> pafs.FileSystem:
        """The file system, for Arrow."""

    @abstractmethod
    def errors(self, path: str, doing: str = "write") -> AbstractContextManager[None]:
        """Errors inside become `StorageError`s that name the path."""

    @abstractmethod
    def children(self, folder: str = "") -> dict[str, bool]:
        """What lies directly in a folder, and whether it is a folder itself; nothing if there is no such folder."""

    @abstractmethod
    def find(self, folder: str) -> dict[str, str]:
        """All files below a folder, by their path below it in order, and text that changes when one is written anew."""

    @abstractmethod
    def mark(self, path: str) -> str:
        """As of `find`, of one file; empty if it is not there."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """A file's content."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Make a file at once; False if it is there already."""

    @abstractmethod
    def remove(self, folder: str, paths: Iterable[str]) -> None:
        """Remove files below a folder, and folders that become empty; what cannot be is left."""

    @abstractmethod
    def lock(self, folder: str, what: str) -> AbstractContextManager[Any]:
        """Make a folder and keep other writers out, where that is possible before the end."""

    @abstractmethod
    def sink(self, path: str) -> AbstractContextManager[Any]:
        """A file that is being written, with `write` and `tell`; it appears whole when the block ends, or not at all."""

    def take(self, store: Store, file: str, path: str) -> None:
        """Have a file of another store here, too; one that nobody writes to again."""
        with store.errors(file, "read"), store.arrow.open_input_stream(store.full(file)) as source:
            with self.sink(path) as sink:
                while content := source.read(_COPY_BYTES):
                    sink.write(content)


class LocalStore(Store):
    """A folder of this machine."""

    is_local = True

    def __init__(self, path: Path) -> None:
        self.path, self.url = path, str(path)

    def place(self, path: str) -> str:
        return str(self.path / path)

    full = place

    @property
    def arrow(self) -> pafs.FileSystem:
        return pafs.LocalFileSystem()

    def errors(self, path: str, doing: str = "write") -> AbstractContextManager[None]:
        return storage_errors(self.path / path, doing)

    def children(self, folder: str = "") -> dict[str, bool]:
        with self.errors(folder, "read"):
            try:
                return {entry.name: entry.is_dir() for entry in os.scandir(self.path / folder)}
            except (FileNotFoundError, NotADirectoryError):
                return {}

    def find(self, folder: str) -> dict[str, str]:
        top = self.path / folder
        with self.errors(folder, "read"):
            return {
                path.relative_to(top).as_posix(): self._mark(path)
                for path in sorted(top.rglob("*"))
                if path.is_file()
            }

    def _mark(self, path: Path) -> str:
        stat = path.stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"

    def mark(self, path: str) -> str:
        with self.errors(path, "read"):
            return self._mark(self.path / path) if (self.path / path).is_file() else ""

    def read(self, path: str) -> bytes:
        with self.errors(path, "read"):
            return (self.path / path).read_bytes()

    def take(self, store: Store, file: str, path: str) -> None:
        target = self.path / path
        if isinstance(store, LocalStore):
            with contextlib.suppress(OSError):  # another disk, or one without links: copied below
                target.parent.mkdir(exist_ok=True)
                target.hardlink_to(store.path / file)
                _sync(target.parent)
                return
        super().take(store, file, path)

    def create(self, path: str, data: bytes) -> bool:
        target = self.path / path
        with self.errors(path):
            target.parent.mkdir(exist_ok=True)
        if target.exists():  # whoever asks has the lock
            return False
        storage.write_bytes(target, data)
        _sync(target.parent)
        return True

    def remove(self, folder: str, paths: Iterable[str]) -> None:
        top = self.path / folder
        with contextlib.suppress(OSError):
            for path in paths:
                file = top / path
                file.unlink(missing_ok=True)
                while (file := file.parent) != top and top in file.parents and not any(file.iterdir()):
                    file.rmdir()

    @contextmanager
    def lock(self, folder: str, what: str) -> Iterator[None]:
        top = self.path / folder
        with self.errors(folder):
            top.mkdir(parents=True, exist_ok=True)
        with Lock(top / _LOCK, what):
            with contextlib.suppress(OSError):  # of writers that were killed; what stays is not read
                for scratch in top.rglob(".*.tmp"):
                    scratch.unlink(missing_ok=True)
            yield

    @contextmanager
    def sink(self, path: str) -> Iterator[Any]:
        target = self.path / path
        scratch = target.with_name(f".{target.name}.tmp")
        with self.errors(path):
            target.parent.mkdir(exist_ok=True)
            try:
                with pa.OSFile(str(scratch), "wb") as file:
                    yield file
                _sync(scratch)
                scratch.rename(target)
                _sync(target.parent)
            except BaseException:
                scratch.unlink(missing_ok=True)
                raise


class RemoteStore(Store):
    """A URL of any fsspec file system. It pickles as the URL."""

    is_local = False

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        check_url(self.url)

    @property
    def _root(self) -> str:
        return filesystem(self.url)[1]

    @property
    def fs(self) -> Any:
        """fsspec's; it keeps one for each process."""
        return filesystem(self.url)[0]

    def place(self, path: str) -> str:
        return join(self.url, path) if path else self.url

    def full(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    @property
    def arrow(self) -> pafs.FileSystem:
        return pafs.PyFileSystem(_Handler(self.fs))

    def errors(self, path: str, doing: str = "write") -> AbstractContextManager[None]:
        return remote_errors(self.place(path), doing)

    def children(self, folder: str = "") -> dict[str, bool]:
        with self.errors(folder, "read"):
            try:
                entries = self.fs.ls(self.full(folder), detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
        found = {
            entry["name"].rstrip("/").rpartition("/")[2]: entry["type"] == "directory" for entry in entries
        }
        return {name: is_folder for name, is_folder in found.items() if name}

    def find(self, folder: str) -> dict[str, str]:
        top = f"{self.full(folder)}/"
        with self.errors(folder, "read"):
            found = self.fs.find(self.full(folder), detail=True)
        return {
            path.lstrip("/").removeprefix(top.lstrip("/")): _mark(info)
            for path, info in sorted(found.items())
            if info["type"] == "file"
        }

    def mark(self, path: str) -> str:
        with self.errors(path, "read"):
            try:
                return _mark(self.fs.info(self.full(path)))
            except FileNotFoundError:
                return ""

    def read(self, path: str) -> bytes:
        with self.errors(path, "read"):
            return bytes(self.fs.cat_file(self.full(path)))

    def create(self, path: str, data: bytes) -> bool:
        return create(self.place(path), data)

    def remove(self, folder: str, paths: Iterable[str]) -> None:
        for path in paths:
            # What stays is named by no manifest, and tried again by the next write.
            with contextlib.suppress(OSError), self.errors(folder, "remove"):
                self.fs.rm_file(self.full(f"{folder}/{path}" if folder else path))

    def lock(self, folder: str, what: str) -> AbstractContextManager[Any]:
        return nullcontext((folder, what))  # who is first is known at the commit

    @contextmanager
    def sink(self, path: str) -> Iterator[Any]:
        from fsspec.spec import AbstractBufferedFile

        with self.errors(path):
            file = self.fs.open(self.full(path), "wb")
            try:
                yield file
            except BaseException:
                if isinstance(file, AbstractBufferedFile):
                    file.closed = True  # closing it would make an object of what there is of it
                    with contextlib.suppress(StorageError), self.errors(path):
                        file.discard()
                raise
            file.close()


class _Handler(pafs.FSSpecHandler):  # type: ignore[misc]  # it has no types
    """fsspec for Arrow, which knows itself which bytes it needs: nothing is read ahead."""

    def open_input_file(self, path: str) -> Any:
        return pa.PythonFile(self.fs.open(path, mode="rb", cache_type="none"), mode="r")


def _mark(info: dict[str, Any]) -> str:
    changed = next(
        (info[key] for key in ("ETag", "etag", "generation", "mtime", "created") if key in info), ""
    )
    return f"{info['size']} {changed}"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def store_at(url: str | os.PathLike[str]) -> Store:
    """The store at a path or URL."""
    text = os.fspath(url)
    if is_remote(text):
        return RemoteStore(text)
    return LocalStore(Path(text.removeprefix("file://")).expanduser())
