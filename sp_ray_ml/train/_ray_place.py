"""Where workers of Ray Train keep checkpoints, and how they are heard: on this machine, or on nodes without its disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sp_ray_ml._places import url_of
from sp_ray_ml._remote import filesystem
from sp_ray_ml.storage import remove, storage_errors

if TYPE_CHECKING:
    import ray.train

__all__ = ["Told", "fetched", "ray_storage", "told_in"]

_STARTS = "starts.txt"


def ray_storage(folder: Path) -> dict[str, Any]:
    """What Ray's `RunConfig` is given: the folder itself, or its URL where workers do not see it.

    The same name in the same place goes on by itself.
    """
    url = url_of(folder)
    if url is None:
        return {"name": "ray", "storage_path": str(folder)}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = filesystem(url)
    return {"name": "ray", "storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}


def fetched(checkpoint: ray.train.Checkpoint, folder: Path, name: str) -> Path:
    """A checkpoint that Ray keeps, as a folder of this machine.

    Args:
        checkpoint: The checkpoint.
        folder: The training's.
        name: Of its folder in there, where it comes from elsewhere.
    """
    if url_of(folder) is None:
        return Path(checkpoint.path)
    target = folder / name
    remove(target)
    return Path(checkpoint.to_directory(str(target)))


class Told(Protocol):
    """Lines from rank 0 to the process that waits for the workers; travels to the workers."""

    def started(self) -> int:
        """Count a start of the workers: how many there were before."""

    def add(self, line: str) -> None:
        """Say a line."""

    def take(self) -> list[str]:
        """What has been said since the last time."""


def told_in(folder: Path) -> Told:
    """For a training in this folder that begins now; in Ray's session."""
    return _ByFile(folder) if url_of(folder) is None else _ByActor()


class _ByFile:
    """Through a file that both see."""

    def __init__(self, folder: Path) -> None:
        self._file, self._starts, self._read = folder / "progress.jsonl", folder / _STARTS, 0
        with storage_errors(folder):
            for file in (self._file, self._starts):
                file.unlink(missing_ok=True)

    def started(self) -> int:
        with self._starts.open("a", encoding="utf-8") as file:
            file.write("started\n")
        return len(self._starts.read_text(encoding="utf-8").splitlines()) - 1

    def add(self, line: str) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def take(self) -> list[str]:
        if not self._file.exists():
            return []
        found = []
        with self._file.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                found.append(line.decode())
        return found


class _Lines:
    """The actor that `_ByActor` calls."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._starts = 0

    def started(self) -> int:
        self._starts += 1
        return self._starts - 1

    def add(self, line: str) -> None:
        self._lines.append(line)

    def take(self) -> list[str]:
        found, self._lines = self._lines, []
        return found


class _ByActor:
    """Through an actor on this process's node; it ends with the last that refers to it."""

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._actor: Any = ray.remote(_Lines).options(num_cpus=0, scheduling_strategy=node).remote()

    def started(self) -> int:
        import ray

        return int(ray.get(self._actor.started.remote()))

    def add(self, line: str) -> None:
        self._actor.add.remote(line)  # in order, and not waited for

    def take(self) -> list[str]:
        import ray

        return list(ray.get(self._actor.take.remote()))
