"""`Run`: one MLflow run, which costs the training process one small write a record."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from sp_ray_ml.config import redact
from sp_ray_ml.errors import TrackingError
from sp_ray_ml.storage import storage_errors
from sp_ray_ml.tracking._child import ChildRun
from sp_ray_ml.tracking._environment import environment_tags, package_versions, user_name
from sp_ray_ml.tracking._process import (
    Outcome,
    outcome_of,
    pending_of,
    sender_order,
    start_sender,
    wait_for_sender,
)
from sp_ray_ml.tracking._state import JOURNAL, SendState
from sp_ray_ml.tracking._store import redact_uri, tracking_uri
from sp_ray_ml.tracking.journal import Journal, finite, flatten, read_entries
from sp_ray_ml.tracking.settings import Tracking

__all__ = ["Run"]

_RESTART_S = 30.0
_WAIT_S, _LOCAL_WAIT_S, _INTERRUPTED_WAIT_S = 20.0, 60.0, 5.0
_SNAPSHOTS = "tracked"
_MODEL_PACKAGES = (
    "sp_ray_ml",
    "numpy",
    "pyarrow",
    "scipy",
    "torch",
    "torch-geometric",
    "safetensors",
    "xgboost",
)


class Run:
    """One run in MLflow. Every call appends to `journal.jsonl` in the run's folder and returns at once.

    A process of its own sends the journal, so that neither MLflow's import nor a server that is slow or away
    holds up what is tracked. `state` tells how it goes. A run that is opened again in the same folder goes on as
    the same run in MLflow. As a context manager it finishes itself: `FAILED` after an error.
    """

    def __init__(self, folder: Path, journal: Journal, order: dict[str, Any] | None) -> None:
        self.folder = folder
        self._journal: Journal | None = journal
        self._order = order
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._outcome: Outcome | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        name: str,
        settings: Tracking | None = None,
        tags: Mapping[str, Any] | None = None,
        runs_folder: str | os.PathLike[str] | None = None,
        code: str | os.PathLike[str] | None = None,
        place: str | None = None,
    ) -> Run:
        """Open the run of this folder: a new one, or the one whose journal lies there.

        Args:
            folder: The run's folder; made if there is none.
            name: The run's name in MLflow, and its experiment's if the settings name none.
            settings: Where to track.
            tags: Tags, beside those of `environment_tags`.
            runs_folder: Where the default store lies; the parent of `folder` without one. At a URL there is none: the
                run is only journalled then, unless the settings or the environment name a store.
            code: Folder whose git commit is noted; the working directory without one.
            place: Where the run's folder is kept, if that is a URL.

        Raises:
            StorageError: The folder cannot be written.
        """
        settings = settings or Tracking()
        home = Path(folder).absolute()
        with storage_errors(home):
            home.mkdir(parents=True, exist_ok=True)
        journal = Journal(home / JOURNAL)
        uri = tracking_uri(settings, runs_folder or home.parent)
        session = uuid.uuid4().hex
        facts = {
            "mlflow.source.name": Path(sys.argv[0]).name or "python",
            "mlflow.user": user_name(),
            "run_folder": os.fspath(place or home),
        }
        journal.append(
            "open",
            session=session,
            name=name,
            experiment=settings.experiment or name,
            uri=redact_uri(uri),
            tags={**facts, **flatten(redact(tags or {}))},
        )
        order = None
        if settings.enabled and uri:
            order = sender_order(uri, session, once=False, code=code or Path.cwd())
        elif settings.enabled:  # whoever sends it later runs elsewhere
            journal.append("tags", values=environment_tags(code))
        run = cls(home, journal, order)
        run._start()
        return run

    # --- logging ------------------------------------------------------------------------------------------------

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters, nested ones by their dotted names; secrets are struck out, values cut at 6000 characters.

        A parameter that MLflow already has with another value (a run resumed with new settings) stays there, and
        the value in effect becomes the tag `changed.<name>`.
        """
        self._append("params", values=flatten(redact(params)))

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers at a step; NaN and infinities are kept. In MLflow `recall@20` is called `recall_at_20`.

        Raises:
            TrackingError: A value is not a number.
        """
        try:
            values = {key: finite(float(value)) for key, value in metrics.items()}
        except (TypeError, ValueError) as error:
            raise TrackingError(f"a metric is not a number: {error}", where=", ".join(metrics)) from None
        self._append("metrics", step=None if step is None else int(step), values=values)

    def log_metric(self, name: str, value: Any, step: int | None = None) -> None:
        """As `log_metrics`, for one."""
        self.log_metrics({name: value}, step)

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; a tag set before is replaced. Secrets are struck out."""
        self._append("tags", values=flatten(redact(tags)))

    def log_artifact(self, path: str | os.PathLike[str], artifact_path: str | None = None) -> None:
        """Log a file, or a folder with all in it.

        What lies in the run's folder is not copied: it must stay until it is sent, and its content at that moment
        counts. What lies elsewhere is copied into the run's folder now, and may go at once.

        Args:
            path: The file or folder.
            artifact_path: Folder to put it into, in MLflow.

        Raises:
            StorageError: There is no such file, or it cannot be copied.
        """
        source = Path(path).absolute()
        self._append("artifact", path=self._kept(source), name=source.name, artifact_path=artifact_path)

    def log_plot(
        self,
        kind: Literal["history", "metrics", "importance", "trials", "parallel"],
        data: Any,
        path: str | os.PathLike[str],
        title: str = "",
    ) -> None:
        """Have a picture drawn by the sender, not here, where matplotlib's import alone would cost 2 seconds.

        Args:
            kind: `history` for `plot_history`, `metrics` for `plot_metrics`, `importance` for `plot_importance`;
                `trials` and `parallel` for the pictures of a tuning.
            data: What that function takes.
            path: The PNG, in the run's folder; logged in MLflow under `plots/`, too.
            title: Title of the picture.
        """
        target = Path(self.folder, path).relative_to(self.folder)
        self._append("plot", plot=kind, data=_plain(data), path=str(target), title=title)

    def log_model(
        self,
        checkpoint_folder: str | os.PathLike[str],
        name: str = "model",
        *,
        signature: Mapping[str, Any] | None = None,
        input_example: Any = None,
        pip_requirements: Sequence[str] | None = None,
        loader_module: str = "sp_ray_ml.train.mlflow_model",
        register: str | None = None,
    ) -> None:
        """Log a checkpoint as a model that `mlflow.pyfunc.load_model` opens, without pickle.

        Args:
            checkpoint_folder: As `log_artifact`'s: in the run's folder it must stay until it is sent.
            name: The model's name in the run: `runs:/<mlflow_run_id>/<name>`.
            signature: `{"inputs": [{"name": "user", "type": "string"}], "outputs": […]}`, MLflow's own form.
            input_example: `{"columns": […], "data": [[…], …]}`, a few rows.
            pip_requirements: What the model needs; without, this package and the libraries that it uses here.
            loader_module: Module whose `_load_pyfunc(path)` opens the checkpoint.
            register: Name of a registered model that this becomes a version of, unless it is one already.

        Raises:
            StorageError: There is no such folder, or it cannot be copied.
        """
        if pip_requirements is None:
            versions = package_versions(*_MODEL_PACKAGES)
            pip_requirements = [f"{package}=={version}" for package, version in versions.items()]
        columns = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in (signature or {}).items()
        }
        self._append(
            "model",
            path=self._kept(Path(checkpoint_folder).absolute()),
            name=name,
            signature=columns or None,
            input_example=input_example,
            pip_requirements=list(pip_requirements),
            loader_module=loader_module,
            register=register,
        )

    def child(self, key: str, name: str) -> ChildRun:
        """Open a run that is nested in this one.

        Args:
            key: Tells it from its siblings: the same key is the same run in MLflow, from another process, too.
            name: Its name in MLflow.
        """
        self._append("child", child=key, name=name)
        return ChildRun(key, self._append)

    @property
    def finished_children(self) -> set[str]:
        """Keys of the nested runs that were finished, by earlier processes, too."""
        records = (entry.record for entry in read_entries(self.folder / JOURNAL))
        return {record["child"] for record in records if record and record["kind"] == "child_finish"}

    def _append(self, kind: str, **values: Any) -> None:
        if self._journal is None:
            raise TrackingError("the run is finished, nothing can be logged", where=str(self.folder))
        self._journal.append(kind, **values)
        if (
            self._process
            and time.monotonic() - self._started > _RESTART_S
            and self._process.poll() is not None
        ):
            self._start()  # it was killed, for its memory perhaps

    def _kept(self, source: Path) -> str:
        """Path in the run's folder of what is to be sent, copied there if it lies elsewhere."""
        if source.is_relative_to(self.folder):
            with storage_errors(source, "read"):
                source.stat()
            return str(source.relative_to(self.folder))
        target = self.folder / _SNAPSHOTS / uuid.uuid4().hex[:12] / source.name
        with storage_errors(source, "copy"):
            target.parent.mkdir(parents=True)
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copy2(source, target)
        return str(target.relative_to(self.folder))

    # --- sending ------------------------------------------------------------------------------------------------

    @property
    def state(self) -> SendState:
        """How the sending goes: `state.state` is `waiting` while MLflow does not answer, `state.error` says why."""
        return SendState.read(self.folder, self._order["session"] if self._order else None)

    @property
    def mlflow_run_id(self) -> str | None:
        """The run's id in MLflow; None until it is known."""
        state = self.state
        known = self._order is not None and state.tracking_uri == self._order["uri"]
        return state.run_id if known else None

    @property
    def pending(self) -> int:
        """Records that MLflow has not got yet."""
        return pending_of(self.folder, self.state)

    def finish(self, status: str = "FINISHED", wait_s: float | None = None) -> Outcome:
        """Say how the run ended, and wait until MLflow has all of it.

        Args:
            status: `FINISHED`, `FAILED` or `KILLED`.
            wait_s: Seconds to wait at most; by default 20 for a server, and 60 for a store that is a file of this
                machine. Where an attempt has failed it is given up sooner, within 10 seconds. The sender then goes
                on by itself for a minute.
        """
        if self._journal is not None:
            if wait_s is None:
                wait_s = _LOCAL_WAIT_S if self._order and self._order["artifacts"] else _WAIT_S
            self._append("finish", status=status, wait_s=wait_s)
            self._journal.close()
            self._journal = None
            self._outcome = self._wait(wait_s)
        assert self._outcome is not None
        return self._outcome

    def _wait(self, wait_s: float) -> Outcome:
        if self._process is None or self._order is None:
            return outcome_of(self.folder, None, 0.0)
        if self._process.poll() is not None:
            self._start()
        process = self._process
        assert process.stdin is not None
        process.stdin.close()
        waited = wait_for_sender(process, self.folder, self._order["session"], wait_s)
        # Whoever outlives the run has to be waited for, or it stays as a zombie.
        threading.Thread(target=process.wait, daemon=True).start()
        return outcome_of(self.folder, self._order["session"], waited)

    def _start(self) -> None:
        with self._lock:
            if self._order is None or (self._process and self._process.poll() is None):
                return
            if self._process and self._process.stdin:
                self._process.stdin.close()
            self._process = start_sender(self.folder, self._order)
            self._started = time.monotonic()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        elif issubclass(kind, Exception):
            self.finish("FAILED")
        else:
            self.finish("KILLED", wait_s=_INTERRUPTED_WAIT_S)


def _plain(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    if data is None or isinstance(data, str | bool):
        return data
    number = float(data)
    return number if math.isfinite(number) else None
