"""Which files of a table's folder are its rows.

`_manifests/00000012.json` is the state after the twelfth write: made in one step, and only if no other writer made it
first, it is the commit of that write. The highest number counts. On an object store the state before it and its files
are kept for whoever still reads them. Earlier versions kept the state in one file, `_manifest.json`, which is read until
the next write.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from sp_ray_ml._secrets import redact
from sp_ray_ml.data._parquet_files import Layout, TableFiles, find_files
from sp_ray_ml.data._store import Store
from sp_ray_ml.errors import LockedError, StorageError

__all__ = ["Manifest", "clean", "live_files", "read_manifest"]

_FOLDER = "_manifests"
_ONCE = "_manifest.json"
_NAME = re.compile(r"(\d{8})\.json")
_PART = re.compile(r"part-(\d+)-[0-9a-f]+-\d+\.parquet")


@dataclass
class Manifest:
    """The state of a table.

    Attributes:
        version: How many writes there were.
        files: Path of every live file, relative to the folder, and its rows; `../NAME.parquet` for a table that was
            a single file.
        commits: Ids of the writes that had one.
        layout: How the table is partitioned; None if it is not.
    """

    version: int = 0
    files: Mapping[str, int] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    layout: Layout | None = None

    def commit(self, store: Store, table: str) -> None:
        """Make it the table's state: this is the moment in which a write becomes visible.

        Raises:
            LockedError: Another writer was first.
        """
        files = [{"path": path, "rows": rows} for path, rows in self.files.items()]
        raw: dict[str, Any] = {"version": self.version, "files": files, "commits": self.commits}
        if self.layout is not None:
            schema = base64.b64encode(self.layout.schema.serialize().to_pybytes()).decode()
            raw |= {"partition_by": self.layout.column, "schema": schema}
        data = (json.dumps(raw, indent=1, ensure_ascii=False) + "\n").encode()
        if not store.create(_path(table, self.version), data):
            raise LockedError(
                f"another writer changed the table {table} meanwhile; nothing was written",
                where=str(redact(store.place(table))),
                hint="Write again, one after the other",
            )


def _path(table: str, version: int) -> str:
    return _below(table, f"{_FOLDER}/{version:08d}.json")


def _below(table: str, path: str) -> str:
    return f"{table}/{path}" if table else path


def _versions(store: Store, table: str) -> list[int]:
    return sorted(
        int(found[1]) for name in store.children(_below(table, _FOLDER)) if (found := _NAME.fullmatch(name))
    )


def read_manifest(store: Store, table: str) -> Manifest | None:
    """The state of a table, None where none was written here.

    Raises:
        StorageError: It is damaged.
    """
    versions = _versions(store, table)
    if not versions and _ONCE not in store.children(table):
        return None
    return _read(store, _path(table, versions[-1]) if versions else _below(table, _ONCE))


def _read(store: Store, path: str) -> Manifest:
    try:
        raw = json.loads(store.read(path))
        files = {str(entry["path"]): int(entry["rows"]) for entry in raw["files"]}
        layout = None
        if "partition_by" in raw:
            schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(raw["schema"])))
            layout = Layout(schema.field(raw["partition_by"]).name, schema)
        return Manifest(int(raw["version"]), files, [str(commit) for commit in raw["commits"]], layout)
    except (KeyError, TypeError, ValueError, pa.ArrowException):
        mark = path if path.endswith(_ONCE) else path.rpartition("/")[0]
        raise StorageError(
            "damaged: not a manifest that sp_ray_ml wrote",
            where=store.place(path),
            hint=f"Remove {store.place(mark)} to read every Parquet file in the folder",
        ) from None


def live_files(store: Store, table: str) -> TableFiles:
    """The files that are the table's rows: those of the manifest, all where there is none."""
    manifest = read_manifest(store, table)
    if manifest is None:
        return TableFiles(store, find_files(store, table), table)
    files = [_beside(table, path) for path in manifest.files]
    return TableFiles(store, files, table, sum(manifest.files.values()), manifest.layout)


def _beside(table: str, path: str) -> str:
    return path[3:] if path.startswith("../") else _below(table, path)


def clean(store: Store, table: str, now: Manifest) -> None:
    """Remove what is no part of the table any more: what was replaced, and what a writer that was killed left.

    A file of a writer that is still at work has a later version in its name than `now`, and stays.
    """
    versions = _versions(store, table)
    older = [version for version in versions if version < now.version]
    kept = older[-1:] if older and not store.is_local else []
    named = set(now.files).union(*(_read(store, _path(table, version)).files for version in kept))
    dead = [f"{_FOLDER}/{version:08d}.json" for version in older if version not in kept]
    if versions and store.is_local:
        dead.append(_ONCE)
    for file in find_files(store, table):
        path = file.removeprefix(f"{table}/")
        part = _PART.fullmatch(path.rpartition("/")[2])
        if path not in named and (part is None or int(part[1]) <= now.version):
            dead.append(path)
    store.remove(table, dead)
    if f"{table}.parquet" in store.children() and f"../{table}.parquet" not in named:
        store.remove("", [f"{table}.parquet"])
