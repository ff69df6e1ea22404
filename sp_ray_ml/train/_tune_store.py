"""The folder of a tuning, which knows after a crash what is finished and what was begun.

tuning.json                what is tuned, and the seconds it took so far
trials/0007/trial.json     the values of a trial, written before it starts
trials/0007/result.json    how it ended, written by the trial itself
trials/0007/training/…     as a training's own folder
predictor/                 the best trial's sealed model
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sp_ray_ml.errors import ConfigError
from sp_ray_ml.storage import new_folder, read_json, remove, storage_errors, write_json
from sp_ray_ml.train.tuning import Trial

__all__ = ["TrialStore", "trial_folder", "write_result"]

SCORES = "validation_scores.npy"
EVOLUTION = "evolution.json"
_RESULT = "result.json"
_KEPT = {"result.json", "trial.json", SCORES}


def trial_folder(folder: Path, number: int) -> Path:
    """Where a trial lies."""
    return folder / "trials" / f"{number:04d}"


def write_result(
    folder: Path,
    trial: Trial,
    *,
    history: list[dict[str, Any]] | None = None,
    plots: Mapping[str, Any] | None = None,
) -> None:
    """Write how a trial ended into its folder."""
    write_json(
        folder / _RESULT,
        {
            "params": dict(trial.params),
            "status": trial.status,
            "metrics": {name: _plain(value) for name, value in trial.metrics.items()},
            "value": None if trial.value is None else _plain(trial.value),
            "epoch": trial.epoch,
            "seconds": trial.seconds,
            "error": trial.error,
            "history": history or [],
            "plots": dict(plots or {}),
        },
    )


def _plain(value: float) -> float | str:
    # JSON has no infinity.
    return float(value) if math.isfinite(value) else str(float(value))


class TrialStore:
    """A tuning's folder.

    Args:
        folder: The folder; made if there is none.
        key: Stands for all that decides what a trial gives: the trainer, the data, the space, the seed.

    Raises:
        ConfigError: The folder holds a tuning of something else.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self._file = folder / "tuning.json"
        with storage_errors(folder):
            (folder / "trials").mkdir(parents=True, exist_ok=True)
        known: dict[str, Any] = read_json(self._file) if self._file.exists() else {"key": key, "seconds": 0.0}
        if known["key"] != key:
            raise ConfigError(
                "the folder holds a tuning of other settings or other data",
                where=str(folder),
                hint=f"Choose another folder, or remove this one: rm -r {folder}",
            )
        self.seconds: float = known["seconds"]
        self._key = key
        self.spend(0.0)

    def spend(self, seconds: float) -> None:
        """Note how long the tuning took so far, over all processes."""
        write_json(self._file, {"key": self._key, "seconds": self.seconds + seconds})

    def begin(self, number: int, params: Mapping[str, Any]) -> None:
        """Note what a trial is about to try."""
        folder = trial_folder(self.folder, number)
        with storage_errors(folder):
            folder.mkdir(exist_ok=True)
        write_json(folder / "trial.json", {"params": dict(params)})

    def begun(self) -> dict[int, dict[str, Any]]:
        """The values of all trials that were begun."""
        found = {}
        for file in sorted((self.folder / "trials").glob("[0-9]*/trial.json")):
            evolved = file.with_name(EVOLUTION)
            found[int(file.parent.name)] = read_json(evolved if evolved.exists() else file)["params"]
        return found

    def result(self, number: int) -> Trial | None:
        """How a trial ended; None where it has not."""
        file = trial_folder(self.folder, number) / _RESULT
        if not file.exists():
            return None
        known = read_json(file)
        status: Literal["finished", "stopped", "failed"] = known["status"]
        return Trial(
            number,
            known["params"],
            status,
            {name: float(value) for name, value in known["metrics"].items()},
            None if known["value"] is None else float(known["value"]),
            known["epoch"],
            known["seconds"],
            known["error"],
        )

    def history(self, number: int) -> list[dict[str, Any]]:
        """What a finished trial reported of its epochs."""
        file = trial_folder(self.folder, number) / _RESULT
        return list(read_json(file)["history"]) if file.exists() else []

    def plots(self, number: int) -> dict[str, Any]:
        """Pictures' data of a finished trial."""
        return dict(read_json(trial_folder(self.folder, number) / _RESULT)["plots"])

    def discard_model(self, number: int) -> None:
        """Remove the model of a trial that is not the best; what it gave stays."""
        folder = trial_folder(self.folder, number)
        for part in folder.iterdir() if folder.exists() else ():
            if part.name not in _KEPT:
                remove(part)

    def seal(self, number: int) -> None:
        """Make a trial's predictor the tuning's own."""
        with new_folder(self.folder / "predictor") as target:
            shutil.copytree(trial_folder(self.folder, number) / "predictor", target, dirs_exist_ok=True)

    def scores(self, number: int) -> Any:
        """What a trial's model said of the validation rows, or None."""
        import numpy as np

        file = trial_folder(self.folder, number) / SCORES
        return np.load(file, allow_pickle=False) if file.exists() else None
