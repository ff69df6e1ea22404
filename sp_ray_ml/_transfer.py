"""Folders in object stores: sent with a marker as the commit, taken up where they broke off, read by local copies.

`URL/_complete.json` names a folder's files with sizes and SHA-256, and is written last: a folder without it is not
there, and one that is replaced changes at once. Files lie below `URL/files-DIGEST/`, the digest of all their checksums,
so that what is there under a name with the right size is what was to be sent, and is not sent again. Files of the state
before that have not changed stay where they are, and the marker says so. Large files go in parts, and those that the
store has already are not sent again either.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sp_ray_ml import storage
from sp_ray_ml._remote import filesystem, join, protocol, read_bytes, remote_errors
from sp_ray_ml.errors import StorageError

__all__ = [
    "DamagedError",
    "cache_folder",
    "complete_name",
    "copy_of",
    "download_folder",
    "inside",
    "read_file",
    "upload_folder",
]

MARKER = "_complete.json"
_PART = 32 << 20
_MOST_PARTS = 9_000
_AT_ONCE = 4
_REMOVED_AT_ONCE = 16
_COMPOSED = 32
_SMALL = 1 << 20


Sums = dict[tuple[int, int, int], str]
"""SHA-256 of files that were looked at before, by inode, size and time of the last change."""


class DamagedError(StorageError):
    """What is at a URL is not what was sent there, however often it is read."""


def inside(folder: Path, name: str) -> Path:
    """The place below a folder of a file whose name comes from a store.

    Raises:
        DamagedError: The name leads elsewhere.
    """
    if not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise DamagedError(f"damaged: a file is called {name!r}", where=str(folder))
    return folder / name


def _listing(folder: Path, sums: Sums) -> dict[str, dict[str, Any]]:
    """Size and checksum of every file below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]

    def one(path: Path) -> dict[str, Any]:
        stat = path.stat()
        key = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if (
            stat.st_size <= _SMALL
        ):  # such are copied, and what one is called by comes again with another's content
            return {"size": stat.st_size, "sha256": storage.file_sha256(path)}
        if key not in sums:
            sums[key] = storage.file_sha256(path)
        return {"size": stat.st_size, "sha256": sums[key]}

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(one, files)
        return {path.relative_to(folder).as_posix(): info for path, info in zip(files, found, strict=True)}


def _name(files: dict[str, dict[str, Any]]) -> str:
    plain = {path: {"size": info["size"], "sha256": info["sha256"]} for path, info in files.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]


def _at(marker: dict[str, Any], path: str) -> str:
    """Where a file of a folder lies, below the folder's URL."""
    return f"{marker['files'][path].get('in') or 'files-' + marker['name']}/{path}"


def upload_folder(
    folder: Path,
    url: str,
    *,
    check: Callable[[], None] | None = None,
    sums: Sums | None = None,
    anew: bool = False,
) -> str:
    """Put a folder at a URL, in place of what was there; what an earlier try has sent is not sent again.

    Args:
        folder: The folder.
        url: Its place.
        check: Called before anything is sent, and again when all but the marker is: it raises to leave what is there.
        sums: Checksums of files that were looked at before, which are not read again.
        anew: Send all of it, since what is there is damaged.

    Returns:
        What tells this content from other content.

    Raises:
        StorageError: It could not be sent. What was there is as it was.
    """
    check = check or (lambda: None)
    files = _listing(folder, {} if sums is None else sums)
    name = _name(files)
    check()
    fs, top = filesystem(url)
    found = _sizes(url)
    before, there = (None, {}) if anew else (_marker(url), found)
    for path, info in files.items() if before else ():
        assert before is not None
        known = before["files"].get(path, {})
        if known.get("sha256") == info["sha256"] and there.get(f"{top}/{_at(before, path)}") == info["size"]:
            info["in"] = _at(before, path).removesuffix(f"/{path}")
    place = f"{top}/files-{name}"
    waiting = [
        p for p, info in files.items() if "in" not in info and there.get(f"{place}/{p}") != info["size"]
    ]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda path: _send(url, folder / path, f"{place}/{path}", there), waiting))
    check()
    marker = {"name": name, "files": files}
    now = _sizes(url)
    if any(now.get(f"{top}/{_at(marker, path)}") != info["size"] for path, info in files.items()):
        raise StorageError(
            "what was sent is not there: another process sends there, too",
            where=url,
            hint="Send it again when nobody else does",
        )
    with remote_errors(url):
        fs.pipe_file(f"{top}/{MARKER}", json.dumps(marker, indent=1, ensure_ascii=False).encode())
    # The state before stays for whoever still reads it, what is older goes.
    kept = {_at(state, path) for state in (marker, before) if state for path in state["files"]}
    old = [
        path
        for path in found.keys() & now.keys()
        if (below := path.removeprefix(f"{top}/")).startswith("files-") and below not in kept
    ]
    with remote_errors(url, "remove"), ThreadPoolExecutor(_REMOVED_AT_ONCE) as pool:
        list(pool.map(fs.rm_file, old))
    return name


