"""How `TensorFlowTrainer` trains: a loop of its own over steps in one graph, in this process or in several workers."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sp_ray_ml.errors import ConfigError, TrainingError
from sp_ray_ml.train._checkpoints import read_state
from sp_ray_ml.train._epochs import Progress, batch_size_of, broken, label_scale
from sp_ray_ml.train._keras import tf
from sp_ray_ml.train._keras_job import Job, Weights, fill_variables, pack, read_tensors, values_of
from sp_ray_ml.train._keras_model import KerasModel
from sp_ray_ml.train._keras_network import own_random
from sp_ray_ml.train._keras_optimizer import LossScale, make_optimizer
from sp_ray_ml.train._keras_step import Stepper
from sp_ray_ml.train._run_loop import run_loop
from sp_ray_ml.train._seeds import hash_seed
from sp_ray_ml.train._table_arrays import write_parts
from sp_ray_ml.train._table_data import TableData, parts_of
from sp_ray_ml.train.context import TrainContext
from sp_ray_ml.train.table import Learned, OnEpoch
from sp_ray_ml.train.table_predictor import metrics_of, padded_scores
from sp_ray_ml.train.torch import ModelInputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sp_ray_ml.train.tensorflow import TensorFlowTrainer

__all__ = ["learn"]

_MODEL, _BEST, _OPTIMIZER = "model.safetensors", "best.safetensors", "optimizer.safetensors"
_SAVE_AFTER_S = 30.0
_EPOCH_AFTER_S = 1.0
# What the first worker measures comes to the others as numbers in this order.
_METRICS = {"regression": ("rmse", "mae", "r2"), "classification": ("log_loss", "accuracy", "f1", "auc")}


def learn(
    trainer: TensorFlowTrainer, data: TableData, *, seed: int, folder: Path, on_epoch: OnEpoch
) -> Learned:
    """See `TableTrainer.learn`."""
    parts = parts_of(data)
    train, spec, start = parts["train"], data.spec, _started(data.start)
    inputs = ModelInputs(
        spec.width, spec.target.outputs, dict(spec.cardinalities), list(spec.names), spec.target.task
    )
    job = Job(
        trainer,
        inputs,
        spec.target,
        parts,
        batch_size_of(trainer.batch_size, len(train)),
        label_scale(trainer.standardize_label, spec.target, train)
        if start is None
        else (start.mean, start.std),
        seed,
        None if start is None else start.to_bytes(),
    )
    with own_random(hash_seed(seed), trainer.precision):
        network, _ = job.network()
        # That it cannot be kept is said before it is trained.
        job.model(None).from_bytes(
            job.model(network).to_bytes(), inputs.width, task=spec.target.task, mean=0.0, std=1.0
        )
    if trainer.scaling.workers:
        job = dataclasses.replace(job, rows=write_parts(parts, folder / "rows"))
    kept = run_loop(_loop, job, trainer.scaling, folder / "checkpoints", on_epoch, backend="tensorflow")
    state = read_state(kept.last)
    best = kept.last / _BEST
    fill_variables(network.variables, read_tensors(best if best.exists() else kept.last / _MODEL), kept.last)
    model = job.model(network)
    held_out = parts.get("validation")
    scores = None if held_out is None or not len(held_out) else padded_scores(model, held_out.x)
    return Learned(model, state["history"], scores)


def _started(model: Any) -> KerasModel | None:
    if model is None or isinstance(model, KerasModel):
        return model
    raise ConfigError(f"a Keras model cannot go on from a {model.kind} model", where="start_from")


# --- the loop ---------------------------------------------------------------------------------------------------


def _loop(context: TrainContext, job: Job) -> None:
    # Sums of gradients in one order, whatever threads do.
    tf.config.experimental.enable_op_determinism()
    strategy = context.strategy if context.world_size > 1 else None
    with own_random(hash_seed(job.seed), job.trainer.precision):
        if strategy is None:
            _Training(context, job, None).run()
        else:
            with strategy.scope():
                _Training(context, job, strategy).run()


class _Training:
    def __init__(self, context: TrainContext, job: Job, strategy: Any) -> None:
        self.context, self.job, self.trainer, self.strategy = context, job, job.trainer, strategy
        train, self.held_out = job.arrays("train"), job.arrays("validation")
        assert train is not None
        self.rows = len(train)
        if self.held_out is not None and not len(self.held_out):
            self.held_out = None
        self.network, objective = job.network()
        self.optimizer = make_optimizer(self.trainer.optimizer)
        self.optimizer.build(self.network.trainable_variables)
        self.scale = LossScale() if self.trainer.precision == "fp16" else None
        self.changing = [*self.optimizer.variables, *(self.scale.variables if self.scale else ())]
        self.state = Progress()
        self.best: Weights | None = None
        self._resume()
        self.stepper = Stepper(
            self.trainer,
            context,
            strategy,
            self.network,
            self.optimizer,
            self.scale,
            objective,
            train,
            job.label,
            job.batch_size,
        )
        self.steps = self.stepper.steps
        self.judge = job.model(self.network)
        self.began = self.saved_at = time.monotonic()

    def _resume(self) -> None:
        folder = self.context.resume()
        if folder is None:
            return
        self.state = Progress.load(folder)
        # Among the variables are the states of what layers draw at random from.
        fill_variables(self.network.variables, read_tensors(folder / _MODEL), folder)
        fill_variables(self.changing, read_tensors(folder / _OPTIMIZER), folder)
        if (folder / _BEST).exists():
            self.best = read_tensors(folder / _BEST)

    def run(self) -> None:
        state = self.state
        while state.epoch < self.trainer.epochs and not self._stopped():
            number = state.epoch + 1
            self._steps(number)
            metrics = {"loss": state.loss / self.steps, **self._validated()}
            self._remember(metrics)
            shown = {**state.history[-1], "epochs": self.trainer.epochs}
            last = number == self.trainer.epochs or self._stopped()
            if last or self._due(_EPOCH_AFTER_S):
                self.context.report(shown, self._files(number), score=float(number))
                self.saved_at = time.monotonic()
            else:
                self.context.log(shown)

    def _order(self, number: int) -> NDArray[np.int64]:
        return np.random.default_rng(hash_seed(self.job.seed, number)).permutation(self.rows)

    def _steps(self, number: int) -> None:
        state, every = self.state, self.trainer.checkpoint_steps
        order = self._order(number)
        while state.step < self.steps:
            count = min(self.stepper.chunk, self.steps - state.step)
            if every is not None:
                done = (number - 1) * self.steps + state.step
                count = min(count, every - done % every)
            rates = [self._rate(number, state.step + place) for place in range(count)]
            losses = self._total(self.stepper.run(order, state.step, count, rates))
            for place, loss in enumerate(losses.tolist()):
                if not math.isfinite(loss):
                    raise self._broken(number, state.step + place, f"the loss is {loss}")
                state.loss += loss
            state.step += count
            if state.step == self.steps:
                return
            done = (number - 1) * self.steps + state.step
            if self._due(_SAVE_AFTER_S) if every is None else done % every == 0:
                self._clock()
                self.context.save(self._files(number))
                self.saved_at = time.monotonic()

    def _rate(self, number: int, step: int) -> float:
        progress = (number - 1 + step / self.steps) / self.trainer.epochs
        return self.trainer.optimizer.learning_rate * self.trainer.schedule.factor(progress)

    def _clock(self) -> None:
        now = time.monotonic()
        self.state.seconds += now - self.began
        self.began = now

    def _due(self, after: float) -> bool:
        """Whether a checkpoint is due, by the clock of the first worker."""
        due = self.context.rank == 0 and time.monotonic() - self.saved_at > after
        return bool(self._total(np.array([float(due)]))[0])

    def _total(self, value: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum over the workers; called by every worker."""
        return value if self.strategy is None else np.asarray(self.context.total(tf.constant(value)))

    def _broken(self, number: int, step: int, what: str) -> TrainingError:
        """The error of a step (from 0) in an epoch (from 1)."""
        batch = self.stepper.fingerprint(self._order(number), step)
        return broken(
            what,
            step=(number - 1) * self.steps + step + 1,
            epoch=number,
            batch=batch,
            last_checkpoint=self.context.last_checkpoint,
            rate=self.trainer.optimizer.learning_rate,
        )

    # --- after an epoch -----------------------------------------------------------------------------------------

    def _validated(self) -> dict[str, float]:
        """Metrics of the validation rows; the first worker measures."""
        if self.held_out is None:
            return {}
        found: dict[str, float] = {}
        if self.context.rank == 0:
            metrics = metrics_of(self.job.target)
            metrics.update(padded_scores(self.judge, self.held_out.x), np.asarray(self.held_out.y))
            found = metrics.finish()
        if self.strategy is not None:
            names = _METRICS[self.job.target.task]
            values = [found.get(name, math.nan) if self.context.rank == 0 else 0.0 for name in names]
            told = self._total(np.array(values, np.float64)).tolist()
            found = {name: value for name, value in zip(names, told, strict=True) if not math.isnan(value)}
        return {f"validation/{name}": value for name, value in found.items()}

    def _remember(self, metrics: Mapping[str, float]) -> None:
        self._clock()
        better = self.state.end_epoch(
            metrics,
            self._rate(self.state.epoch + 1, self.steps - 1),
            self.job.target,
            self.trainer.early_stopping,
        )
        if better and self.context.rank == 0:
            self.best = values_of(self.network.variables)

    def _stopped(self) -> bool:
        return self.state.stopped(self.trainer.early_stopping)

    def _files(self, number: int) -> Callable[[], dict[str, bytes]]:
        """What a checkpoint of now holds."""
        values = values_of(self.network.variables)
        if not all(np.isfinite(value).all() for value in values if value.dtype.kind == "f"):
            raise self._broken(number, (self.state.step or self.steps) - 1, "the weights are not finite")

        def files() -> dict[str, bytes]:
            found = {
                _MODEL: pack(values),
                _OPTIMIZER: pack(values_of(self.changing)),
                "state.json": json.dumps(asdict(self.state)).encode(),
            }
            return found if self.best is None else {**found, _BEST: pack(self.best)}

        return files
