"""Files that are whole or absent, also after an error, a kill and on a full disk; locks that die with their holder."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sp_ray_ml.errors import LockedError, StorageError
from sp_ray_ml.storage import (
    Lock,
    new_folder,
    read_json,
    remove,
    storage_errors,
    write_bytes,
    write_json,
    write_text,
)

BIG = b"x" * 100_000


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file may grow beyond this: a write that would fails half-way, as on a full disk."""
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def content(folder: str | Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()
    }


# --- files ------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read() -> None:
    write_json("a.json", {"é": [1, 2.5, None]})
    assert read_json("a.json") == {"é": [1, 2.5, None]}
    assert Path("a.json").read_text(encoding="utf-8").endswith("}\n")
    write_text("b.txt", "ü")
    assert Path("b.txt").read_bytes() == "ü".encode()
    assert sorted(path.name for path in Path().iterdir()) == ["a.json", "b.txt"]


def test_failed_write_keeps_the_old_file_and_leaves_nothing() -> None:
    write_bytes("file", b"old")
    with (
        files_of_at_most(1_000),
        pytest.raises(StorageError, match="file: cannot write: the file would be larger"),
    ):
        write_bytes("file", BIG)
    assert content(".") == {"file": b"old"}
    with pytest.raises(TypeError):
        write_json("file", {"a": object()})
    assert content(".") == {"file": b"old"}


def test_a_file_is_readable_by_whom_the_umask_lets() -> None:
    before = os.umask(0o027)
    try:
        write_bytes("file", b"")
        with new_folder("folder"):
            pass
    finally:
        os.umask(before)
    assert Path("file").stat().st_mode & 0o777 == 0o640
    assert Path("folder").stat().st_mode & 0o777 == 0o750


def test_a_reader_sees_the_old_file_or_the_new_one() -> None:
    write_bytes("file", b"old")
    with Path("file").open("rb") as reader:
        write_bytes("file", b"new")
        assert reader.read() == b"old"
    assert Path("file").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("path", "reason"),
    [("no/such/file", "no such file or folder"), ("plain/file", "a part of the path is a file")],
)
def test_place_that_cannot_be_written_is_named(path: str, reason: str) -> None:
    Path("plain").write_text("")
    with pytest.raises(StorageError, match=f"{path}: cannot write: {reason}"):
        write_bytes(path, b"")


def test_json_that_is_missing_or_damaged_is_named() -> None:
    with pytest.raises(StorageError, match=r"a\.json: cannot read: no such file"):
        read_json("a.json")
    for damage in (b"", b"{", b"\xff\xfe"):
        Path("a.json").write_bytes(damage)
        with pytest.raises(StorageError, match=r"a\.json: damaged: not JSON"):
            read_json("a.json")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, r"the disk is full\. Free some room: df -h place"),
        (errno.EDQUOT, r"the disk quota is used up\. Free"),
        (errno.EROFS, "the file system is read-only$"),
        (errno.EACCES, "permission denied$"),
        (errno.EIO, "Input/output error$"),
    ],
)
def test_errors_of_the_system_say_what_where_and_why(code: int, reason: str) -> None:
    with pytest.raises(StorageError, match=f"^place: cannot save: {reason}") as raised:
        with storage_errors("place", "save"):
            raise OSError(code, os.strerror(code))
    assert isinstance(raised.value, OSError)


def test_an_error_that_is_said_already_is_said_once() -> None:
    with pytest.raises(StorageError, match=r"^inner: cannot read: permission denied$"):
        with storage_errors("outer"), storage_errors("inner", "read"):
            raise PermissionError(errno.EACCES, "")


def test_remove_takes_files_folders_links_and_nothing() -> None:
    Path("folder/inner").mkdir(parents=True)
    Path("file").touch()
    Path("kept").mkdir()
    Path("link").symlink_to("kept")
    for name in ("folder", "file", "link", "nothing"):
        remove(name)
    assert [path.name for path in Path().iterdir()] == ["kept"]


# --- folders ----------------------------------------------------------------------------------------------------


