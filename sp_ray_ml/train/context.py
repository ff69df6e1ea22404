"""`TrainContext`: what a training loop may ask of where it runs, with two backends: this process, and Ray Train.

A loop is `loop(context, job)`. It calls `context.report` once an epoch on every worker, with the files of a
checkpoint as bytes, taken at that moment: they reach the disk while the next epoch trains. It begins with
`context.resume()`. Both backends keep the last and the best checkpoint and go on from the last one when they are
started again in the same folder.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sp_ray_ml.errors import CheckpointError, ConfigError, ResourceError, SpRayError, TrainingError
from sp_ray_ml.storage import new_folder, read_json, remove, storage_errors, write_json
from sp_ray_ml.train._resources import check_resources

if TYPE_CHECKING:
    import ray.train
    import tensorflow as tf
    import torch

    from sp_ray_ml.train._table_data import Arrays
    from sp_ray_ml.train.settings import Scaling

__all__ = ["Checkpoints", "LoopResult", "TrainContext", "TrainLoop", "check_resources", "run_loop"]

Metrics = Mapping[str, float]
Backend = Literal["torch", "tensorflow", "xgboost"]
CheckpointFiles = Mapping[str, bytes]


class TrainContext(ABC):
    """Where a training loop runs.

    Attributes:
        rank: This worker's number, from 0.
        world_size: How many workers there are.
        restarts: How often the workers were started again in this training, because one had died.
    """

    rank: int
    world_size: int
    restarts: int = 0
    _rows: Callable[[str], Arrays | None] | None = None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where its tensors belong."""

    @abstractmethod
    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        """Move a model to the device, and wrap it so that gradients are averaged over the workers."""

    @abstractmethod
    def report(self, metrics: Metrics, files: Callable[[], CheckpointFiles], *, score: float) -> None:
        """End an epoch: called by every worker; the checkpoint of rank 0 is kept if it is the last or the best.

        Args:
            metrics: Numbers about the epoch, shown and tracked.
            files: Gives the checkpoint's files by name; called on rank 0 before this returns.
            score: What makes a checkpoint the best; larger is better.
        """

    @abstractmethod
    def log(self, metrics: Metrics) -> None:
        """Show and track numbers about an epoch that has no checkpoint of its own; what rank 0 says counts."""

    @abstractmethod
    def save(self, files: Callable[[], CheckpointFiles]) -> None:
        """Keep a checkpoint to go on from amid an epoch; called by every worker. It is never the best one.

        Args:
            files: Gives the checkpoint's files by name; called on rank 0 before this returns.
        """

    @abstractmethod
    def resume(self) -> Path | None:
        """The last checkpoint, where an earlier start left one."""

    @property
    @abstractmethod
    def last_checkpoint(self) -> str | None:
        """Where the last checkpoint that was kept lies, for messages."""

    @property
    def strategy(self) -> tf.distribute.Strategy:
        """What connects the workers of a `TensorFlowTrainer`; of one alone, TensorFlow's default.

        A Keras model made within `context.strategy.scope()` is the same on all workers, and gradients that its
        optimizer applies within `context.strategy.run(step)` are added up over them.
        """
        from sp_ray_ml.train._keras import tf

        return tf.distribute.get_strategy()

    def rows(self, part: str = "train") -> Arrays | None:
        """All rows of a part, `train` or `validation`, encoded; None where there is no such part.

        Every worker has all of them, in memory that they share: take `context.shard(len(rows))`.

        Raises:
            ConfigError: The trainer has no `label`, so that it is not known what the rows should become.
        """
        if self._rows is None:
            raise ConfigError(
                "without a label it is not known what rows should become",
                where="train.label",
                hint="Name the column that is predicted",
            )
        return self._rows(part)

    def gather(self, value: Any) -> list[Any]:
        """What each worker passed, in the order of their ranks, on every worker; called by every worker."""
        return [value]

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over the workers; called by every worker."""
        return value

    def average(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over the workers; called by every worker."""
        return value

    def shard(self, count: int) -> slice:
        """This worker's equal part of `count` rows; what does not divide is left to the last worker."""
        size = count // self.world_size
        return slice(self.rank * size, count if self.rank == self.world_size - 1 else (self.rank + 1) * size)


