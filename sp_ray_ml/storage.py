"""Files that are whole or absent: atomic replacement, folders that appear at once, locks between processes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sp_ray_ml._remote import is_remote
from sp_ray_ml.errors import LockedError, StorageError

__all__ = [
    "Lock",
    "file_sha256",
    "local_copy",
    "new_folder",
    "read_json",
    "remove",
    "storage_errors",
    "write_bytes",
    "write_json",
    "write_text",
]

_REASONS = {
    "ENOSPC": "the disk is full",
    "EDQUOT": "the disk quota is used up",
    "EACCES": "permission denied",
    "EPERM": "permission denied",
    "EROFS": "the file system is read-only",
    "ENOENT": "no such file or folder",
    "ENOTDIR": "a part of the path is a file",
    "EEXIST": "a file is in the way",
    "EFBIG": "the file would be larger than the limit",
}


@contextmanager
def storage_errors(path: str | os.PathLike[str], doing: str = "write") -> Iterator[None]:
    """Turn an `OSError` inside into a `StorageError` that says what, where and why.

    Args:
        path: What is written or read, for the message.
        doing: The verb, for the message.
    """
    import errno

    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "")
        reason = _REASONS.get(code, error.strerror or str(error))
        hint = f"Free some room: df -h {os.fspath(path)}" if code in {"ENOSPC", "EDQUOT"} else None
        raise StorageError(f"cannot {doing}: {reason}", where=os.fspath(path), hint=hint) from error


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace a file at once: a reader sees the old content or the new, also after a crash or on a full disk.

    Raises:
        StorageError: It could not be written; the old file is untouched.
    """
    target = Path(path)
    with storage_errors(target):
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o666 & ~_umask())
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """As `write_bytes`: `value` as indented JSON."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read JSON.

    Raises:
        StorageError: The file is missing, unreadable or no JSON.
    """
    with storage_errors(path, "read"):
        text = Path(path).read_bytes()
    try:
        return json.loads(text)
    except ValueError as error:
        raise StorageError(f"damaged: not JSON ({error})", where=os.fspath(path)) from None


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, in hexadecimal.

    Raises:
        StorageError: It cannot be read.
    """
    with storage_errors(path, "read"), Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Make a folder that appears whole, in place of what was there, when the block ends without an error.

    Args:
        path: The folder, or a URL of an object store: it is then sent there in the end, and what an earlier try
            has sent of the same content is not sent again.

    Yields:
        A scratch folder beside it to write into.

    Raises:
        StorageError: It could not be written; what was there is untouched.
    """
    if is_remote(path):
        from sp_ray_ml._transfer import upload_folder

        with tempfile.TemporaryDirectory(prefix="sp_ray_ml-") as made:
            yield Path(made)
            upload_folder(Path(made), os.fspath(path))
        return
    target = Path(path)
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        scratch.chmod(0o777 & ~_umask())
        old = scratch.with_suffix(".old")
        try:
            yield scratch
            if target.exists():
                target.rename(old)
            scratch.rename(target)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            if old.exists() and not target.exists():
                old.rename(target)
            raise
        remove(old)


def local_copy(path: str | os.PathLike[str], below: str = "") -> Path:
    """The folder at a path, or a copy here of what is at a URL: one for each content, shared by all processes.

    Copies are kept in `$SP_RAY_CACHE`, `~/.cache/sp_ray_ml` without it.

    Args:
        path: The folder.
        below: A folder in it, which alone is meant.

    Raises:
        StorageError: Nothing complete is at the URL, or it is damaged.
    """
    if not is_remote(path):
        return Path(path, below)
    from sp_ray_ml._transfer import copy_of

    return copy_of(os.fspath(path), below)


def remove(path: str | os.PathLike[str]) -> None:
    """Remove a file or a folder with all in it; nothing happens if there is none."""
    target = Path(path)
    with storage_errors(target, "remove"):
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class Lock:
    """An exclusive lock on a folder, held by one process; the kernel frees it when the process dies.

    Args:
        path: The lock's file. It stays; only the hold on it counts.
        what: What is locked, for the message.
        shared: Of those who only read what is there: they keep out who would change it, not one another.

    Raises:
        LockedError: Another process holds it; the message says which.
    """

    def __init__(self, path: str | os.PathLike[str], what: str, *, shared: bool = False) -> None:
        self.path = Path(path)
        self.what = what
        self._shared = shared
        self._file: IO[str] | None = None

    def __enter__(self) -> Lock:
        with storage_errors(self.path, "lock"):
            file = self.path.open("a+", encoding="utf-8")
            try:
                self._take(file)
            except BaseException:
                with suppress(
                    OSError
                ):  # on a full disk the close fails, too; the file is closed all the same
                    file.close()
                raise
        self._file = file
        return self

    def _take(self, file: IO[str]) -> None:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            raise LockedError(
                f"{self.what} is in use by another process ({holder or 'unknown'})",
                where=str(self.path.parent),
                hint="Wait for it to end, or choose another name",
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()

    def __exit__(self, *error: object) -> None:
        if self._file:
            self._file.close()
            self._file = None
