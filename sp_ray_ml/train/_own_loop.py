"""Training loops of the user's own: a function of a `TrainContext`, or one that was written for Ray Train."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml.data.source import Source, as_source
from sp_ray_ml.errors import ConfigError, SpRayError, TrainingError
from sp_ray_ml.optional import check_installed
from sp_ray_ml.train._loop_trainer import LoopTrainer, LoopTraining
from sp_ray_ml.train._resources import check_resources
from sp_ray_ml.train._run_loop import run_loop
from sp_ray_ml.train._seeds import hash_seed
from sp_ray_ml.train._table_arrays import Arrays, rows_of, write_parts
from sp_ray_ml.train._table_data import TableData, parts_of
from sp_ray_ml.train._table_prepare import prepare
from sp_ray_ml.train.context import Backend, TrainContext
from sp_ray_ml.train.table import OnEpoch, new_training_folder

if TYPE_CHECKING:
    from sp_ray_ml.config import Custom

__all__ = ["fit"]

_WHERE = "train.train_loop"


def fit(
    trainer: LoopTrainer,
    train: Any,
    validation: Any,
    *,
    seed: int,
    folder: str | Path | None,
    on_epoch: OnEpoch | None,
) -> LoopTraining:
    """See `LoopTrainer.fit`."""
    chosen = trainer.train_loop
    assert chosen is not None
    if trainer.backend == "tensorflow":
        check_installed("tensorflow", type(trainer).__name__)
        import sp_ray_ml.train._keras  # noqa: F401  before the loop's own module imports it, with its chatter
    function, config = _checked(chosen, trainer.train_loop_config)
    check_resources(trainer.scaling)
    sources = {"train": as_source(train, "train")}
    if validation is not None:
        sources["validation"] = as_source(validation, "validation")
    place = new_training_folder(type(trainer).__name__) if folder is None else Path(folder)
    heard: list[dict[str, Any]] = []

    def hear(metrics: Mapping[str, float]) -> None:
        heard.append(dict(metrics))
        if on_epoch is not None:
            on_epoch(metrics)

    checkpoint: Path | None
    if config is _CONTEXT:
        checkpoint = _with_context(trainer, function, sources, seed, place / "training", hear)
    else:
        from sp_ray_ml.train._ray_functions import run_function

        checkpoint = run_function(
            function, config, sources, trainer.scaling, seed, place / "training", hear, trainer.backend
        )
    return LoopTraining(dict(heard[-1]) if heard else {}, heard, place, checkpoint_path=checkpoint)


_CONTEXT: dict[str, Any] = {}


def _checked(
    chosen: Custom, config: dict[str, Any] | None
) -> tuple[Callable[..., Any], dict[str, Any] | None]:
    """The function, and what it is called with: `_CONTEXT`, a config, or None for nothing."""
    try:
        function = chosen.load()
    except ConfigError as error:
        raise ConfigError(error.message, where=_WHERE, hint=error.hint) from None
    parameters = list(inspect.signature(function).parameters.values())
    needed = [
        p for p in parameters if p.default is p.empty and p.kind not in {p.VAR_KEYWORD, p.VAR_POSITIONAL}
    ]
    named = "context" in [parameter.name for parameter in parameters]
    if len(needed) > 1 or (named and config is not None):
        what = "takes a context, which has no train_loop_config" if named else "takes more than one parameter"
        raise ConfigError(
            f"{getattr(function, '__qualname__', function)} {what}",
            where=_WHERE,
            hint="It is called with `context` (our TrainContext), with `config` (Ray Train), or with nothing",
        )
    if named:
        return function, _CONTEXT
    if not parameters:
        if config is not None:
            raise ConfigError(
                "the train_loop has no parameter to take it",
                where="train.train_loop_config",
                hint="Add `config`",
            )
        return function, None
    return function, {**chosen.arguments, **(config or {})} if config or needed else None


@dataclass(frozen=True)
class _Job:
    function: Callable[[TrainContext], Any]
    rows: TableData | Path | None
    seed: int
    backend: Backend


def _with_context(
    trainer: LoopTrainer,
    function: Callable[[TrainContext], Any],
    sources: Mapping[str, Source],
    seed: int,
    folder: Path,
    hear: OnEpoch,
) -> Path:
    rows: TableData | Path | None = None
    if trainer.label:
        rows = prepare(
            sources["train"],
            sources.get("validation"),
            label=trainer.label,
            features=trainer.features,
            task=trainer.task,
            weight=trainer.weight,
            class_weights=trainer.class_weights,
            one_hot=trainer.one_hot,
            scale=True,
        )
        if trainer.scaling.workers:
            rows = write_parts(parts_of(rows), folder / "rows")
    job = _Job(function, rows, seed, trainer.backend)
    kept = run_loop(_loop, job, trainer.scaling, folder / "checkpoints", hear, backend=trainer.backend)
    return kept.best


def _loop(context: TrainContext, job: _Job) -> None:
    def rows(part: str) -> Arrays | None:
        assert job.rows is not None
        return rows_of(job.rows, part) if isinstance(job.rows, Path) else job.rows.arrays(part)

    if job.rows is not None:
        context._rows = rows
    with seeded(job.backend, hash_seed(job.seed, context.rank)):
        called(lambda: job.function(context), job.function)


@contextmanager
def seeded(backend: Backend, seed: int) -> Iterator[None]:
    """What the framework draws comes from a seed, and what it draws elsewhere is left alone."""
    if backend == "tensorflow":
        from sp_ray_ml.train._keras_network import own_random

        with own_random(seed):
            yield
        return
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def called(call: Callable[[], Any], function: Callable[..., Any]) -> None:
    """Call a user's function.

    Raises:
        TrainingError: It raises.
    """
    try:
        call()
    except SpRayError:
        raise
    except Exception as error:
        raise TrainingError(
            f"{getattr(function, '__qualname__', function)} failed: {type(error).__name__}: {error}",
            where=_WHERE,
        ) from error
