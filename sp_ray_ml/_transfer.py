"""Folders in object stores: sent with a marker as the commit, taken up where they broke off, read by local copies.

`URL/_complete.json` names a folder's files with sizes and SHA-256, and is written last: a folder without it is not
there, and one that is replaced changes at once. Files lie below `URL/files-DIGEST/`, the digest of all their checksums,
so that what is there under a name with the right size is what was to be sent, and is not sent again. Large files go in
parts, and those that the store has already are not sent again either.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sp_ray_ml import storage
from sp_ray_ml._remote import filesystem, join, protocol, remote_errors
from sp_ray_ml.errors import StorageError

__all__ = ["copy_of", "download_folder", "upload_folder"]

MARKER = "_complete.json"
_PART = 32 << 20
_MOST_PARTS = 9_000
_AT_ONCE = 4
_COMPOSED = 32


def _listing(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and checksum of every file below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        sums = pool.map(storage.file_sha256, files)
        return {
            path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": digest}
            for path, digest in zip(files, sums, strict=True)
        }


def _name(files: dict[str, dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:32]


def upload_folder(folder: Path, url: str) -> None:
    """Put a folder at a URL, in place of what was there; what an earlier try has sent is not sent again.

    Raises:
        StorageError: It could not be sent. What was there is as it was.
    """
    files = _listing(folder)
    name = _name(files)
    fs, top = filesystem(url)
    place = f"{top}/files-{name}"
    with remote_errors(url, "read"):
        try:
            there = {path: info["size"] for path, info in fs.find(place, detail=True).items()}
        except FileNotFoundError:
            there = {}
    waiting = [p for p, info in files.items() if there.get(f"{place}/{p}") != info["size"]]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda path: _send(url, folder / path, f"{place}/{path}", there), waiting))
    before = _marker(url)
    content = json.dumps({"name": name, "files": files}, indent=1, ensure_ascii=False)
    with remote_errors(url):
        fs.pipe_file(f"{top}/{MARKER}", content.encode())
    # The state before stays for whoever still reads it, what is older goes.
    kept = {f"files-{name}", f"files-{before['name']}" if before else ""}
    with remote_errors(url, "remove"):
        for entry in fs.ls(top, detail=False):
            last = entry.rstrip("/").rpartition("/")[2]
            if last.startswith("files-") and last not in kept:
                fs.rm(entry, recursive=True)


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
    fs, top = filesystem(url)
    with remote_errors(join(url, MARKER), "read"):
        try:
            text = fs.cat_file(f"{top}/{MARKER}")
        except FileNotFoundError:
            return None
    try:
        found = json.loads(text)
        return {"name": str(found["name"]), "files": dict(found["files"])}
    except (ValueError, KeyError, TypeError):
        raise StorageError("damaged: not a marker that sp_ray_ml wrote", where=join(url, MARKER)) from None


def _complete(url: str) -> dict[str, Any]:
    marker = _marker(url)
    if marker is None:
        raise StorageError(
            "nothing complete is there: no such folder, or it was not sent to its end",
            where=url,
            hint="Send it again; what is there already is not sent twice",
        )
    return marker


def download_folder(url: str, folder: Path) -> None:
    """Get a folder that was sent: all of it, with the right checksums, or nothing.

    Raises:
        StorageError: It is not there, not complete, or damaged.
    """
    _get(url, folder, _complete(url))


def _get(url: str, folder: Path, marker: dict[str, Any]) -> None:
    fs, top = filesystem(url)

    def one(path: str) -> None:
        file = scratch / path
        if not file.resolve().is_relative_to(scratch.resolve()):
            raise StorageError(f"damaged: a file is called {path!r}", where=join(url, MARKER))
        file.parent.mkdir(parents=True, exist_ok=True)
        source = f"{top}/files-{marker['name']}/{path}"
        with remote_errors(join(url, path), "read"):
            fs.get_file(source, str(file))
        if (
            file.stat().st_size != marker["files"][path]["size"]
            or storage.file_sha256(file) != marker["files"][path]["sha256"]
        ):
            raise StorageError(
                "damaged: the checksum differs", where=join(url, path), hint="Send the folder again"
            )

    with storage.new_folder(folder) as scratch, ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(one, marker["files"]))


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("SP_RAY_CACHE") or f"{home}/sp_ray_ml").expanduser()


def copy_of(url: str) -> Path:
    """A folder of this machine with what is at a URL now. Processes share it; it is got once for each content.

    Raises:
        StorageError: As `download_folder`.
    """
    marker = _complete(url)
    name = _name(marker["files"])
    place = _cache() / name
    if not place.is_dir():
        with storage.storage_errors(place):
            place.parent.mkdir(parents=True, exist_ok=True)
        with _turn(place.with_suffix(".lock")):
            if not place.is_dir():
                _get(url, place, marker)
    return place


@contextmanager
def _turn(lock: Path) -> Iterator[None]:
    """One process at a time; the others wait."""
    with storage.storage_errors(lock, "lock"), lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
