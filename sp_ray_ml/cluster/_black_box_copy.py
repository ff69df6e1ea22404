"""Copies of the black boxes that lie in ConfigMaps, for when these go with their namespace."""

from __future__ import annotations

import base64
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._black_box_store import BOX_LABEL, MANIFEST, UID, commit, config_map_name
from sp_ray_ml.cluster._kinds import CONFIG_MAP
from sp_ray_ml.storage import new_folder, storage_errors

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["copy_config_map_boxes"]

Body = dict[str, Any]

_STAMP = re.compile(rf"([0-9TZ]+)\.{re.escape(MANIFEST)}")
_DAMAGED = (
    ValueError, KeyError, TypeError, RecursionError, EOFError, OSError, tarfile.TarError, zlib.error,
)  # fmt: skip
_MOST_BYTES = 2**29
"""Of one box unpacked: members may write these ConfigMaps, and one of 1 MiB could be made to fill a disk."""


def copy_config_map_boxes(api: Api, namespace: str, root: Path) -> Iterator[tuple[str, str]]:
    """Copy all black boxes that ConfigMaps of a namespace hold into a folder, laid out as boxes there are.

    Args:
        api: The API server.
        namespace: The namespace.
        root: The folder.

    Yields:
        Of each box the cluster's name, and where it lies now, or why it cannot be read.

    Raises:
        StorageError: It cannot be written.
    """
    for body in api.list(CONFIG_MAP, namespace, labels=f"{BOX_LABEL}=true")[0]:
        name = body["metadata"]["name"].removesuffix(config_map_name(""))
        uid = str((body["metadata"].get("annotations") or {}).get(UID, ""))[:8]
        stamps = sorted(match[1] for key in body.get("data") or {} if (match := _STAMP.fullmatch(key)))
        folder = root / namespace / f"{name}-{uid}"
        for stamp in stamps:
            if not re.fullmatch(r"[0-9a-f]{8}", uid):
                yield name, f"not kept: ConfigMap {body['metadata']['name']} names no cluster"
                break
            try:
                packed, manifest = _read(body, stamp)
            except _DAMAGED:
                yield name, f"not kept: {stamp} in ConfigMap {body['metadata']['name']} is no black box"
                continue
            earlier = _STAMP.fullmatch(str(manifest.get("earlier") or "").rpartition(", ")[2])
            if earlier and earlier[1] in stamps:
                manifest["earlier"] = str(folder / earlier[1])
            yield name, str(_write(folder / stamp, packed, manifest, root))


def _read(body: Body, stamp: str) -> tuple[dict[PurePosixPath, bytes], Body]:
    """The files of a box, and its manifest."""
    manifest = json.loads(body["data"][f"{stamp}.{MANIFEST}"])
    if not isinstance(manifest, dict):
        raise TypeError(manifest)
    data = base64.b64decode(body["binaryData"][f"{stamp}.tar.gz"])
    files: dict[PurePosixPath, bytes] = {}
    left = _MOST_BYTES
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        for entry in archive:
            path = PurePosixPath(entry.name)
            left -= entry.size
            if left < 0 or not _is_below(path):
                raise ValueError(entry.name)
            if entry.isfile() and path.as_posix() != MANIFEST:
                file = archive.extractfile(entry)
                assert file is not None
                files[path] = file.read()
    if files.keys() & {parent for path in files for parent in path.parents}:
        raise ValueError("a file is a folder, too")
    return files, manifest


def _is_below(path: PurePosixPath) -> bool:
    """Whether a file of this name can be written into a folder, and lies in it then."""
    parts = path.parts
    whole = bool(parts) and not path.is_absolute() and ".." not in parts and "\0" not in str(path)
    return whole and len(str(path).encode()) < 1024 and all(len(part.encode()) < 256 for part in parts)


def _write(target: Path, files: dict[PurePosixPath, bytes], manifest: Body, root: Path) -> Path:
    with storage_errors(target):
        if (target / MANIFEST).exists():  # from a deletion that was broken off
            return target
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        root.chmod(0o700)
    with new_folder(target) as scratch:
        for path, data in files.items():
            with storage_errors(scratch / path):
                (scratch / path).parent.mkdir(parents=True, exist_ok=True)
                (scratch / path).write_bytes(data)
        commit(scratch, manifest)
    return target