_REACH_S = 10.0
_LONG_EPOCH_S = 1.0
# Less than any score of an epoch; Ray keeps scores as JSON, which has no infinity.
_NEVER_BEST = -1e300
_STARTS = "starts.txt"

TrainLoop = Callable[[TrainContext, Any], None]


@dataclass(frozen=True)
class LoopResult:
    """The two checkpoints that training keeps."""

    last: Path
    best: Path


class Checkpoints:
    """The checkpoints of one training: the last and the best, each a folder that is whole or absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index = folder / "checkpoints.json"
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
            _write(scratch, files)
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


def _write(folder: Path, files: CheckpointFiles) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


class _LocalContext(TrainContext):
    """This process: one worker, on the GPU when there is one."""

    rank, world_size = 0, 1

    def __init__(self, folder: Path, on_report: Callable[[Metrics], None]) -> None:
        self._checkpoints = Checkpoints(folder)
        self._on_report = on_report
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="sp_ray_ml-checkpoint")
        self._writing: Future[None] | None = None
        self._untold: Metrics | None = None
        self._reported_at = -math.inf

    def __enter__(self) -> _LocalContext:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._disk.shutdown()
        # Also after an error: who goes on from the last checkpoint hears of its epoch no more. But the first error counts.
        if kind is None or self._writing is None or self._writing.exception() is None:
            self._written()

    @cached_property
    def device(self) -> torch.device:
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def log(self, metrics: Metrics) -> None:
        self._written()
        self._on_report(metrics)

    def _written(self) -> None:
        """Wait for the checkpoint that is being written, and tell of its epoch: what was told of is on disk."""
        if self._writing is not None:
            self._writing.result()
        if self._untold is not None:
            metrics, self._untold = self._untold, None
            self._on_report(metrics)

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        return model.to(self.device)

    def report(self, metrics: Metrics, files: Callable[[], CheckpointFiles], *, score: float) -> None:
        self._written()
        self._writing = self._disk.submit(self._checkpoints.add, files(), score)
        self._untold = metrics
        before, self._reported_at = self._reported_at, time.monotonic()
        if self._reported_at - before > _LONG_EPOCH_S:
            # Nobody waits an epoch for news of the last one; beside a long one the write takes no time.
            self._written()

    def save(self, files: Callable[[], CheckpointFiles]) -> None:
        self._written()
        self._writing = self._disk.submit(self._checkpoints.add, files(), _NEVER_BEST)

    def resume(self) -> Path | None:
        return self._checkpoints.last

    @property
    def last_checkpoint(self) -> str | None:
        self._written()
        return None if self._checkpoints.last is None else str(self._checkpoints.last)


class _RayContext(TrainContext):
    """A worker of Ray Train."""

    def __init__(self, progress: Path) -> None:
        import ray.train

        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self._progress = progress
        self.restarts = self._started_before()

    def _started_before(self) -> int:
        """How often this training's workers had been started; rank 0 keeps count."""
        file = self._progress.with_name(_STARTS)
        if self.rank:
            return 0
        with file.open("a", encoding="utf-8") as stream:
            stream.write("started\n")
        return len(file.read_text(encoding="utf-8").splitlines()) - 1

    @cached_property
    def device(self) -> torch.device:
        import ray.train.torch

        return ray.train.torch.get_device()  # type: ignore[no-any-return]

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        import ray.train.torch

        return ray.train.torch.prepare_model(model)  # type: ignore[no-any-return]

    def average(self, value: torch.Tensor) -> torch.Tensor:
        return self.total(value) / self.world_size

    def total(self, value: torch.Tensor) -> torch.Tensor:
        import torch.distributed

        if self.world_size == 1:
            return value
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total

    def gather(self, value: Any) -> list[Any]:
        import torch.distributed

        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(found, value)
        return found

    def report(self, metrics: Metrics, files: Callable[[], CheckpointFiles], *, score: float) -> None:
        self._keep({**metrics, "_score": score}, files)
        self.log(metrics)

    def save(self, files: Callable[[], CheckpointFiles]) -> None:
        self._keep({"_score": _NEVER_BEST}, files)

    def _keep(self, values: Metrics, files: Callable[[], CheckpointFiles]) -> None:
        import tempfile

        import ray.train

        if self.rank != 0:
            ray.train.report(dict(values))
            return
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), files())
            ray.train.report(dict(values), checkpoint=ray.train.Checkpoint.from_directory(folder))

    def log(self, metrics: Metrics) -> None:
        if self.rank == 0:
            marked = {**metrics, "restarts": self.restarts} if self.restarts else dict(metrics)
            with self._progress.open("a", encoding="utf-8") as file:
                file.write(json.dumps(marked) + "\n")

    def resume(self) -> Path | None:
        import tempfile

        import ray.train

        checkpoint = ray.train.get_checkpoint()
        return (
            None
            if checkpoint is None
            else Path(checkpoint.to_directory(tempfile.mkdtemp(prefix="sp_ray_ml-")))
        )

    @property
    def last_checkpoint(self) -> str | None:
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        return None if checkpoint is None else str(checkpoint.path)


