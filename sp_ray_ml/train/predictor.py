"""The sealed predictor: one folder with all that prediction needs, opened the same way everywhere.

    manifest.json            kind, versions, schema, metrics, and the SHA-256 of every other file
    preprocessors.json       fitted state
    …                        the model

Nothing in it is a pickle, so a folder from elsewhere is safe to open.
"""

from __future__ import annotations

import datetime
import decimal
import hashlib
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sp_ray_ml._import_path import import_object
from sp_ray_ml.errors import CheckpointError
from sp_ray_ml.storage import storage_errors, write_json

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Predictor", "seal_folder"]

FORMAT = 1
MANIFEST = "manifest.json"
_SEAL = "sha256"
_KINDS = {
    "recommender": "sp_ray_ml.train.recommender:Recommender",
    "table": "sp_ray_ml.train.table_predictor:TablePredictor",
}


class Predictor(ABC):
    """What training leaves and everything else opens: evaluation, batch prediction, serving, notebooks.

    Attributes:
        manifest: The content of `manifest.json`.
    """

    kind: ClassVar[str]
    _files: ClassVar[Sequence[str]]

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self.manifest = dict(manifest)

    @staticmethod
    def load(source: Any) -> Predictor:
        """Open a sealed predictor.

        Args:
            source: A path (also a run's folder), a Ray `Checkpoint`, or an MLflow model's URI (`runs:/RUN/model`, `models:/NAME/3`).

        Raises:
            CheckpointError: Not a predictor, damaged, or written by a newer version.
        """
        folder = _folder(source)
        manifest = _manifest(folder)
        if manifest["kind"] not in _KINDS:
            raise CheckpointError(
                f"holds a {manifest['kind']!r}, known are: {', '.join(_KINDS)}", where=str(folder)
            )
        cls: type[Predictor] = import_object(_KINDS[manifest["kind"]])
        _verify(folder, manifest, cls._files)
        from safetensors import SafetensorError

        try:
            return cls._open(folder, manifest)
        except CheckpointError:
            raise
        except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
            raise CheckpointError(
                f"does not hold what a {manifest['kind']} needs: {error}", where=str(folder)
            ) from error

    @classmethod
    @abstractmethod
    def _open(cls, folder: Path, manifest: dict[str, Any]) -> Predictor:
        """Open a folder whose files are as they were written."""

    @abstractmethod
    def mlflow_signature(self) -> dict[str, list[dict[str, Any]]]:
        """Input and output columns in MLflow's own form, for `mlflow models serve`."""

    def input_example(self, rows: pa.Table) -> dict[str, Any]:
        """What it reads of a few rows, as plain data that goes into MLflow: `{"columns": […], "data": [[…], …]}`."""
        names = [column["name"] for column in self.mlflow_signature()["inputs"]]
        return {
            "columns": names,
            "data": [[_as_json(row[name]) for name in names] for row in rows.select(names).to_pylist()],
        }

    @abstractmethod
    def predict(self, table: pa.Table) -> pa.Table:
        """Predict for the rows of a table."""


def _as_json(value: Any) -> Any:
    if isinstance(value, datetime.date):  # a time, too
        return value.isoformat()
    if isinstance(value, float | decimal.Decimal):
        return float(value) if math.isfinite(value) else None
    return value


def _folder(source: Any) -> Path:
    if isinstance(source, str) and source.startswith(("runs:/", "models:/")):
        import mlflow.artifacts

        downloaded = Path(mlflow.artifacts.download_artifacts(source))
        found = sorted(downloaded.rglob(MANIFEST))
        if not found:
            raise CheckpointError("the MLflow model holds no sealed predictor", where=source)
        return found[0].parent
    if hasattr(source, "to_directory"):  # a Ray Checkpoint, which is an os.PathLike that refuses to be one
        local = source.filesystem.type_name == "local"
        source = source.path if local else source.to_directory()
    if not isinstance(source, str | os.PathLike):
        raise CheckpointError(
            f"expected a path, a Ray Checkpoint or an MLflow URI, got {type(source).__name__}"
        )
    folder = Path(source)
    # Also of a run, or of a training.
    places = (folder / "steps" / "train" / "predictor", folder / "predictor")
    return next((place for place in places if (place / MANIFEST).is_file()), folder)


def _manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    if not file.is_file():
        hint = "It is the folder `checkpoint` of a finished run: sp-ray get runs"
        raise CheckpointError("is no sealed predictor: it has no manifest.json", where=str(folder), hint=hint)
    try:
        manifest = json.loads(file.read_bytes())
        written = int(manifest["format"])
        str(manifest["kind"]), dict(manifest["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the manifest is damaged: {error}", where=str(file)) from None
    if written > FORMAT:
        hint = "Run: pip install --upgrade sp_ray_ml"
        raise CheckpointError(
            f"written in format {written}, this version reads {FORMAT}", where=str(folder), hint=hint
        )
    if _seal(manifest) != manifest.get(_SEAL):
        raise CheckpointError("the manifest is damaged or was changed: its checksum differs", where=str(file))
    return dict(manifest)


def seal_folder(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the manifest of a folder whose other files are all there.

    Args:
        folder: The folder; every file in it is entered with its checksum.
        about: The manifest; `kind` must be in it.
    """
    files = {file.name: _digest(file) for file in sorted(folder.iterdir())}
    manifest = {"format": FORMAT, **about, "files": files}
    write_json(folder / MANIFEST, {**manifest, _SEAL: _seal(manifest)})


def _seal(manifest: Mapping[str, Any]) -> str:
    """Checksum of a manifest without its own."""
    content = {key: value for key, value in manifest.items() if key != _SEAL}
    as_read = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def _verify(folder: Path, manifest: Mapping[str, Any], needed: Sequence[str]) -> None:
    for name in needed:
        if name not in manifest["files"]:
            raise CheckpointError(f"the manifest does not name {name}", where=str(folder))
    for name, digest in manifest["files"].items():
        file = folder / Path(name).name
        if not file.is_file():
            raise CheckpointError(f"{name} is missing", where=str(folder))
        if _digest(file) != digest:
            raise CheckpointError(
                f"{name} is damaged or was changed: its checksum differs", where=str(folder)
            )


def _digest(file: Path) -> str:
    with storage_errors(file, "read"), file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
