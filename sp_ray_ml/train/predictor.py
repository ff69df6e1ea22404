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
import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sp_ray_ml._import_path import import_object
from sp_ray_ml._remote import is_remote, join
from sp_ray_ml._transfer import complete_name
from sp_ray_ml.errors import CheckpointError, ConfigError
from sp_ray_ml.storage import file_sha256, local_copy, write_json
from sp_ray_ml.tracking._store import answers, redact_uri, tracking_uri
from sp_ray_ml.tracking.settings import Tracking

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Predictor", "seal_folder"]

FORMAT = 1
MANIFEST = "manifest.json"
_SEAL = "sha256"
_EXAMPLE_ROWS = 3
_KINDS = {
    "recommender": "sp_ray_ml.train.recommender:Recommender",
    "two_tower": "sp_ray_ml.train.two_tower_recommender:TwoTowerRecommender",
    "table": "sp_ray_ml.train.table_predictor:TablePredictor",
    "policy": "sp_ray_ml.train.policy:PolicyPredictor",
}


class Predictor(ABC):
    """What training leaves and everything else opens: evaluation, batch prediction, serving, notebooks.

    One of your own is a subclass with `predict`, which batch prediction takes by its import path. Where work on CPUs
    comes before the model, `prepare`, `infer` and `assemble` are the three parts of `predict`:
    `assemble(rows, infer(prepare(rows)))`. Batch prediction runs them in threads of their own, so that the CPUs
    prepare the next batch while the model is at this one.

    Attributes:
        manifest: The content of `manifest.json`; of one that was never sealed, empty.
    """

    kind: ClassVar[str] = "own"
    _files: ClassVar[Sequence[str]] = ()

    def __init__(self, manifest: Mapping[str, Any] | None = None) -> None:
        self.manifest = dict(manifest or {})

    @staticmethod
    def load(source: Any) -> Predictor:
        """Open a sealed predictor.

        Args:
            source: A path (also a run's folder), the URL that it was saved to (`s3://…`, `gs://…`), a Ray `Checkpoint`, or an MLflow model's URI: `runs:/RUN/model`,
                `models:/NAME/3`, `models:/NAME@champion`, of the store that `MLFLOW_TRACKING_URI` names; without one,
                of `runs/mlflow.db`.

        Raises:
            CheckpointError: Not a predictor, damaged, written by a newer version, or MLflow does not give it.
        """
        if isinstance(source, str) and source.startswith(("runs:/", "models:/")):
            place = Path(tempfile.mkdtemp(prefix="sp_ray_ml-"))
            try:
                predictor = Predictor._load(_downloaded(source, place), source)
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                raise
            # Files that are mapped into memory stay readable when they are removed.
            weakref.finalize(predictor, shutil.rmtree, place, ignore_errors=True)
            return predictor
        folder = _folder(source)
        return Predictor._load(folder, str(folder))

    @staticmethod
    def _load(folder: Path, where: str) -> Predictor:
        manifest = _manifest(folder)
        if manifest["kind"] not in _KINDS:
            raise CheckpointError(
                f"holds a {manifest['kind']!r}, known are: {', '.join(_KINDS)}", where=where
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
                f"does not hold what a {manifest['kind']} needs: {error}", where=where
            ) from error

    @classmethod
    def _open(cls, folder: Path, manifest: dict[str, Any]) -> Predictor:
        """Open a folder whose files are as they were written."""
        raise CheckpointError(f"a {manifest['kind']} predictor is never sealed", where=str(folder))

    def mlflow_signature(self) -> dict[str, list[dict[str, Any]]]:
        """Input and output columns in MLflow's own form, for `mlflow models serve`.

        Raises:
            ConfigError: It does not say what they are.
        """
        raise ConfigError(f"{type(self).__name__} has no signature: override `mlflow_signature`")

    def input_example(self, rows: pa.Table) -> dict[str, Any] | None:
        """What it reads of the first few rows, as plain data for MLflow: `{"columns": […], "data": [[…], …]}`.

        Rows with a missing value are left out, since MLflow takes none in whole numbers; None where all have one.
        """
        names = [column["name"] for column in self.mlflow_signature()["inputs"]]
        whole = rows.select(names).drop_null().slice(0, _EXAMPLE_ROWS).to_pylist()
        data = [[_as_json(row[name]) for name in names] for row in whole]
        return {"columns": names, "data": data} if data else None

    @abstractmethod
    def predict(self, table: pa.Table) -> pa.Table:
        """Predict for the rows of a table; of one without rows, the same columns without rows."""

    def prepare(self, rows: pa.Table) -> Any:
        """What `predict` does with rows before the model is asked. Changes nothing: batches may overlap."""
        return rows

    def infer(self, prepared: Any) -> Any:
        """What the model says of what `prepare` gave."""
        return self.predict(prepared)

    def assemble(self, rows: pa.Table, found: Any) -> pa.Table:  # noqa: ARG002  of those that add columns to the rows
        """The predictions as a table, of the rows and what `infer` gave."""
        table: pa.Table = found
        return table

    def export_saved_model(self, path: str | os.PathLike[str]) -> None:  # noqa: ARG002  the others' refuse
        """Write it as a TensorFlow SavedModel; see `TablePredictor.export_saved_model`.

        Raises:
            ConfigError: The predictor is not one of Keras.
        """
        raise no_graph(self.kind)


