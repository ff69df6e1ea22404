"""The folder of a tuning, which knows after a crash what is finished and what was begun.

tuning.json                what is tuned, and the seconds it took so far
trials/0007/trial.json     the values of a trial, written before it starts
trials/0007/result.json    how it ended, written by the trial itself
trials/0007/training/…     as a training's own folder
predictor/                 the best trial's sealed model

Where trials work on nodes that do not see it, it has a URL too, at which they leave what came of them: see
`_tune_place.py`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sp_ray_ml._remote import filesystem, join, read_bytes, remote_errors
from sp_ray_ml._transfer import download_folder
from sp_ray_ml.errors import ConfigError
from sp_ray_ml.storage import new_folder, read_json, remove, storage_errors, write_bytes, write_json
from sp_ray_ml.train.tuning import Trial

__all__ = [
    "EVOLUTION",
    "KEPT",
    "MODEL",
    "RESULT",
    "SCORES",
    "TRIAL",
    "TrialStore",
    "trial_folder",
    "trial_url",
    "write_result",
]

SCORES = "validation_scores.npy"
EVOLUTION = "evolution.json"
RESULT = "result.json"
TRIAL = "trial.json"
MODEL = "model"
KEPT = {RESULT, TRIAL, SCORES}


def trial_folder(folder: Path, number: int) -> Path:
    """Where a trial lies."""
    return folder / "trials" / f"{number:04d}"


def trial_url(url: str, number: int) -> str:
    """Where a trial on another node leaves what came of it."""
    return join(url, "trials", f"{number:04d}")


def write_result(
    folder: Path,
    trial: Trial,
    *,
    history: list[dict[str, Any]] | None = None,
    plots: Mapping[str, Any] | None = None,
) -> None:
    """Write how a trial ended into its folder."""
    write_json(
        folder / RESULT,
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
        url: Where the trials leave what came of them; None where they see the folder.

    Raises:
        ConfigError: The folder holds a tuning of something else.
    """

    def __init__(self, folder: Path, key: str, url: str | None = None) -> None:
        self.folder, self._url = folder, url
        self._without_model: set[int] = set()
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
        write_json(folder / TRIAL, {"params": dict(params)})

    def begun(self) -> dict[int, dict[str, Any]]:
        """The values of all trials that were begun."""
        for number in self._left_at_url():
            self._bring(number)
        found = {}
        for file in sorted((self.folder / "trials").glob(f"[0-9]*/{TRIAL}")):
            evolved = file.with_name(EVOLUTION)
            found[int(file.parent.name)] = read_json(evolved if evolved.exists() else file)["params"]
        return found

    def result(self, number: int) -> Trial | None:
        """How a trial ended; None where it has not."""
        file = trial_folder(self.folder, number) / RESULT
        if not file.exists():
            self._bring(number)
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
        file = trial_folder(self.folder, number) / RESULT
        return list(read_json(file)["history"]) if file.exists() else []

    def plots(self, number: int) -> dict[str, Any]:
        """Pictures' data of a finished trial."""
        return dict(read_json(trial_folder(self.folder, number) / RESULT)["plots"])

    def discard_model(self, number: int) -> None:
        """Remove the model of a trial that is not the best; what it gave stays."""
        folder = trial_folder(self.folder, number)
        for part in folder.iterdir() if folder.exists() else ():
            if part.name not in KEPT:
                remove(part)
        if self._url is not None and number not in self._without_model:
            fs, top = filesystem(url := trial_url(self._url, number))
            with remote_errors(url, "remove"):
                try:
                    for entry in fs.ls(top, detail=False):
                        if entry.rstrip("/").rpartition("/")[2] != RESULT:
                            fs.rm(entry, recursive=True)
                except FileNotFoundError:
                    pass
            self._without_model.add(number)

    def seal(self, number: int) -> None:
        """Make a trial's predictor the tuning's own.

        Raises:
            StorageError: It could not be got from the URL at which the trial left it.
        """
        with new_folder(self.folder / "predictor") as target:
            shutil.copytree(self._model(number) / "predictor", target, dirs_exist_ok=True)

    def scores(self, number: int) -> Any:
        """What a trial's model said of the validation rows, or None."""
        import numpy as np

        file = self._model(number) / SCORES
        return np.load(file, allow_pickle=False) if file.exists() else None

    # --- trials on nodes that do not see the folder -----------------------------------------------------------------

    def _left_at_url(self) -> list[int]:
        """The trials that have left something."""
        if self._url is None:
            return []
        fs, top = filesystem(self._url)
        with remote_errors(self._url, "read"):
            try:
                entries = fs.ls(f"{top}/trials", detail=False)
            except FileNotFoundError:
                return []
        names = [entry.rstrip("/").rpartition("/")[2] for entry in entries]
        return [int(name) for name in names if name.isdigit()]

    def _bring(self, number: int) -> None:
        """Have here how a trial stands, as it left it; the model stays where it is until it is the best."""
        folder = trial_folder(self.folder, number)
        if self._url is None or (folder / RESULT).exists():
            return
        url = trial_url(self._url, number)
        # Its values first, of one that was begun by a process whose folder did not get here.
        begun = () if (folder / TRIAL).exists() else (TRIAL,)
        for name in (*begun, EVOLUTION, RESULT):
            if (content := read_bytes(join(url, name))) is not None:
                with storage_errors(folder):
                    folder.mkdir(exist_ok=True)
                write_bytes(folder / name, content)
                if not (folder / TRIAL).exists():
                    write_json(folder / TRIAL, {"params": read_json(folder / name)["params"]})

    def _model(self, number: int) -> Path:
        """The folder with what is kept of a trial that is finished."""
        folder = trial_folder(self.folder, number)
        if self._url is None:
            return folder
        if not (folder / MODEL).exists():
            download_folder(join(trial_url(self._url, number), MODEL), folder / MODEL)
        return folder / MODEL
