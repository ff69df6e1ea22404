"""How `XGBoostTrainer` boosts: round by round, each seeded by its number, so that it goes on exactly."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xgboost

from sp_ray_ml.errors import ConfigError, DataError, TrainingError
from sp_ray_ml.metrics.supervised import larger_is_better
from sp_ray_ml.train._checkpoints import read_state
from sp_ray_ml.train._run_loop import run_loop
from sp_ray_ml.train._seeds import hash_seed
from sp_ray_ml.train._table_arrays import rows_of, write_parts
from sp_ray_ml.train._table_data import Block, TableData, parts_of
from sp_ray_ml.train._table_spec import Target
from sp_ray_ml.train._xgboost_model import XGBoostModel, as_scores
from sp_ray_ml.train._xgboost_params import (
    boosting_params,
    draws,
    measured,
    quiet,
    refusal,
    try_params,
    watched_metric,
)
from sp_ray_ml.train.context import TrainContext
from sp_ray_ml.train.table import Learned, OnEpoch
from sp_ray_ml.train.table_predictor import metrics_of, padded_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sp_ray_ml.train.xgboost import XGBoostTrainer

__all__ = ["learn"]

_EVERY_S = 20.0
_EVERY_ROUNDS = 10
_MODEL = "model.ubj"


@dataclass(frozen=True)
class _Job:
    trainer: XGBoostTrainer
    params: Mapping[str, Any]
    names: list[str]
    types: list[str]
    seed: int
    data: TableData | Path
    start: bytes | None
    target: Target
    prefix: str = "train"


def learn(trainer: XGBoostTrainer, data: TableData, *, seed: int, folder: Path, on_epoch: OnEpoch) -> Learned:
    """See `TableTrainer.learn`."""
    spec = data.spec
    params, names = boosting_params(trainer, spec.target), _safe(spec.names)
    types = ["c" if column in spec.cardinalities else "float" for column in range(spec.width)]
    try_params(trainer, params, spec, names, types)
    start = None if data.start is None else _started(data.start, str(params["objective"]))
    job = _Job(trainer, params, names, types, seed, _rows(trainer, data, folder / "rows"), start, spec.target)
    kept = run_loop(_loop, job, trainer.scaling, folder / "checkpoints", on_epoch, backend="xgboost")
    state = read_state(kept.last)
    booster = xgboost.Booster(model_file=str(kept.last / _MODEL))
    if trainer.early_stopping is not None and (best := state.get("best_round")) is not None:
        booster = booster[: best + 1]
    model = XGBoostModel(booster, spec.target.outputs)
    scores, metrics = None, state.get("metrics")
    if data.validation is not None:
        scores, metrics = _held_out(model, data)
        if trainer.refit:
            rounds = booster.num_boosted_rounds() - int(state.get("before", 0))
            rows = _rows(trainer, data.joined(), folder / "refit" / "rows")
            booster = _refit(job, rounds, rows, folder / "refit", on_epoch)
            model = XGBoostModel(booster, spec.target.outputs)
            scores, _ = _held_out(model, data)
    importance = _importance(booster, dict(zip(names, spec.names, strict=True)))
    return Learned(model, state["history"], scores, {"importance": importance}, metrics)


def _rows(trainer: XGBoostTrainer, data: TableData, folder: Path) -> TableData | Path:
    """What the loop reads: the rows as they stream, or for workers the files that they map."""
    if not trainer.scaling.workers:
        return data
    whole = parts_of(data)
    for part, arrays in whole.items():
        _check_shards(len(arrays), trainer.scaling.workers, part)
    return write_parts(whole, folder)


def _refit(job: _Job, rounds: int, rows: TableData | Path, folder: Path, on_epoch: OnEpoch) -> Any:
    """Boost from the start for a given number of rounds, without a look at anything held out."""
    trainer = job.trainer.model_copy(update={"num_boost_round": rounds, "early_stopping": None})
    again = replace(job, trainer=trainer, data=rows, prefix="refit")
    kept = run_loop(_loop, again, trainer.scaling, folder / "checkpoints", on_epoch, backend="xgboost")
    return xgboost.Booster(model_file=str(kept.last / _MODEL))


def _held_out(model: XGBoostModel, data: TableData) -> tuple[NDArray[np.float32] | None, dict[str, float]]:
    """Scores of the validation rows, and the metrics."""
    measure, parts = metrics_of(data.spec.target), []
    for block in data.blocks("validation"):
        parts.append(padded_scores(model, block.x))
        measure.update(parts[-1], block.y)
    return np.concatenate(parts) if parts else None, measure.finish()


def _check_shards(rows: int, workers: int, part: str) -> None:
    if rows < workers:
        raise DataError(
            f"{rows} rows are too few for {workers} workers: one would have none",
            where=part,
            hint="Lower train.scaling.workers",
        )


def _started(model: Any, objective: str) -> bytes:
    if not isinstance(model, XGBoostModel):
        raise ConfigError(f"boosting cannot go on from a {model.kind} model", where="start_from")
    before = json.loads(model.booster.save_config())["learner"]["objective"]["name"]
    if before != objective:
        raise ConfigError(
            f"the model was boosted for {before}, it cannot go on for {objective}",
            where="train.objective",
            hint=f"Set objective: {before}",
        )
    return bytes(model.booster.save_raw("ubj"))


def _safe(names: list[str]) -> list[str]:
    """XGBoost allows no brackets and no `<` in a name, and no name twice."""
    found: list[str] = []
    for name in names:
        safe = name.translate({ord("["): "(", ord("]"): ")", ord("<"): "‹"})
        found.append(f"{safe}#{len(found)}" if safe in found else safe)
    return found


# --- rows -------------------------------------------------------------------------------------------------------


class _Batches(xgboost.DataIter):  # type: ignore[misc]
    """Hands blocks of rows to XGBoost, as often as it wants to see them."""

    def __init__(self, job: _Job, open_: Callable[[], Iterator[Block]], cache: Path | None) -> None:
        # Each of XGBoost's passes goes over what is kept; from disk where that is too much.
        super().__init__(cache_prefix=None if cache is None else str(cache), release_data=cache is not None)
        self._job, self._open = job, open_
        self._stream: Iterator[Block] | None = None

    def next(self, input_data: Callable[..., Any]) -> bool:
        self._stream = self._open() if self._stream is None else self._stream
        block = next(self._stream, None)
        if block is None:
            return False
        input_data(
            data=block.x,
            label=block.y,
            weight=block.weight,
            feature_names=self._job.names,
            feature_types=self._job.types,
        )
        return True

    def reset(self) -> None:
        self._stream = None


def _matrix(job: _Job, part: str, context: TrainContext, ref: Any, folder: Path) -> Any:
    if isinstance(job.data, Path):
        if (arrays := rows_of(job.data, part)) is None:
            return None
        own = context.shard(len(arrays))
        weight = None if arrays.weight is None else arrays.weight[own]
        kept = [Block(np.asarray(arrays.x[own]), np.asarray(arrays.y[own]), weight)]
        return _quantile(job, lambda: iter(kept), ref)
    data = job.data
    source = data.source(part)
    if source is None:
        return None
    kept = data.kept if part == "train" else []
    if not kept:
        limit, size = job.trainer.row_memory, 0
        stream = data.blocks(part)
        for block in stream:
            size += block.x.nbytes
            if size > limit:
                kept.clear()
                stream.close()
                return _external(job, lambda: data.blocks(part), ref, folder / part)
            kept.append(block)
    try:
        return _quantile(job, lambda: iter(kept), ref) if kept else None
    finally:
        # What calls back from XGBoost refers to itself: else the rows would stay until memory is collected.
        kept.clear()


def _quantile(job: _Job, open_: Callable[[], Iterator[Block]], ref: Any) -> Any:
    batches = _Batches(job, open_, None)
    return xgboost.QuantileDMatrix(batches, max_bin=job.trainer.max_bin, ref=ref, enable_categorical=True)


def _external(job: _Job, open_: Callable[[], Iterator[Block]], ref: Any, cache: Path) -> Any:
    cache.parent.mkdir(parents=True, exist_ok=True)
    batches = _Batches(job, open_, cache)
    return xgboost.ExtMemQuantileDMatrix(
        batches, max_bin=job.trainer.max_bin, ref=ref, enable_categorical=True
    )


# --- the loop ---------------------------------------------------------------------------------------------------


def _loop(context: TrainContext, job: _Job) -> None:
    import tempfile

    with quiet(job.params), tempfile.TemporaryDirectory(prefix="sp_ray_ml-xgboost-") as folder:
        with ExitStack() as opened:
            train = opened.enter_context(_open(_matrix(job, "train", context, None, Path(folder))))
            validation = opened.enter_context(_open(_matrix(job, "validation", context, train, Path(folder))))
            _boost(context, job, train, validation)


@contextmanager
def _open(matrix: Any) -> Iterator[Any]:
    """Free it at the end, whoever still refers to it (the traceback of an error does): its files are going."""
    try:
        yield matrix
    finally:
        if matrix is not None:
            matrix.__del__()


def _boost(context: TrainContext, job: _Job, train: Any, validation: Any) -> None:
    trainer = job.trainer
    booster = xgboost.Booster(dict(job.params), [train, *([validation] if validation is not None else [])])
    state: dict[str, Any] = {"round": 0, "history": []}
    if checkpoint := context.resume():
        state = read_state(checkpoint)
        booster.load_model(checkpoint / _MODEL)
    elif job.start is not None:
        booster.load_model(bytearray(job.start))
        state["before"] = booster.num_boosted_rounds()
    before = int(state.get("before", 0))
    parts = [(train, job.prefix), *([(validation, "validation")] if validation is not None else [])]
    written = time.monotonic()
    while state["round"] < trainer.num_boost_round and not _stopped(trainer, state):
        began, number = time.perf_counter(), before + state["round"]
        _seed(booster, job, number)
        try:
            booster.update(train, number)
            metrics = measured(booster, parts, number)
        except xgboost.core.XGBoostError as error:
            raise refusal(error, str(job.params["objective"]), job.target.column) from None
        _remember(trainer, state, number, metrics, time.perf_counter() - began)
        last = state["round"] == trainer.num_boost_round or _stopped(trainer, state)
        if trainer.scaling.workers:
            due = state["round"] % _EVERY_ROUNDS == 0
        else:
            due = time.monotonic() - written > _EVERY_S
        shown = {**state["history"][-1], "epochs": trainer.num_boost_round}
        if last and validation is None and context.world_size == 1:
            state["metrics"] = _of_training(booster, job.target, train)
        if last or due:
            context.report(shown, lambda: _files(booster, state), score=float(state["round"]))
            written = time.monotonic()
        else:
            context.log(shown)


def _of_training(booster: Any, target: Target, train: Any) -> dict[str, float]:
    """The metrics on the training rows, whose predictions XGBoost has at hand."""
    measure = metrics_of(target)
    measure.update(as_scores(booster.predict(train), target.outputs), train.get_label())
    return measure.finish()


def _seed(booster: Any, job: _Job, number: int) -> None:
    """Make the round draw what its number says, whatever was drawn before.

    XGBoost draws from a generator that begins anew with each other seed, and, for columns, from a second one that
    lives in what grows the trees. No model file has either. What grows the trees is made anew when another method
    is set and then the first one again; that takes a millisecond, and keeps the rows' predictions, which a new
    booster would have to compute from all trees.
    """
    if draws(job.params):
        booster.set_param({"tree_method": "approx"})
        booster.save_config()  # only now does XGBoost look at what was set
        booster.set_param({"tree_method": "hist"})
    booster.set_param({"seed": hash_seed(job.seed, number) % 2**31})


def _files(booster: Any, state: Mapping[str, Any]) -> dict[str, bytes]:
    return {_MODEL: bytes(booster.save_raw("ubj")), "state.json": json.dumps(state).encode()}


def _remember(
    trainer: XGBoostTrainer, state: dict[str, Any], number: int, metrics: Mapping[str, float], seconds: float
) -> None:
    state["round"] += 1
    if bad := [name for name, value in metrics.items() if not np.isfinite(value)]:
        raise TrainingError(
            f"{bad[0]} is {metrics[bad[0]]} in round {state['round']}",
            where="train",
            hint="Lower train.learning_rate, and look for labels and weights that are far too large",
        )
    state["history"].append({"epoch": state["round"], **metrics, "seconds": seconds})
    if watched := watched_metric(trainer, list(metrics)):
        value = metrics[watched] if larger_is_better(watched) else -metrics[watched]
        if "best" not in state or value > state["best"]:
            state |= {"best": value, "best_round": number}


def _stopped(trainer: XGBoostTrainer, state: Mapping[str, Any]) -> bool:
    stopping = trainer.early_stopping
    if stopping is None or "best_round" not in state:
        return False
    return bool(state["round"] + state.get("before", 0) - 1 - state["best_round"] >= stopping.patience)


def _importance(booster: Any, names: Mapping[str, str]) -> dict[str, float]:
    """The gain of each feature, as shares that add up to 1, largest first."""
    gains = {name: float(value) for name, value in booster.get_score(importance_type="total_gain").items()}
    total = sum(gains.values()) or 1.0
    return {names[name]: gains[name] / total for name in sorted(gains, key=lambda n: -gains[n])}