def no_graph(kind: str) -> ConfigError:
    """The error of a predictor that is not one of TensorFlow."""
    return ConfigError(
        f"a {kind} predictor has no graph of TensorFlow",
        where="export_saved_model",
        hint="Train with kind: tensorflow, or serve the predictor itself: mlflow models serve, or Predictor.load",
    )


def _as_json(value: Any) -> Any:
    if isinstance(value, datetime.date):  # a time, too
        return value.isoformat()
    if isinstance(value, float | decimal.Decimal):
        return float(value) if math.isfinite(value) else None
    return value


def _downloaded(uri: str, place: Path) -> Path:
    """Fetch an MLflow model: the folder of the sealed predictor in it."""
    import mlflow

    store = None if mlflow.is_tracking_uri_set() else tracking_uri(Tracking(), "runs")
    shown = redact_uri(store or mlflow.get_tracking_uri())
    hint = f"MLflow was asked at {shown}; another store: MLFLOW_TRACKING_URI=…"
    try:
        if not answers(store or mlflow.get_tracking_uri()):
            raise ConnectionError("nobody listens there")
        found_at = _place_in(store, uri) if store else uri
        mlflow.artifacts.download_artifacts(found_at, dst_path=str(place), tracking_uri=store)
    except Exception as error:  # MLflow, its stores and its artifact libraries raise what they like
        text = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"MLflow does not give it: {text[:500]}", where=uri, hint=hint) from error
    found = sorted(place.rglob(MANIFEST))
    if not found:
        raise CheckpointError("the MLflow model holds no sealed predictor", where=uri)
    return found[0].parent


def _place_in(store: str, uri: str) -> str:
    """Where the files of a model lie. MLflow itself would look into the store that is set for all."""
    import mlflow

    client = mlflow.MlflowClient(store, store)
    if uri.startswith("runs:/"):
        run_id, _, path = uri.removeprefix("runs:/").partition("/")
        run = client.get_run(run_id)
        for output in run.outputs.model_outputs if run.outputs else ():
            logged = client.get_logged_model(output.model_id)
            if logged.name == path:
                return str(logged.artifact_location)
        return f"{run.info.artifact_uri}/{path}"
    rest = uri.removeprefix("models:/")
    name, at, alias = rest.rpartition("@")
    if at:
        model = client.get_model_version_by_alias(name, alias).source
    elif "/" in rest:
        model = client.get_model_version(*rest.rsplit("/", 1)).source
    else:
        model = uri
    if not model.startswith("models:/"):
        return str(model)
    return str(client.get_logged_model(model.removeprefix("models:/")).artifact_location)


def _folder(source: Any) -> Path:
    if hasattr(source, "to_directory"):  # a Ray Checkpoint, which is an os.PathLike that refuses to be one
        local = source.filesystem.type_name == "local"
        source = source.path if local else source.to_directory()
    if not isinstance(source, str | os.PathLike):
        raise CheckpointError(
            f"expected a path, a Ray Checkpoint or an MLflow URI, got {type(source).__name__}"
        )
    if is_remote(source):
        return _copy(os.fspath(source))
    folder = Path(source)
    # Also of a run, of `sp-ray predict` in it, or of a training.
    places = (*(folder / "steps" / step / "predictor" for step in ("train", "renew")), folder / "predictor")
    return next((place for place in places if (place / MANIFEST).is_file()), folder)


def _copy(url: str) -> Path:
    """A copy here of the predictor at a URL, or of that of the run there."""
    for step in ("train", "renew"):
        if complete_name(place := join(url, "steps", step)):
            return local_copy(place, "predictor")
    return local_copy(url)


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
    files = {file.name: file_sha256(file) for file in sorted(folder.iterdir())}
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
        if file_sha256(file) != digest:
            raise CheckpointError(
                f"{name} is damaged or was changed: its checksum differs", where=str(folder)
            )
