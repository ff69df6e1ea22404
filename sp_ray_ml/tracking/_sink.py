"""The only code that talks to MLflow: opens the run there, sends batches, artifacts and models.

Everything may be sent twice, since a sender can die between the sending and the note of it: metrics carry their
time and step (MLflow keeps one of two equal points), tags and files replace themselves, a model carries the
place of its record.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sp_ray_ml.errors import LockedError, TrackingError
from sp_ray_ml.storage import Lock

__all__ = ["RefusedError", "RunGoneError", "Sink"]

_KEY_LENGTH, _PARAM_LENGTH, _TAG_LENGTH = 250, 6000, 8000
_PANDAS = {
    "float": "float32",
    "double": "float64",
    "integer": "int32",
    "long": "int64",
}
_METRICS_A_CALL, _TEXTS_A_CALL = 1000, 20
_FINAL = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"}
_KEY_TAG = "sp_ray.journal"
_MODEL_TAG = "sp_ray.record"
_CONTENT_TAG = "sp_ray.content"
ItemT = TypeVar("ItemT")


class RefusedError(TrackingError):
    """MLflow will never take this record; the others it may."""


class RunGoneError(TrackingError):
    """The run was deleted in MLflow."""


@contextmanager
def _mlflow_errors(doing: str) -> Iterator[None]:
    """Make one kind of what MLflow, its stores and its artifact libraries raise."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        code = getattr(error, "error_code", None)
        text = " ".join(str(error).split()) or type(error).__name__
        kind = RefusedError if code in _FINAL else TrackingError
        raise kind(f"{doing}: {text[:500]}") from error


