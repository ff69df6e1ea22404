"""The two checkpoints that a training keeps, the last and the best, and what a loop has left in one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml.errors import CheckpointError, TrainingError
from sp_ray_ml.storage import new_folder, read_json, remove, storage_errors, write_json

if TYPE_CHECKING:
    from sp_ray_ml.train.context import CheckpointFiles

__all__ = ["INDEX", "NEVER_BEST", "Checkpoints", "LoopResult", "read_state", "write_files"]

INDEX = "checkpoints.json"
# Less than any score of an epoch; Ray keeps scores as JSON, which has no infinity.
NEVER_BEST = -1e300


@dataclass(frozen=True)
class LoopResult:
    """The two checkpoints that training keeps."""

    last: Path
    best: Path


class Checkpoints:
    """The checkpoints of one training: the last and the best, each a folder that is whole or absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index = folder / INDEX
        self._state: dict[str, Any] = read_json(self._index) if self._index.exists() else {}

    def _path(self, which: str) -> Path | None:
        name = self._state.get(which)
        return self.folder / name if name else None

    @property
    def last(self) -> Path | None:
        """The newest one."""
        return self._path("last")

    @property
    def best(self) -> Path | None:
        """The one of the largest score."""
        return self._path("best")

    def add(self, files: CheckpointFiles, score: float) -> None:
        """Write the next one; those that are then neither last nor best go."""
        number = int(self._state.get("count", 0)) + 1
        name = f"checkpoint-{number:06d}"
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with new_folder(self.folder / name) as scratch:
            write_files(scratch, files)
        before = float(self._state.get("score", float("nan")))
        best = math.isnan(before) or score > before
        state = {
            "count": number,
            "last": name,
            "best": name if best else self._state.get("best", name),
            "score": score if best else self._state.get("score", score),
        }
        write_json(self._index, state)
        self._state = state
        for old in self.folder.glob("checkpoint-*"):
            if old.name not in {state["last"], state["best"]}:
                remove(old)

    def result(self) -> LoopResult:
        """Both.

        Raises:
            TrainingError: Training ended without a checkpoint.
        """
        if self.last is None or self.best is None:
            raise TrainingError("training ended without a single epoch", where="train.epochs")
        return LoopResult(self.last, self.best)


def write_files(folder: Path, files: CheckpointFiles) -> None:
    """Write a checkpoint's files into a folder that is there."""
    for name, content in files.items():
        (folder / name).write_bytes(content)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The loop's own `state.json` in a checkpoint.

    Raises:
        CheckpointError: There is none.
    """
    file = checkpoint / "state.json"
    if not file.exists():
        raise CheckpointError("is no training checkpoint: it has no state.json", where=str(checkpoint))
    return dict(read_json(file))
