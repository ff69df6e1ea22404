"""Where black boxes lie: folders, fsspec URLs, or a ConfigMap where neither is named. Whole or absent in each."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._kinds import ANNOTATION, CONFIG_MAP
from sp_ray_ml.errors import ClusterError, MissingDependencyError, StorageError
from sp_ray_ml.storage import storage_errors, write_json

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["IN_CLUSTER", "boxes", "commit", "default_root", "is_shared", "latest_of", "local_folder"]

Body = dict[str, Any]

IN_CLUSTER = "configmap:"
"""As a place: the ConfigMap `NAME-black-box` beside the cluster. It outlives the cluster."""
MANIFEST = "manifest.json"
"""Written last: a box without one is none."""
BOX_LABEL = f"{ANNOTATION}black-box"
UID, SAVED = f"{ANNOTATION}cluster-uid", f"{ANNOTATION}saved"
_BUDGET = 900 * 2**10
"""A ConfigMap may have 1 MiB."""
_FIRST_BUDGET = 700 * 2**10
"""Of a box with pods: the one of the deletion comes later, and is small."""
_TAILS = (2**20, 2**18, 2**16, 2**14, 2**12, 0)
_MOST_CONFIG_MAPS = 20
_ABANDONED_S = 3600
_METADATA = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"


class HomeNotSavedError(ClusterError):
    """The head's home would be lost by a suspension: it fits nowhere, or cannot be read."""


def default_root() -> Path:
    """The folder of this user's own."""
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "sp-ray" / "black-boxes"


def local_folder(place: str) -> Path | None:
    """The folder on this machine that a place is; None for a remote one."""
    if "://" not in place:
        return Path(place).expanduser()
    scheme, _, rest = place.partition("://")
    return Path(rest) if scheme in {"file", "local"} else None


def is_shared(place: str) -> bool:
    """Whether a place is a URL beyond this machine and this process; none that fsspec chains to another one."""
    scheme, found, _ = place.partition("://")
    return bool(found) and "::" not in scheme and scheme not in {"file", "local", "memory"}


def commit(folder: Path, manifest: Body) -> None:
    """Make a folder a box: the manifest names every file and its size."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    manifest["files"] = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    write_json(folder / MANIFEST, manifest)


def remove_scratch(folder: Path) -> None:
    """Remove what a process that was killed has left, long ago."""
    for scratch in folder.glob(".*.tmp"):
        with storage_errors(scratch, "remove"):
            if time.time() - scratch.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(scratch)


def boxes(place: str, namespace: str, name: str) -> list[tuple[str, Body]]:
    """The whole boxes of a cluster's name at a place, and their manifests, the newest last.

    Raises:
        StorageError: The place cannot be read.
    """
    folder = local_folder(place)
    mine = re.compile(rf"{re.escape(name)}-[0-9a-f]{{8}}")
    found: list[tuple[str, Body]] = []
    if folder is not None:
        with storage_errors(folder, "read"):
            files = [
                file
                for file in (folder / namespace).glob(f"{name}-*/*/{MANIFEST}")
                if mine.fullmatch(file.parent.parent.name) and not file.parent.name.startswith(".")
            ]
            found = [(str(file.parent), _manifest(file.read_bytes())) for file in files]
    else:
        with _remote_errors(place, "read"):
            system, root = _file_system(place)
            paths = system.glob(f"{root}/{namespace}/{name}-*/*/{MANIFEST}")
            for path in map(str, paths):
                box, _, _ = path.rpartition("/")
                if mine.fullmatch(box.split("/")[-2]):
                    found.append((system.unstrip_protocol(box), _manifest(system.cat_file(path))))
    return sorted(found, key=lambda box: str(box[1].get("saved")))


def latest_of(place: str, namespace: str, name: str, uid: str) -> tuple[str, Body] | None:
    """The newest box of one very cluster at a place."""
    mine = [box for box in boxes(place, namespace, name) if box[1].get("uid") == uid]
    return mine[-1] if mine else None


def _manifest(data: bytes) -> Body:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


# --- URLs ---------------------------------------------------------------------------------------------------------


class _remote_errors:  # noqa: N801 - used as a function is
    """Turn whatever a remote file system raises into a `StorageError`: each library has errors of its own."""

    def __init__(self, url: str, doing: str) -> None:
        self._url, self._doing = url, doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, StorageError):
            return
        if isinstance(error, ImportError):
            raise MissingDependencyError(
                f"{self._url} cannot be opened: {error}",
                hint="Install the file system of this URL where it is used: gcsfs for gs://, s3fs for s3://",
            ) from error
        text = re.sub(r"\s+", " ", str(error))[:300] or type(error).__name__
        raise StorageError(f"cannot {self._doing}: {text}", where=self._url) from error


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    system, root = fsspec.core.url_to_fs(url)
    system.invalidate_cache()
    return system, str(root).rstrip("/")


def save_to_url(url: str, folder: Path, manifest: Body) -> str:
    """Copy a folder to a URL, the manifest last; what is left of a copy that failed is removed.

    Raises:
        StorageError: It could not be copied.
    """
    commit(folder, manifest)
    with _remote_errors(url, "write"):
        system, root = _file_system(url)
        try:
            for file in [*manifest["files"], MANIFEST]:
                target = f"{root}/{file}"
                system.makedirs(target.rpartition("/")[0], exist_ok=True)
                system.put_file(str(folder / file), target)
        except BaseException:
            if system.exists(root):
                system.rm(root, recursive=True)
            raise
    return url


# --- ConfigMaps ---------------------------------------------------------------------------------------------------


def config_map_name(name: str) -> str:
    """Name of a cluster's ConfigMap."""
    return f"{name}-black-box"


