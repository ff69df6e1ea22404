"""Functions written for Ray Train, run as they are: by its workers, or in this process without starting Ray.

Whatever such a function calls in `ray.train` goes through one object, Ray's `TrainFnUtils`. In this process that is
one of ours: what is reported is kept in the training's folder, from where the next start goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray.data
import ray.train
from ray.data.block import BlockAccessor, _apply_batch_format
from ray.data.iterator import _IterableFromIterator
from ray.train.v2._internal.execution import train_fn_utils

from sp_ray_ml.data.source import Source
from sp_ray_ml.errors import TrainingError
from sp_ray_ml.storage import new_folder, read_json, remove, storage_errors, write_json
from sp_ray_ml.train._ray_place import Told, fetched, ray_storage, told_in
from sp_ray_ml.train._ray_start import ray_running
from sp_ray_ml.train._ray_workers import Follow, cause_of, fit, ray_trainer, scaling_config
from sp_ray_ml.train._seeds import hash_seed
from sp_ray_ml.train.table import OnEpoch

if TYPE_CHECKING:
    from sp_ray_ml.train.context import Backend
    from sp_ray_ml.train.settings import Scaling

__all__ = ["run_function"]

_INDEX = "reported.json"


def run_function(
    function: Callable[..., Any],
    config: Mapping[str, Any] | None,
    sources: Mapping[str, Source],
    scaling: Scaling,
    seed: int,
    folder: Path,
    on_report: OnEpoch,
    backend: Backend,
) -> Path | None:
    """Run a function written for Ray Train.

    Args:
        function: Takes `config`, or nothing.
        config: What it is called with; None calls it with nothing.
        sources: What `ray.train.get_dataset_shard` gives, by name.
        scaling: How many workers; 0 is this process.
        seed: Of the framework's generators in this process; in workers the function's own matter.
        folder: Keeps what it reports; the same folder goes on.
        on_report: Called with what rank 0 reports.
        backend: What the workers are connected by.

    Returns:
        The folder of the last checkpoint that it reported, or None.

    Raises:
        TrainingError: It raised, or a worker died.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if scaling.workers:
        return _on_workers(function, config, sources, scaling, folder.resolve(), on_report, backend)
    return _here(function, config, sources, seed, folder.resolve(), on_report, backend)


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What can be tracked of reported metrics: numbers, also NumPy's."""
    plain = {
        name: value.item() if isinstance(value, np.generic) else value for name, value in metrics.items()
    }
    return {name: value for name, value in plain.items() if isinstance(value, int | float)}


# --- in this process --------------------------------------------------------------------------------------------


def _here(
    function: Callable[..., Any],
    config: Mapping[str, Any] | None,
    sources: Mapping[str, Source],
    seed: int,
    folder: Path,
    on_report: OnEpoch,
    backend: Backend,
) -> Path | None:
    from sp_ray_ml.train._own_loop import called, seeded

    utils = _InProcess(folder, sources, on_report)
    before = train_fn_utils._train_fn_utils
    train_fn_utils.set_train_fn_utils(utils)
    try:
        with seeded(backend, hash_seed(seed)):
            called(lambda: function() if config is None else function(dict(config)), function)
    finally:
        train_fn_utils.set_train_fn_utils(before)
    return utils.last


class _InProcess(train_fn_utils.LocalTrainFnUtils):  # type: ignore[misc]
    """What `ray.train` does for a function in this process.

    Attributes:
        last: The folder of the last checkpoint.
    """

    def __init__(self, folder: Path, sources: Mapping[str, Source], on_report: OnEpoch) -> None:
        super().__init__(folder.parent.name, {name: _Shard(source) for name, source in sources.items()})
        self._folder, self._on_report = folder, on_report
        index = folder / _INDEX
        self._count = 0
        self.last: Path | None = None
        if index.exists():
            state = read_json(index)
            self._count, self.last = int(state["count"]), folder / str(state["last"])

    def report(
        self,
        metrics: dict[str, Any],
        checkpoint: ray.train.Checkpoint | None = None,
        checkpoint_dir_name: str | None = None,
        checkpoint_upload_mode: Any = None,  # noqa: ARG002  written when this returns, as for each of Ray's modes
        delete_local_checkpoint_after_upload: bool | None = None,
        checkpoint_upload_fn: Callable[[Any, str], Any] | None = None,
        validation: Any = False,
    ) -> None:
        """Keep the checkpoint, as the only one, and hand the metrics on."""
        if validation:
            raise ValueError(
                "`validation_config` was not set on the trainer, but a validation was requested."
            )
        if checkpoint is not None:
            name = checkpoint_dir_name or f"checkpoint-{self._count + 1:06d}"
            if checkpoint_upload_fn is not None:
                checkpoint = checkpoint_upload_fn(checkpoint, name)
            self._keep(checkpoint, name)
            if delete_local_checkpoint_after_upload:
                shutil.rmtree(checkpoint.path, ignore_errors=True)
        self._on_report(numbers_of(metrics))

    def _keep(self, checkpoint: ray.train.Checkpoint, name: str) -> None:
        before = self.last
        with new_folder(self._folder / name) as scratch:
            checkpoint.to_directory(str(scratch))
        self._count += 1
        write_json(self._folder / _INDEX, {"count": self._count, "last": name})
        self.last = self._folder / name
        if before is not None and before != self.last:
            remove(before)

    def get_checkpoint(self) -> ray.train.Checkpoint | None:
        """The last checkpoint, of this start or the one before."""
        return None if self.last is None else ray.train.Checkpoint.from_directory(str(self.last))

    def get_dataset_shard(self, dataset_info: Any) -> ray.data.DataIterator:
        """All rows: there is one worker."""
        name = dataset_info.dataset_name
        if name not in self._dataset_shards:
            known = ", ".join(self._dataset_shards)
            raise KeyError(f"Dataset {name} not found. Available datasets: {known}.")
        return self._dataset_shards[name]