class Sink:
    """MLflow, and one run in it.

    Args:
        uri: Tracking URI, without passwords where it is one of a server.
        artifacts: Where a new experiment keeps artifacts; None leaves it to the server.
        folder: The run's folder, which the journal's relative paths start from.
    """

    def __init__(self, uri: str, artifacts: str | None, folder: Path) -> None:
        self.uri = uri
        self.artifacts = artifacts
        self.folder = folder
        self.run_id = ""
        self._experiment_id = ""
        self._client: Any = None
        self._params: dict[str, str] = {}
        self._changed: set[str] = set()

    def connect(self, experiment: str) -> str:
        """Import MLflow, reach or make the store, and return the experiment's id."""
        with _mlflow_errors("cannot reach MLflow"):
            import mlflow

            mlflow.set_tracking_uri(self.uri)
            mlflow.set_registry_uri(self.uri)
            with self._creation():
                self._client = mlflow.MlflowClient(tracking_uri=self.uri)
                return self._experiment(experiment)

    @contextmanager
    def _creation(self) -> Iterator[None]:
        # Two runs that start at once on a machine without a store would both make its tables.
        match = re.fullmatch(r"sqlite(?:\+\w+)?:///(/.+)", self.uri)
        if not match:
            yield
            return
        database = Path(match.group(1))
        database.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                with Lock(database.with_name(f".{database.name}.lock"), "the tracking store"):
                    if not database.exists():
                        self._make(database)
                    yield
                return
            except LockedError:
                time.sleep(0.2)

    def _make(self, database: Path) -> None:
        """Make the store's tables aside: MLflow cannot go on with a store whose making was cut off."""
        import mlflow

        scratch = database.with_name(f".{database.name}.new")
        for suffix in ("", "-journal", "-wal", "-shm"):
            scratch.with_name(scratch.name + suffix).unlink(missing_ok=True)
        mlflow.MlflowClient(tracking_uri=f"sqlite:///{scratch}").search_experiments(max_results=1)
        scratch.rename(database)

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=self.artifacts))
            except Exception as error:
                found = self._client.get_experiment_by_name(name)  # another run made it just now
                if found is None:
                    raise TrackingError(f"cannot make the experiment {name!r}: {error}") from error
        if found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"the experiment {name!r} is deleted in MLflow",
                hint=f"Run: mlflow experiments restore -x {found.experiment_id}, or choose another experiment",
            )
        return str(found.experiment_id)

    def open_run(self, experiment_id: str, run_id: str | None, opening: Mapping[str, Any]) -> str:
        """Open the run, or make it if there is none, and return its id.

        Args:
            experiment_id: From `connect`.
            run_id: The run, where it is known.
            opening: The journal's first record: its name, tags, time, and its session, which tells this run from
                others where making it succeeded and the answer was lost.

        Raises:
            RunGoneError: The run was deleted there.
        """
        with _mlflow_errors("cannot open the run"):
            if run_id is None:
                query = f"tags.`{_KEY_TAG}` = '{opening['session']}'"
                found = self._client.search_runs([experiment_id], query, max_results=1)
                run = (
                    found[0]
                    if found
                    else self._client.create_run(
                        experiment_id,
                        start_time=opening["time"],
                        tags={**opening["tags"], _KEY_TAG: opening["session"]},
                        run_name=opening["name"],
                    )
                )
                run_id = str(run.info.run_id)
            try:
                run = self._client.get_run(run_id)
            except Exception as error:
                if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
                    raise RunGoneError(f"the run {run_id} is no longer in MLflow") from error
                raise
            if run.info.lifecycle_stage == "deleted":
                raise RunGoneError(f"the run {run_id} was deleted in MLflow")
            self.run_id, self._experiment_id = run_id, experiment_id
            self._params = dict(run.data.params)
            self._changed = {
                key.removeprefix("changed.") for key in run.data.tags if key.startswith("changed.")
            }
            return run_id

    def nested(self, run_id: str | None, opening: Mapping[str, Any]) -> Sink:
        """A sink for a run nested in this one; arguments and errors as those of `open_run`."""
        child = Sink(self.uri, self.artifacts, self.folder)
        child._client = self._client
        tags = {**opening["tags"], "mlflow.parentRunId": self.run_id}
        child.open_run(self._experiment_id, run_id, {**opening, "tags": tags})
        return child

    def is_gone(self) -> bool:
        """Whether the run was deleted in MLflow since it was opened."""
        with _mlflow_errors("cannot ask for the run"):
            try:
                return bool(self._client.get_run(self.run_id).info.lifecycle_stage == "deleted")
            except Exception as error:
                if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
                    return True
                raise

    def set_running(self) -> None:
        """Say that the run goes on."""
        with _mlflow_errors("cannot set the run's status"):
            self._client.update_run(self.run_id, status="RUNNING")

    def set_ended(self, status: str, time_ms: int) -> None:
        """Say how the run ended, and when."""
        with _mlflow_errors("cannot set the run's status"):
            self._client.set_terminated(self.run_id, status, end_time=time_ms)

    def send(
        self, metrics: Iterable[dict[str, Any]], params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """Send metrics (records of the journal), parameters and tags.

        A parameter of another value than MLflow has cannot be changed there: the value in effect becomes the tag
        `changed.<name>`.
        """
        from mlflow.entities import Metric, Param, RunTag

        texts = {_key(key): value[:_TAG_LENGTH] for key, value in tags.items()}
        new: dict[str, str] = {}
        for key, value in ((_key(key), _cut(value)) for key, value in params.items()):
            known = self._params.get(key, new.get(key))
            if known is None:
                new[key] = value
            elif known != value or key in self._changed:
                texts[f"changed.{key}"[:_KEY_LENGTH]] = value
                self._changed.add(key)
        points = [
            Metric(_key(key), float(value), record["time"], record["step"] or 0)
            for record in metrics
            for key, value in record["values"].items()
        ]
        with _mlflow_errors("cannot send"):
            for part in _parts([Param(key, value) for key, value in new.items()], _TEXTS_A_CALL):
                self._client.log_batch(self.run_id, params=part)
                self._params.update({param.key: param.value for param in part})
            for part in _parts(points, _METRICS_A_CALL):
                self._client.log_batch(self.run_id, metrics=part)
            for part in _parts([RunTag(key, value) for key, value in texts.items()], _TEXTS_A_CALL):
                self._client.log_batch(self.run_id, tags=part)

    def send_artifact(self, record: Mapping[str, Any]) -> None:
        """Send a file, or a folder with all in it."""
        source = self.folder / record["path"]
        if not source.exists():
            raise RefusedError(f"{source} is no longer there, it was not sent")
        with _mlflow_errors(f"cannot send {source.name}"):
            if source.is_dir():
                target = posixpath.join(record["artifact_path"] or "", record["name"])
                self._client.log_artifacts(self.run_id, str(source), target)
            else:
                self._client.log_artifact(self.run_id, str(source), record["artifact_path"])

    def send_model(self, record: Mapping[str, Any], key: str) -> None:
        """Send a model; `key` tells this record from others, so that it is sent once."""
        source = self.folder / record["path"]
        if not source.is_dir():
            raise RefusedError(f"{source} is no longer there, the model was not sent")
        with _mlflow_errors("cannot send the model"):
            import mlflow.pyfunc
            from mlflow.entities import LoggedModelOutput
            from mlflow.models import Model, ModelSignature

            client = self._client
            query = f"tags.`{_MODEL_TAG}` = '{key}'"
            found = client.search_logged_models([self._experiment_id], query, max_results=1)
            model = (
                found[0]
                if found
                else client.create_logged_model(
                    self._experiment_id, record["name"], source_run_id=self.run_id, tags={_MODEL_TAG: key}
                )
            )
            # The steps of `log_model` one by one: it would make another model in each attempt, load the whole
            # model again to try the example on it, and copy the run's metrics.
            if str(model.status) != "READY":
                with tempfile.TemporaryDirectory() as scratch:
                    mlflow.pyfunc.save_model(
                        path=f"{scratch}/model",
                        mlflow_model=Model(
                            artifact_path=model.artifact_location,
                            model_uuid=model.model_id,
                            run_id=self.run_id,
                            model_id=model.model_id,
                        ),
                        loader_module=record["loader_module"],
                        data_path=str(source),
                        pip_requirements=record["pip_requirements"],
                        signature=ModelSignature.from_dict(record["signature"])
                        if record["signature"]
                        else None,
                        input_example=_example(record),
                    )
                    client.log_model_artifacts(model.model_id, f"{scratch}/model")
                client.finalize_logged_model(model.model_id, "READY")
            outputs = client.get_run(self.run_id).outputs
            if model.model_id not in {o.model_id for o in (outputs.model_outputs if outputs else ())}:
                client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step=0)])
            if name := record.get("register"):
                self._register(str(name), model.model_id, _content(source))

    def _register(self, name: str, model_id: str, content: str) -> None:
        """Make a model a version of a registered one, unless a version has the same content."""
        from mlflow.exceptions import MlflowException

        client = self._client
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        quoted = name.replace("'", "''")
        known = client.search_model_versions(f"name='{quoted}'")
        if not any(version.tags.get(_CONTENT_TAG) == content for version in known):
            client.create_model_version(
                name,
                f"models:/{model_id}",
                run_id=self.run_id,
                model_id=model_id,
                tags={_CONTENT_TAG: content},
            )