def config_map_boxes(api: Api, namespace: str, name: str) -> list[tuple[str, Body]]:
    """The boxes in a cluster's ConfigMap and their manifests, the newest last."""
    found = api.find(CONFIG_MAP, namespace, config_map_name(name))
    if found is None:
        return []
    place = f"ConfigMap {namespace}/{config_map_name(name)}"
    listed = [(f"{place}, {key}", _manifest(value.encode())) for key, value in (found.get("data") or {}).items()
              if key.endswith(MANIFEST)]  # fmt: skip
    return sorted(listed, key=lambda box: str(box[1].get("saved")))


def save_to_config_map(api: Api, cluster: Body, folder: Path, manifest: Body) -> str:
    """Keep a box in the cluster's ConfigMap, compressed, and cut where it would be too large.

    A ConfigMap has the box from before the suspension and that of the deletion; those of another cluster of this name
    go.

    Raises:
        HomeNotSavedError: The home is in it and makes it too large.
    """
    meta = cluster["metadata"]
    namespace, name = meta["namespace"], config_map_name(meta["name"])
    stamp = re.sub(r"[^0-9TZ]", "", str(manifest["saved"]).partition(".")[0])
    old = api.find(CONFIG_MAP, namespace, name) or {}
    binary: dict[str, str] = {}
    data: dict[str, str] = {}
    if manifest["earlier"] and (old.get("metadata", {}).get("annotations") or {}).get(UID) == meta["uid"]:
        # Only the one with the pods: there may have been several suspensions.
        first = str(manifest["earlier"]).rpartition(", ")[2].removesuffix(f".{MANIFEST}")
        binary = {k: v for k, v in (old.get("binaryData") or {}).items() if k.startswith(first)}
        data = {k: v for k, v in (old.get("data") or {}).items() if k.startswith(first)}
    used = sum(len(base64.b64decode(v)) for v in binary.values()) + sum(len(v) for v in data.values())
    packed = _pack(folder, manifest, (_BUDGET - used) if binary else _FIRST_BUDGET)
    binary[f"{stamp}.tar.gz"] = base64.b64encode(packed).decode()
    data[f"{stamp}.{MANIFEST}"] = json.dumps(manifest, ensure_ascii=False)
    body: Body = {
        "apiVersion": CONFIG_MAP.api_version,
        "kind": CONFIG_MAP.name,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {BOX_LABEL: "true"},
            "annotations": {UID: meta["uid"], SAVED: manifest["saved"]},
        },
        "data": data,
        "binaryData": binary,
    }
    api.apply(CONFIG_MAP, namespace, body, force=True)
    return f"ConfigMap {namespace}/{name}"


def _pack(folder: Path, manifest: Body, budget: int) -> bytes:
    """The folder as a tar.gz of at most `budget` bytes with the manifest beside it; logs are cut at their beginning."""
    whole = list(manifest["missing"])
    for tail in _TAILS:
        if tail < _TAILS[0]:
            kept = f"cut to their last {tail // 2**10} KiB" if tail else "left out"
            manifest["missing"] = [
                *whole,
                f"logs are {kept}: a ConfigMap holds no more (kept whole: --black-box URL)",
            ]
        commit(folder, manifest)
        packed = _tar(folder, tail)
        if len(packed) + len(json.dumps(manifest, ensure_ascii=False).encode()) <= budget:
            return packed
    home = folder / "home.tar.gz"
    if home.exists():
        raise HomeNotSavedError(
            f"the head's home, {home.stat().st_size // 2**10} KiB compressed, does not fit into a ConfigMap",
            hint="Name a place for it: kubectl annotate raycluster NAME sp-ray/black-box=gs://…",
        )
    raise ClusterError("the black box does not fit into a ConfigMap")


def _tar(folder: Path, tail: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for file in sorted(folder.rglob("*")):
            if not file.is_file():
                continue
            data = file.read_bytes()
            inside = file.relative_to(folder).as_posix()
            if file.suffix == ".log" or inside.startswith("ray/"):
                data = data[-tail:] if tail else b""
            elif not tail and (inside.startswith("pods/") or inside in {"events.json", "jobs.json"}):
                data = b""
            if not data:
                continue
            entry = tarfile.TarInfo(inside)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def forget_old(api: Api, namespace: str) -> None:
    """Keep the newest ConfigMaps with black boxes, and delete the others."""
    query = {"labelSelector": f"{BOX_LABEL}=true"}
    found = api.json("GET", CONFIG_MAP.path(namespace), query=query, headers={"Accept": _METADATA})
    items = sorted(
        found.get("items") or (), key=lambda i: str(i["metadata"].get("annotations", {}).get(SAVED))
    )
    for item in items[:-_MOST_CONFIG_MAPS]:
        api.delete(CONFIG_MAP, namespace, item["metadata"]["name"], uid=item["metadata"]["uid"])
