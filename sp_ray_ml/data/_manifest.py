"""Which files of a table's folder are its rows: `_manifest.json`, replaced at once, is the commit of a write."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from sp_ray_ml import storage
from sp_ray_ml.data._parquet_files import Layout, TableFiles, find_files
from sp_ray_ml.errors import StorageError

__all__ = ["MANIFEST", "Manifest", "live_files", "read_manifest"]

MANIFEST = "_manifest.json"


@dataclass
class Manifest:
    """The state of a table.

    Attributes:
        version: How many writes there were.
        files: Path of every live file, relative to the folder, and its rows.
        commits: Ids of the writes that had one.
        layout: How the table is partitioned; None if it is not.
    """

    version: int = 0
    files: dict[str, int] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    layout: Layout | None = None

    def write(self, folder: Path) -> None:
        """Make it the table's state: this is the moment in which a write becomes visible."""
        files = [{"path": path, "rows": rows} for path, rows in self.files.items()]
        raw = {"version": self.version, "files": files, "commits": self.commits}
        if self.layout is not None:
            schema = base64.b64encode(self.layout.schema.serialize().to_pybytes()).decode()
            raw |= {"partition_by": self.layout.column, "schema": schema}
        storage.write_json(folder / MANIFEST, raw)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, None where there is none.

    Raises:
        StorageError: It is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    raw = storage.read_json(path)
    try:
        files = {str(entry["path"]): int(entry["rows"]) for entry in raw["files"]}
        layout = None
        if "partition_by" in raw:
            schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(raw["schema"])))
            layout = Layout(schema.field(raw["partition_by"]).name, schema)
        return Manifest(int(raw["version"]), files, [str(commit) for commit in raw["commits"]], layout)
    except (KeyError, TypeError, ValueError, OSError):
        raise StorageError(
            "damaged: not a manifest that sp_ray_ml wrote",
            where=str(path),
            hint="Remove it to read every Parquet file in the folder",
        ) from None


def live_files(folder: Path) -> TableFiles:
    """The files that are the table's rows: those of the manifest, all where there is none."""
    manifest = read_manifest(folder)
    if manifest is None:
        return TableFiles(find_files(folder), folder)
    # Not `resolve`: a path through a link keeps its name in messages.
    files = [folder.parent / name[3:] if name.startswith("../") else folder / name for name in manifest.files]
    return TableFiles(files, folder, sum(manifest.files.values()), manifest.layout)