class _Shard(ray.data.DataIterator):  # type: ignore[misc]
    """A source as Ray's `DataIterator`. All ways to go over batches lead through `_iter_batches`."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __repr__(self) -> str:
        return f"DataIterator({self._source!r})"

    def stats(self) -> str:
        """There are none."""
        return ""

    def schema(self) -> Any:
        """The columns."""
        from ray.data.dataset import Schema

        return Schema(self._source.schema)

    def get_context(self) -> Any:
        """Ray Data's settings."""
        return ray.data.DataContext.get_current()

    def _to_ref_bundle_iterator(self) -> Any:
        """For what needs Ray's object store, `materialize`: starts Ray."""
        return self._source.to_ray().iterator()._to_ref_bundle_iterator()

    def _iter_batches(
        self,
        *,
        prefetch_batches: int = 1,  # noqa: ARG002  rows in memory need no fetching
        batch_size: int | None = 256,
        batch_format: str | None = "default",
        drop_last: bool = False,
        local_shuffle_buffer_size: int | None = None,
        local_shuffle_seed: int | None = None,
        _collate_fn: Callable[[Any], Any] | None = None,
        _finalize_fn: Callable[[Any], Any] | None = None,
    ) -> Any:
        chosen = _apply_batch_format(batch_format)
        if local_shuffle_buffer_size is not None and batch_size is None:
            raise ValueError("`batch_size` must be specified when using a local shuffle.")

        def batches() -> Iterator[Any]:
            stream: Iterator[pa.Table] = (pa.Table.from_batches([b]) for b in self._source.batches())
            if local_shuffle_buffer_size is not None:
                assert batch_size is not None
                stream = _shuffled(stream, max(local_shuffle_buffer_size, batch_size), local_shuffle_seed)
            for rows in stream if batch_size is None else _cut(stream, batch_size, drop_last):
                batch = BlockAccessor.for_block(rows).to_batch_format(chosen)
                if _collate_fn is not None:
                    batch = _collate_fn(batch)
                yield batch if _finalize_fn is None else _finalize_fn(batch).data

        return _IterableFromIterator(batches)


def _cut(stream: Iterator[pa.Table], size: int, drop_last: bool) -> Iterator[pa.Table]:
    """The rows in tables of one size."""
    waiting: list[pa.Table] = []
    count = 0
    for table in stream:
        waiting.append(table)
        count += len(table)
        if count < size:
            continue
        rows = pa.concat_tables(waiting)
        for start in range(0, count - size + 1, size):
            yield rows.slice(start, size).combine_chunks()
        left = count % size
        waiting, count = [rows.slice(count - left)] if left else [], left
    if count and not drop_last:
        yield pa.concat_tables(waiting).combine_chunks()


def _shuffled(stream: Iterator[pa.Table], size: int, seed: int | None) -> Iterator[pa.Table]:
    """The rows through a buffer of at least `size` rows, out of which they come in any order."""
    random = np.random.default_rng(seed)
    buffer: pa.Table | None = None
    for table in stream:
        buffer = table if buffer is None else pa.concat_tables([buffer, table])
        if len(buffer) >= 2 * size:
            mixed = buffer.take(random.permutation(len(buffer)))
            yield mixed.slice(size)
            buffer = mixed.slice(0, size)
    if buffer is not None:
        yield buffer.take(random.permutation(len(buffer)))


# --- in workers of Ray Train ------------------------------------------------------------------------------------


class _Heard(ray.train.UserCallback):  # type: ignore[misc]
    """Writes down what the workers report, for the process that waits for them."""

    def __init__(self, told: Told) -> None:
        self._told, self._restarts = told, 0

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002
        """A line for what rank 0 reports."""
        values = numbers_of(metrics[0])
        if self._restarts:
            values["restarts"] = self._restarts
        self._told.add(json.dumps(values))

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """What is reported from now on comes from workers that were started again."""
        self._restarts += 1


def _on_workers(
    function: Callable[..., Any],
    config: Mapping[str, Any] | None,
    sources: Mapping[str, Source],
    scaling: Scaling,
    folder: Path,
    on_report: OnEpoch,
    backend: Backend,
) -> Path | None:
    with ray_running():
        told = told_in(folder)
        trainer = ray_trainer(backend)(
            function,
            train_loop_config=None if config is None else dict(config),
            datasets={name: source.to_ray() for name, source in sources.items()},
            scaling_config=scaling_config(scaling),
            run_config=ray.train.RunConfig(
                **ray_storage(folder),
                failure_config=ray.train.FailureConfig(max_failures=scaling.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
                callbacks=[_Heard(told)],
            ),
        )
        try:
            with Follow(told, on_report):
                result = fit(trainer)
        except ray.train.TrainingFailedError as error:
            raise _told(error) from error
    return None if result.checkpoint is None else fetched(result.checkpoint, folder, "last")


def _told(error: BaseException) -> TrainingError:
    cause = cause_of(error)
    return TrainingError(cause.message, where=cause.where or "train.train_loop", hint=cause.hint)
