"""How `TorchTrainer` trains: all rows in one tensor, each step's rows taken by a permutation of the epoch's own."""

from __future__ import annotations

import contextlib
import io
import json
import math
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save

from sp_ray_ml.errors import CheckpointError, ConfigError, TrainingError
from sp_ray_ml.train._checkpoints import read_state
from sp_ray_ml.train._epochs import Progress, batch_size_of, broken, label_scale
from sp_ray_ml.train._run_loop import run_loop
from sp_ray_ml.train._seeds import hash_seed
from sp_ray_ml.train._table_arrays import write_parts
from sp_ray_ml.train._table_data import TableData, parts_of
from sp_ray_ml.train._torch_data import Rows
from sp_ray_ml.train._torch_job import Job, fill, first_network, make_optimizer, read_weights
from sp_ray_ml.train._torch_losses import Objective
from sp_ray_ml.train._torch_model import TorchModel, build, inputs_of, named, weights_of
from sp_ray_ml.train._torch_random import random_state, restore_random
from sp_ray_ml.train._torch_step import Stepper
from sp_ray_ml.train.context import TrainContext
from sp_ray_ml.train.table import Learned, OnEpoch
from sp_ray_ml.train.table_predictor import BATCH_ROWS, metrics_of, padded_scores

if TYPE_CHECKING:
    from sp_ray_ml.train.torch import TorchTrainer

__all__ = ["learn"]

_MODEL, _BEST, _TENSORS = "model.safetensors", "best.safetensors", "optimizer.pt"
_LOOK_EVERY = 64
_SAVE_AFTER_S = 30.0
_EPOCH_AFTER_S = 1.0
_SMALL = 2_000_000


def learn(trainer: TorchTrainer, data: TableData, *, seed: int, folder: Path, on_epoch: OnEpoch) -> Learned:
    """See `TableTrainer.learn`."""
    parts = parts_of(data)
    train = parts["train"]
    start = _started(data.start)
    job = Job(
        trainer,
        inputs_of(data.spec),
        data.spec.target,
        parts,
        batch_size_of(trainer.batch_size, len(train)),
        label_scale(trainer.standardize_label, data.spec.target, train)
        if start is None
        else (start.mean, start.std),
        named(trainer.model),
        seed,
        None if start is None else weights_of(start.network),
    )
    with torch.random.fork_rng():
        if trainer.scaling.workers:
            # What is wrong with the model or the loss is said before any worker is started.
            first_network(job, torch.device("cpu"), train)
            job = replace(job, rows=write_parts(parts, folder / "rows"))
        kept = run_loop(_loop, job, trainer.scaling, folder / "checkpoints", on_epoch)
        state = read_state(kept.last)
        network = build(trainer.model, job.inputs)
    best = kept.last / _BEST
    fill(network, read_weights(best if best.exists() else kept.last / _MODEL), kept.last)
    model = job.model(network)
    held_out = parts.get("validation")
    scores = None if held_out is None or not len(held_out) else padded_scores(model, held_out.x)
    return Learned(model, state["history"], scores)


def _started(model: Any) -> TorchModel | None:
    if model is None or isinstance(model, TorchModel):
        return model
    raise ConfigError(f"a network cannot go on from a {model.kind} model", where="start_from")


# --- the loop ---------------------------------------------------------------------------------------------------


def _loop(context: TrainContext, job: Job) -> None:
    with _threads(job):
        _Training(context, job).run()