def run_loop(
    loop: TrainLoop,
    job: Any,
    scaling: Scaling,
    folder: Path,
    on_report: Callable[[Metrics], None],
    *,
    backend: Backend = "torch",
) -> LoopResult:
    """Run a training loop in the backend that `scaling` names, going on from what an earlier start left.

    Args:
        loop: A function at the top level of a module.
        job: What it works on; travels to the workers by pickle within this user's own processes.
        scaling: How many workers of which size; 0 is this process.
        folder: Outlives a crash; the same folder goes on.
        on_report: Called here with the metrics of each epoch.
        backend: What the workers are connected by.

    Raises:
        ResourceError: More is asked for than there is.
        TrainingError: A worker failed.
    """
    check_resources(scaling)
    if scaling.workers == 0:
        with _LocalContext(folder, on_report) as context:
            loop(context, job)
        return Checkpoints(folder).result()
    return _run_on_ray(loop, job, scaling, folder, on_report, backend)


@contextmanager
def ray_running() -> Iterator[None]:
    """Ray as it is, or started for as long as the block lasts.

    Raises:
        ResourceError: The cluster at `RAY_ADDRESS` does not answer.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    _start_ray()
    try:
        yield
    finally:
        ray.shutdown()


def _start_ray() -> None:
    import logging

    import ray

    # Without an address Ray would go by what some `ray start` has left on this machine, and wait for it if it is gone.
    address = os.environ.get("RAY_ADDRESS") or "local"
    _check_reachable(address)
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            configure_logging=True,
            logging_level=logging.ERROR,
        )
    except ConnectionError as error:
        raise _unreachable(address, str(error)) from None


def _check_reachable(address: str) -> None:
    """Ray would try an address at which nobody listens for minutes."""
    import socket

    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except OSError as error:
        raise _unreachable(address, error.strerror or str(error)) from None


def _unreachable(address: str, why: str) -> ResourceError:
    return ResourceError(
        f"the Ray cluster does not answer, or refuses the token: {why}",
        where=f"RAY_ADDRESS={address}",
        hint="Set RAY_ADDRESS and RAY_AUTH_TOKEN anew, or use Ray on this machine: --set cluster=local",
    )


def scaling_config(scaling: Scaling) -> ray.train.ScalingConfig:
    """The workers as Ray Train wants them described."""
    import ray.train

    return ray.train.ScalingConfig(
        num_workers=scaling.elastic or scaling.workers,
        use_gpu=scaling.gpus_per_worker > 0,
        accelerator_type=scaling.gpu_type,
        resources_per_worker={"CPU": scaling.cpus_per_worker}
        | ({"GPU": scaling.gpus_per_worker} if scaling.gpus_per_worker else {})
        | ({"memory": scaling.memory_per_worker} if scaling.memory_per_worker else {}),
    )


def _worker(config: dict[str, Any]) -> None:
    # A worker has a working directory of its own; modules that lie beside the user's config are found all the same.
    sys.path.extend(path for path in config["sys_path"] if path not in sys.path)
    context = _RayContext
    if config["backend"] == "tensorflow":
        from sp_ray_ml.train._keras_context import KerasContext

        context = KerasContext
    config["loop"](context(Path(config["progress"])), config["job"])


def _ray_trainer(backend: Backend) -> Any:
    """Ray Train's own trainer for what connects the workers."""
    if backend == "xgboost":
        import ray.train.xgboost

        return ray.train.xgboost.XGBoostTrainer
    if backend == "tensorflow":
        import ray.train.tensorflow

        return ray.train.tensorflow.TensorflowTrainer
    import ray.train.torch

    return ray.train.torch.TorchTrainer