def _sizes(url: str) -> dict[str, int]:
    fs, top = filesystem(url)
    with remote_errors(url, "read"):
        try:
            return {path: info["size"] for path, info in fs.find(top, detail=True).items()}
        except FileNotFoundError:
            return {}


def _send(url: str, file: Path, target: str, there: dict[str, int]) -> None:
    fs, _ = filesystem(url)
    size = file.stat().st_size
    part = max(_PART, -(-size // _MOST_PARTS))
    kind = protocol(fs)
    with remote_errors(join(url, file.name)):
        if size <= part:
            fs.pipe_file(target, file.read_bytes())
        elif kind in {"s3", "s3a"}:
            _send_s3(fs, file, target, part)
        elif kind in {"gs", "gcs"}:
            _send_gcs(fs, file, target, part, there)
        else:
            fs.put_file(str(file), target)


def _parts(file: Path, part: int) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and content."""
    with storage.storage_errors(file, "read"), file.open("rb") as opened:
        number = 0
        while content := opened.read(part):
            number += 1
            yield number, content


def _send_s3(fs: Any, file: Path, target: str, part: int) -> None:
    """A multi-part upload; one that was broken off goes on with the parts that it has, told by their MD5."""
    bucket, key, _ = fs.split_path(target)
    where = {"Bucket": bucket, "Key": key}
    pending = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key).get("Uploads", [])
    found = [one["UploadId"] for one in pending if one["Key"] == key]
    upload = found[-1] if found else fs.call_s3("create_multipart_upload", **where)["UploadId"]
    have: dict[int, str] = {}
    after = 0
    while found:
        answer = fs.call_s3("list_parts", **where, UploadId=upload, PartNumberMarker=after)
        have |= {one["PartNumber"]: one["ETag"].strip('"') for one in answer.get("Parts", [])}
        if not answer.get("IsTruncated"):
            break
        after = answer["NextPartNumberMarker"]
    done = []
    for number, content in _parts(file, part):
        if have.get(number) != hashlib.md5(content, usedforsecurity=False).hexdigest():
            answer = fs.call_s3("upload_part", **where, UploadId=upload, PartNumber=number, Body=content)
            have[number] = answer["ETag"].strip('"')
        done.append({"PartNumber": number, "ETag": have[number]})
    fs.call_s3("complete_multipart_upload", **where, UploadId=upload, MultipartUpload={"Parts": done})


def _send_gcs(fs: Any, file: Path, target: str, part: int, there: dict[str, int]) -> None:
    """Parts as objects of their own, composed in the end: those that are there are not sent again."""
    names = []
    for number, content in _parts(file, part):
        name = f"{target}.part-{number:05d}"
        if there.get(name) != len(content):
            fs.pipe_file(name, content)
        names.append(name)
    first, rest = names[:_COMPOSED], names[_COMPOSED:]
    fs.merge(target, first)
    while rest:  # the store composes so many at once
        fs.merge(target, [target, *rest[: _COMPOSED - 1]])
        rest = rest[_COMPOSED - 1 :]
    for name in names:
        fs.rm_file(name)


def _marker(url: str) -> dict[str, Any] | None:
    """What `_complete.json` says; None if it is not there."""
    if (text := read_bytes(join(url, MARKER))) is None:
        return None
    try:
        found = json.loads(text)
        return {"name": str(found["name"]), "files": dict(found["files"])}
    except (ValueError, KeyError, TypeError):
        raise DamagedError("damaged: not a marker that sp_ray_ml wrote", where=join(url, MARKER)) from None


def _complete(url: str) -> dict[str, Any]:
    marker = _marker(url)
    if marker is None:
        raise StorageError(
            "nothing complete is there: no such folder, or it was not sent to its end",
            where=url,
            hint="Send it again; what is there already is not sent twice",
        )
    return marker


def complete_name(url: str) -> str | None:
    """What tells the content of a folder that was sent from other content; None where there is none.

    Raises:
        StorageError: The store cannot be read.
    """
    marker = _marker(url)
    return None if marker is None else str(marker["name"])


def read_file(url: str, path: str) -> bytes | None:
    """One file of a folder that was sent; None where there is no such folder, or no such file in it.

    Raises:
        StorageError: The store cannot be read.
    """
    marker = _marker(url)
    if marker is None or path not in marker["files"]:
        return None
    fs, top = filesystem(url)
    with remote_errors(join(url, path), "read"), _named(url, path):
        return bytes(fs.cat_file(f"{top}/{_at(marker, path)}"))


@contextmanager
def _named(url: str, path: str) -> Iterator[None]:
    """Read what a marker names."""
    try:
        yield
    except FileNotFoundError as error:
        raise DamagedError(
            "damaged: a file is missing, or was replaced meanwhile",
            where=join(url, path),
            hint="Read it again; if it stays so, send the folder again",
        ) from error


def download_folder(url: str, folder: Path) -> str:
    """Get a folder that was sent: all of it, with the right checksums, or nothing.

    Returns:
        What tells this content from other content.

    Raises:
        StorageError: It is not there, not complete, or damaged.
    """
    marker = _complete(url)
    _get(url, folder, marker, {path: path for path in marker["files"]})
    return str(marker["name"])


def _get(url: str, folder: Path, marker: dict[str, Any], wanted: dict[str, str]) -> None:
    """Get files: the name in `folder` of each, and that of the marker."""
    fs, top = filesystem(url)

    def one(name: str) -> None:
        path, file = wanted[name], inside(scratch, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        with remote_errors(join(url, path), "read"), _named(url, path):
            fs.get_file(f"{top}/{_at(marker, path)}", str(file))
        if (
            file.stat().st_size != marker["files"][path]["size"]
            or storage.file_sha256(file) != marker["files"][path]["sha256"]
        ):
            raise DamagedError(
                "damaged: the checksum differs", where=join(url, path), hint="Send the folder again"
            )

    with storage.new_folder(folder) as scratch, ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(one, wanted))


def cache_folder() -> Path:
    """Where copies of what is in stores are kept on this machine."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("SP_RAY_CACHE") or f"{home}/sp_ray_ml").expanduser()


def copy_of(url: str, below: str = "") -> Path:
    """A folder of this machine with what is at a URL now. Processes share it; it is got once for each content.

    Args:
        url: Of a folder that was sent.
        below: A folder in it, which alone is got.

    Raises:
        StorageError: As `download_folder`.
    """
    marker = _complete(url)
    prefix = f"{below}/" if below else ""
    wanted = {path.removeprefix(prefix): path for path in marker["files"] if path.startswith(prefix)}
    if below and not wanted:
        raise StorageError(f"there is no {below} in it", where=url)
    name = _name({name: marker["files"][path] for name, path in wanted.items()})
    place = cache_folder() / name
    if not place.is_dir():
        with storage.storage_errors(place):
            place.parent.mkdir(parents=True, exist_ok=True)
        with _turn(place.with_suffix(".lock")):
            if not place.is_dir():
                _get(url, place, marker, wanted)
    return place


@contextmanager
def _turn(lock: Path) -> Iterator[None]:
    """One process at a time; the others wait."""
    with storage.storage_errors(lock, "lock"), lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
