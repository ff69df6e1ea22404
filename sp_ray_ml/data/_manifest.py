"""Which files of a table's folder are its rows: `_manifest.json`, replaced at once, is the commit of a write."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sp_ray_ml import storage
from sp_ray_ml.data._parquet_files import find_files
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
    """

    version: int = 0
    files: dict[str, int] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Make it the table's state: this is the moment in which a write becomes visible."""
        files = [{"path": path, "rows": rows} for path, rows in self.files.items()]
        storage.write_json(
            folder / MANIFEST, {"version": self.version, "files": files, "commits": self.commits}
        )


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
        return Manifest(int(raw["version"]), files, [str(commit) for commit in raw["commits"]])
    except (KeyError, TypeError, ValueError):
        raise StorageError(
            "damaged: not a manifest that sp_ray_ml wrote",
            where=str(path),
            hint="Remove it to read every Parquet file in the folder",
        ) from None


def live_files(folder: Path) -> tuple[list[Path], int | None]:
    """The files that are the table's rows, in order, and how many rows they have, where the manifest says so."""
    manifest = read_manifest(folder)
    if manifest is None:
        return find_files(folder), None
    # Not `resolve`: a path through a link keeps its name in messages.
    files = [folder.parent / name[3:] if name.startswith("../") else folder / name for name in manifest.files]
    return files, sum(manifest.files.values())