def _content(folder: Path) -> str:
    """What tells a checkpoint from others."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _example(record: Mapping[str, Any]) -> Any:
    """The example as the table that MLflow would be given."""
    given = record["input_example"]
    if given is None:
        return None
    import pandas as pd

    # Column by column, or MLflow's `split` form, which also keeps the columns of a table without rows.
    split = isinstance(given, Mapping) and set(given) == {"columns", "data"}
    table = pd.DataFrame(given["data"], columns=given["columns"]) if split else pd.DataFrame(given)
    # MLflow compares the example with the signature, and JSON knows fewer types.
    for column in json.loads((record["signature"] or {}).get("inputs", "[]")):
        if column["type"] == "datetime":  # MLflow's has no zone: of a time with one, that of UTC
            times = pd.to_datetime(table[column["name"]], utc=True)
            table[column["name"]] = times.dt.tz_localize(None).astype("datetime64[ns]")
        elif kind := _PANDAS.get(column["type"]):
            table[column["name"]] = table[column["name"]].astype(kind)
    return table


def _key(name: str) -> str:
    """A name as MLflow takes it: `recall@20/cold_items` becomes `recall_at_20/cold_items`."""
    text = re.sub(r"[^/\w.\- :]", "_", name.replace("@", "_at_"))
    text = posixpath.normpath(text.strip("/") or "_").lstrip("./") or "_"
    return text if len(text) <= _KEY_LENGTH else f"{text[: _KEY_LENGTH - 9]}_{zlib.crc32(name.encode()):08x}"


def _cut(value: str) -> str:
    return value if len(value) <= _PARAM_LENGTH else value[: _PARAM_LENGTH - 1] + "…"


def _parts(items: Iterable[ItemT], size: int) -> Iterator[list[ItemT]]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