def _run_on_ray(
    loop: TrainLoop,
    job: Any,
    scaling: Scaling,
    folder: Path,
    on_report: Callable[[Metrics], None],
    backend: Backend,
) -> LoopResult:
    import ray.train

    folder = folder.resolve()
    progress = folder / "progress.jsonl"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        progress.unlink(missing_ok=True)
        (folder / _STARTS).unlink(missing_ok=True)
    with ray_running():
        trainer = _ray_trainer(backend)(
            _worker,
            train_loop_config={
                "loop": loop,
                "job": job,
                "backend": backend,
                "progress": str(progress),
                "sys_path": [*sys.path, str(Path.cwd())],
            },
            scaling_config=scaling_config(scaling),
            run_config=ray.train.RunConfig(
                # The same name in the same place goes on by itself.
                name="ray",
                storage_path=str(folder),
                failure_config=ray.train.FailureConfig(max_failures=scaling.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(
                    num_to_keep=1, checkpoint_score_attribute="_score", checkpoint_score_order="max"
                ),
            ),
        )
        try:
            with _Follow(progress, on_report):
                result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _cause(error) from error
    if result.checkpoint is None:
        raise TrainingError("training ended without a single epoch", where="train.epochs")
    best = max(result.best_checkpoints, key=lambda pair: pair[1]["_score"])[0]
    return LoopResult(Path(result.checkpoint.path), Path(best.path))


def _cause(error: BaseException) -> SpRayError:
    failures = getattr(error, "worker_failures", None) or {}
    causes = [getattr(failure, "cause", failure) for failure in failures.values()]
    # The others mostly complain that the one that failed is gone.
    for inner in sorted(causes, key=lambda cause: not isinstance(cause, SpRayError)):
        if isinstance(inner, SpRayError):
            return inner
        return TrainingError(f"a worker failed: {type(inner).__name__}: {str(inner).splitlines()[-1:] or ''}")
    text = [line for line in str(error).splitlines() if line.strip()]
    return TrainingError(f"a worker failed: {text[-1] if text else type(error).__name__}")


class _Follow:
    """Hands on what rank 0 appends to a file, while the driver waits in `fit`."""

    def __init__(self, file: Path, on_report: Callable[[Metrics], None]) -> None:
        import threading

        self._file, self._on_report, self._read = file, on_report, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sp_ray_ml-follow", daemon=True)

    def __enter__(self) -> _Follow:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._drain()

    def _run(self) -> None:
        while not self._stop.wait(0.3):
            self._drain()

    def _drain(self) -> None:
        if not self._file.exists():
            return
        with self._file.open("rb") as stream:
            stream.seek(self._read)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                self._on_report(json.loads(line))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The loop's own `state.json` in a checkpoint.

    Raises:
        CheckpointError: There is none.
    """
    file = checkpoint / "state.json"
    if not file.exists():
        raise CheckpointError("is no training checkpoint: it has no state.json", where=str(checkpoint))
    return dict(read_json(file))