def test_folder_appears_when_it_is_whole() -> None:
    with new_folder("deep/folder") as scratch:
        (scratch / "a").write_text("1")
        assert not Path("deep/folder").exists()
        assert scratch.name.startswith(".")
    assert content("deep") == {"folder/a": b"1"}


def test_folder_replaces_the_old_one_whole() -> None:
    for text, names in (("old", "ab"), ("new", "bc")):
        with new_folder("folder") as scratch:
            for name in names:
                (scratch / name).write_text(text)
    assert content(".") == {"folder/b": b"new", "folder/c": b"new"}
    assert [path.name for path in Path().iterdir()] == ["folder"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_failed_folder_keeps_the_old_one_and_leaves_nothing(error: type[BaseException]) -> None:
    with new_folder("folder") as scratch:
        (scratch / "a").write_text("old")

    def fail() -> None:
        with new_folder("folder") as scratch:
            (scratch / "a").write_text("new")
            raise error

    with pytest.raises(StorageError if error is OSError else error):
        fail()
    assert content(".") == {"folder/a": b"old"}
    assert [path.name for path in Path().iterdir()] == ["folder"]


def test_full_disk_keeps_the_old_folder() -> None:
    with new_folder("folder") as scratch:
        (scratch / "a").write_text("old")
    with files_of_at_most(1_000), pytest.raises(StorageError, match="larger than the limit"):
        with new_folder("folder") as scratch:
            (scratch / "a").write_bytes(BIG)
    assert content(".") == {"folder/a": b"old"}
    assert [path.name for path in Path().iterdir()] == ["folder"]


def test_folder_that_cannot_be_put_in_its_place_brings_the_old_one_back() -> None:
    with new_folder("folder") as scratch:
        (scratch / "a").write_text("old")
    with pytest.raises(StorageError), new_folder("folder") as scratch:
        scratch.rename("elsewhere")  # what is to take the place is gone
    assert content("folder") == {"a": b"old"}


def test_folder_takes_the_place_of_a_file() -> None:
    Path("place").write_text("a file")
    with new_folder("place") as scratch:
        (scratch / "a").write_text("1")
    assert content(".") == {"place/a": b"1"}
    assert [path.name for path in Path().iterdir()] == ["place"]


def test_folder_below_a_file_is_an_error() -> None:
    Path("plain").write_text("")
    with pytest.raises(StorageError, match="plain/folder: cannot write: a file is in the way"):
        with new_folder("plain/folder"):
            pass
    with pytest.raises(StorageError, match="a part of the path is a file"), new_folder("plain/a/folder"):
        pass


# --- locks ------------------------------------------------------------------------------------------------------


def test_second_lock_is_told_who_has_the_first() -> None:
    with Lock("lock", "the thing"):
        with pytest.raises(
            LockedError, match=rf"the thing is in use by another process \(process {os.getpid()} on "
        ):
            with Lock("lock", "the thing"):
                pass
    with Lock("lock", "the thing"):
        pass


def test_lock_is_free_after_an_error() -> None:
    with pytest.raises(ValueError), Lock("lock", "it"):
        raise ValueError
    with Lock("lock", "it"):
        pass


def test_lock_dies_with_its_process() -> None:
    code = "import sys; from sp_ray_ml.storage import Lock; lock = Lock('lock', 'it'); lock.__enter__(); print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(LockedError, match=f"process {holder.pid} "), Lock("lock", "it"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with Lock("lock", "it"):
        pass


def test_lock_is_not_inherited_by_a_program_that_is_started() -> None:
    with Lock("lock", "it"):
        other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with Lock("lock", "it"):
            pass
    finally:
        other.communicate(b"\n")


def test_lock_on_a_full_disk_is_an_error_and_is_not_held() -> None:
    with files_of_at_most(0), pytest.raises(StorageError, match="cannot lock: the file would be larger"):
        with Lock("lock", "it"):
            pass
    with Lock("lock", "it"):
        assert json.dumps(Path("lock").read_text()).startswith('"process ')


def test_lock_where_nothing_can_be_written_is_an_error() -> None:
    with pytest.raises(StorageError, match="no such file or folder"), Lock("no/lock", "it"):
        pass