@contextlib.contextmanager
def _threads(job: Job) -> Iterator[None]:
    """One thread for a small batch: its operations are so short that threads mostly wait for one another."""
    before = torch.get_num_threads()
    if job.batch_size * job.inputs.width * 64 < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Training:
    """Training from where the last checkpoint was to the last epoch."""

    def __init__(self, context: TrainContext, job: Job) -> None:
        self.context, self.job, self.trainer = context, job, job.trainer
        self.device = context.device
        train = job.arrays("train")
        assert train is not None
        self.train, self.held_out = train, job.arrays("validation")
        if self.held_out is not None and not len(self.held_out):
            self.held_out = None
        if self.trainer.precision == "fp16" and self.device.type != "cuda":
            raise ConfigError("fp16 needs a GPU", where="train.precision", hint="Set precision: bf16, or 32")
        self.network = first_network(job, self.device, train)
        self.objective = Objective(self.trainer, job.target, weighted=train.weight is not None)
        self.state = Progress()
        self.best: dict[str, torch.Tensor] | None = None
        self.random: list[dict[str, torch.Tensor]] | None = None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.trainer.precision == "fp16")
        saved = self._resumed()
        self.model = context.prepare(self.network)
        self.optimizer = make_optimizer(self.trainer.optimizer, self.network, self.device)
        if saved is not None:
            self.optimizer.load_state_dict(saved["optimizer"])
            self.scaler.load_state_dict(saved["scaler"])
        self.judge = job.model(self.network, self.device)
        self.rows = Rows(train, job.label, self.device)
        self.stepper = Stepper(
            self.trainer,
            context,
            self.model,
            self.optimizer,
            self.scaler,
            self.rows,
            self.objective,
            job.batch_size,
        )
        self.group = job.batch_size * self.trainer.accumulate
        self.steps = math.ceil(len(train) / self.group)
        self.pending: list[torch.Tensor] = []
        self.saved_at = self.began = time.monotonic()

    def _resumed(self) -> dict[str, Any] | None:
        folder = self.context.resume()
        if folder is None:
            return None
        self.state = Progress.load(folder)
        try:
            saved: dict[str, Any] = torch.load(folder / _TENSORS, map_location="cpu", weights_only=True)
            self.random = saved["random"]
        except (TypeError, KeyError, OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"cannot be gone on from: {error}", where=str(folder)) from None
        fill(self.network, read_weights(folder / _MODEL), folder)
        if (folder / _BEST).exists():
            self.best = read_weights(folder / _BEST)
        return saved

    # --- epochs -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train until the last epoch, or until nothing gets better."""
        state = self.state
        while state.epoch < self.trainer.epochs and not self._stopped():
            number = state.epoch + 1
            self.began = time.monotonic()
            self._seed(number)
            due = self._train(number)
            metrics = {"loss": state.loss / self.steps, **self._validated()}
            self._remember(metrics)
            shown = {**state.history[-1], "epochs": self.trainer.epochs}
            if due or number == self.trainer.epochs or self._stopped():
                self.saved_at = time.monotonic()
                self.context.report(shown, self._files(), score=float(number))
            else:
                self.context.log(shown)

    def _seed(self, number: int) -> None:
        """What is drawn in an epoch comes from its number; in the midst of one, from where the generators were."""
        if self.random is not None and self.state.step and len(self.random) == self.context.world_size:
            restore_random(self.random[self.context.rank], self.device)
        else:
            torch.manual_seed(hash_seed(self.job.seed, number, self.context.rank, self.state.step))
        self.random = None

    def _train(self, number: int) -> bool:
        """The epoch's steps that are left; whether a checkpoint is due after them."""
        state, trainer, step_of = self.state, self.trainer, self.stepper.step
        self.model.train()
        order = self.rows.order(hash_seed(self.job.seed, number))
        scheduled = trainer.schedule.kind != "constant" or trainer.schedule.warmup > 0
        before = (number - 1) * self.steps
        for step in range(state.step, self.steps):
            if scheduled:
                self._set_rate((before + step) / (self.steps * trainer.epochs))
            self.pending.append(step_of(order[step * self.group : (step + 1) * self.group]))
            state.step = step + 1
            if state.step == self.steps:
                break
            if trainer.checkpoint_steps is not None:
                due = (before + state.step) % trainer.checkpoint_steps == 0
                if due or len(self.pending) == _LOOK_EVERY:
                    self._look(number, math.inf)
            else:
                due = len(self.pending) == _LOOK_EVERY and self._look(number, _SAVE_AFTER_S)
            if due:
                self._clock()
                self.saved_at = time.monotonic()
                self.context.save(self._files())
        due = self._look(number, _EPOCH_AFTER_S)
        return due or bool(trainer.checkpoint_steps and number * self.steps % trainer.checkpoint_steps == 0)

    def _set_rate(self, progress: float) -> None:
        rate = self.trainer.optimizer.learning_rate * self.trainer.schedule.factor(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _clock(self) -> None:
        now = time.monotonic()
        self.state.seconds += now - self.began
        self.began = now

    def _look(self, number: int, after: float) -> bool:
        """Wait for the steps that were begun and look at their losses, all workers at what all of them add up to.

        Args:
            number: The epoch.
            after: Seconds since the last checkpoint from which another one is due.

        Returns:
            Whether one is due, by the clock of rank 0.
        """
        due = self.context.rank == 0 and time.monotonic() - self.saved_at > after
        seen = torch.stack([*self.pending, self.pending[0].new_tensor(float(due))]).double()
        *losses, due_somewhere = self.context.total(seen).tolist()
        for place, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise self._broken(number, self.state.step - len(losses) + place, f"the loss is {loss}")
            self.state.loss += loss
        self.pending.clear()
        return bool(due_somewhere)

    def _broken(self, number: int, step: int, what: str) -> TrainingError:
        """The error of a step (from 0) in an epoch (from 1)."""
        order = self.rows.order(hash_seed(self.job.seed, number))
        batch = self.rows.fingerprint(order[step * self.group : (step + 1) * self.group])
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
        """Metrics of the validation rows, each worker scoring its part of the batches."""
        if self.held_out is None:
            return {}
        held_out, context = self.held_out, self.context
        mine = context.shard(math.ceil(len(held_out) / BATCH_ROWS))
        own = slice(mine.start * BATCH_ROWS, mine.stop * BATCH_ROWS)
        metrics = metrics_of(self.job.target)
        self.network.eval()
        if len(held_out.y[own]):
            metrics.update(padded_scores(self.judge, held_out.x[own]), np.asarray(held_out.y[own]))
        first, *others = context.gather(metrics)
        for other in others:
            first.merge(other)
        return {f"validation/{name}": value for name, value in first.finish().items()}

    def _remember(self, metrics: Mapping[str, float]) -> None:
        self._clock()
        better = self.state.end_epoch(
            metrics, self.optimizer.param_groups[0]["lr"], self.job.target, self.trainer.early_stopping
        )
        if better and self.context.rank == 0:
            self.best = weights_of(self.network)

    def _stopped(self) -> bool:
        return self.state.stopped(self.trainer.early_stopping)

    def _files(self) -> Callable[[], dict[str, bytes]]:
        """What a checkpoint of now holds; called by every worker."""
        if not all(bool(torch.isfinite(weight).all()) for weight in self.network.parameters()):
            epoch, step = (
                (self.state.epoch + 1, self.state.step) if self.state.step else (self.state.epoch, self.steps)
            )
            raise self._broken(epoch, step - 1, "the weights are not finite")
        everyones = self.context.gather(random_state(self.device))

        def files() -> dict[str, bytes]:
            tensors = io.BytesIO()
            state = {
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "random": everyones,
            }
            torch.save(state, tensors)
            found = {
                _MODEL: save(weights_of(self.network)),
                _TENSORS: tensors.getvalue(),
                "state.json": json.dumps(asdict(self.state)).encode(),
            }
            return found if self.best is None else {**found, _BEST: save(self.best)}

        return files
