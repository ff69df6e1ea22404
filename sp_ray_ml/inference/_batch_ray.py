"""Partitions predicted by actors of Ray Data: each loads the model once, the pool grows and shrinks with the work."""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
import ray.data

from sp_ray_ml import errors
from sp_ray_ml.data._ray_source import quiet_ray_data
from sp_ray_ml.errors import ClusterError, SpRayError
from sp_ray_ml.inference._batch_engine import Engine, Job
from sp_ray_ml.inference._batch_flow import Flow
from sp_ray_ml.inference._batch_stage import Done, Stage
from sp_ray_ml.inference.batch_settings import Pool
from sp_ray_ml.logger import LOGGER

if TYPE_CHECKING:
    from sp_ray_ml.inference._batch_model import Model
    from sp_ray_ml.inference._batch_parts import Part
    from sp_ray_ml.inference.batch_settings import BatchScaling

__all__ = ["run_on_ray"]

_TOGETHER = (
    2  # partitions that an actor is at: the next is read while the last rows of the one before are predicted
)
_AHEAD = 2  # partitions that wait at an actor beside these


class _Again(Exception):  # noqa: N818  Ray gives the partition out again when it sees this one
    pass


class Worker:
    """An actor of the pool."""

    def __init__(
        self, job: Job, model: Model, parts: list[Any], max_failures: int, sys_path: list[str]
    ) -> None:
        began = time.time()
        sys.path += [path for path in sys_path if path not in sys.path]
        self._parts: list[Part] = ray.get(parts[0])
        self._stage, self._max_failures = Stage(job.store), max_failures
        self._flow: Flow | None = None
        self._refused: SpRayError | None = None
        try:
            self._stage.check_seen()
            self._flow = Flow(Engine(job, model.open(), began), lambda part: self._stage.begun(part.number))
        except SpRayError as error:  # raised here, Ray would start the actor again and again
            self._refused = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Predict the partition that the only row names; what comes back is its record, or an error."""
        if self._refused is not None:
            return _answer(self._refused)
        assert self._flow is not None
        part = self._parts[batch["index"][0].as_py()]
        try:
            done = self._flow(part, alone=self._is_suspect(part))
        except SpRayError as error:
            return _answer(error)
        except Exception as error:
            if "CUDA" in str(error) or type(error).__name__ == "AcceleratorError":
                LOGGER.error("the GPU failed, this worker starts again: %s", error)
                os._exit(1)  # nothing in this process can use the GPU any more
            raise _Again(f"{type(error).__name__}: {error}") from error
        return _answer(done)

    def _is_suspect(self, part: Part) -> bool:
        """Whether a partition may be why its process ended: it, or one that was under way beside it.

        Ray starts actors again and gives out what they were at without end, and a partition that always ends its
        process has to end the work. So that no other is blamed, suspects have the process to themselves.

        Raises:
            ClusterError: It has been tried too often.
        """
        tried = self._stage.tries(part.number)
        if tried > self._max_failures:
            begin = "" if part.start is None else f" from row {part.start:,} on"
            raise ClusterError(
                f"the partition{begin} has ended its worker {tried} times",
                where=part.source.name,
                hint="See why: ray logs. Too little memory: fewer workers a machine, or memory_per_worker. What "
                "is done is kept: run it again to go on",
            )
        return tried > 0 or not self._max_failures


def _answer(value: Done | SpRayError) -> pa.Table:
    # Through Ray an error would come out wrapped, and lose what it says beside its text.
    if isinstance(value, Done):
        content: dict[str, Any] = {"done": asdict(value)}
    else:
        kind = next(cls.__name__ for cls in type(value).__mro__ if cls.__name__ in errors.__all__)
        content = {"error": kind, "message": value.message, "where": value.where, "hint": value.hint}
    return pa.table({"answer": [json.dumps(content)]})


def _read(answer: str) -> Done:
    content = json.loads(answer)
    if "done" in content:
        return Done(**content["done"])
    kind: type[SpRayError] = getattr(errors, content["error"])
    raise kind(content["message"], where=content["where"], hint=content["hint"])


def run_on_ray(
    parts: Sequence[Part], job: Job, model: Model, scaling: BatchScaling, sys_path: list[str]
) -> Generator[Done]:
    """Predict partitions, and give the record of each when it is kept, in whatever order they come.

    Raises:
        SpRayError: What a worker raised.
        ClusterError: A worker died too often.
    """
    if not parts:
        return
    # Each partition is a row, and a block, of its own: Ray Data gives blocks out one by one.
    tickets = ray.data.from_items([{"index": i} for i in range(len(parts))], override_num_blocks=len(parts))
    tickets.context.actor_task_retry_on_errors = [_Again]
    tickets.context.enable_progress_bars = False  # `progress` tells how far it is
    # More actors than partitions would have nothing to do.
    least, most = min(scaling.least, len(parts)), min(scaling.most, len(parts))
    sizes = {"min_size": least, "max_size": most} if isinstance(scaling.workers, Pool) else {"size": most}
    options: dict[str, Any] = {}
    if "max_concurrent_calls_per_actor" in inspect.signature(ray.data.ActorPoolStrategy).parameters:
        sizes["max_concurrent_calls_per_actor"] = _TOGETHER
    else:  # of earlier Ray, where this is no option of the pool
        options["max_concurrency"] = _TOGETHER
    if scaling.gpu_type is not None:
        options["accelerator_type"] = scaling.gpu_type
    if scaling.memory_per_worker is not None:
        options["memory"] = scaling.memory_per_worker
    answers = tickets.map_batches(
        Worker,
        fn_constructor_args=(job, model, [ray.put(list(parts))], scaling.max_failures, sys_path),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            **sizes, max_tasks_in_flight_per_actor=_TOGETHER + _AHEAD, enable_true_multi_threading=True
        ),
        num_cpus=scaling.cpus_per_worker,
        num_gpus=scaling.gpus_per_worker or None,
        **options,
    )
    try:
        with (
            quiet_ray_data(),
            closing(
                iter(answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
            ) as tables,
        ):
            for table in tables:
                for value in table["answer"]:
                    yield _read(value.as_py())
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"the workers cannot go on: {_last(error)}",
            where="scaling",
            hint="What is done is kept: run it again to go on",
        ) from error


def _last(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[-400:]
