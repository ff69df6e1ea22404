"""Epochs of a GNN's training, whatever it is trained for: steps, looks at the loss, checkpoints, and when to stop."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from sp_ray_ml.errors import ConfigError, TrainingError
from sp_ray_ml.metrics.supervised import larger_is_better
from sp_ray_ml.train._seeds import hash_seed
from sp_ray_ml.train._torch_random import random_state, restore_random
from sp_ray_ml.train.context import TrainContext

if TYPE_CHECKING:
    from sp_ray_ml.train.pyg import PyGTrainer

__all__ = ["Epochs", "load_weights", "measured", "threads_for"]

_LOOK_EVERY = 64  # steps between two looks at their losses, for which a GPU is waited for
_SAVE_AFTER_S = 30.0
_SMALL = 4_000_000
_OF_TRAINING = frozenset({"loss", "learning_rate", "epoch", "phase", "seconds"})


class Epochs(ABC):
    """Training from where a checkpoint was to the last epoch; `state` is all that is kept beside the tensors.

    Args:
        context: Where it runs.
        trainer: How.
        seed: Of all that is drawn.
        phase: Part of a training that has several.
        state: Where it was.
        checkpoint: What has the tensors of then.
        choosing: Whether epochs are compared; otherwise the last is the best.
    """

    main: ClassVar[str]
    """The metric that epochs are compared by where none is named."""
    order: NDArray[np.int64]
    """What the epoch goes over."""

    def __init__(
        self,
        context: TrainContext,
        trainer: PyGTrainer,
        seed: int,
        phase: int,
        state: dict[str, Any],
        checkpoint: Path | None,
        *,
        choosing: bool,
    ) -> None:
        self.context, self.trainer, self.seed, self.phase = context, trainer, seed, phase
        self.state = {"step": 0, "loss": 0.0, **state}
        self.choosing = choosing
        torch.manual_seed(hash_seed(seed, phase))
        self.network = self.build()
        if checkpoint:
            self.network.load_state_dict(load_weights(checkpoint))
        self.model = self.prepare()
        kind = torch.optim.AdamW if trainer.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = kind(
            self.network.parameters(), lr=trainer.learning_rate, weight_decay=trainer.weight_decay
        )
        if checkpoint:
            saved = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(saved["optimizer"])
        self.random: list[dict[str, torch.Tensor]] = saved["random"] if checkpoint else []
        self.pending: list[torch.Tensor] = []
        self.saved_at = time.monotonic()

    @abstractmethod
    def build(self) -> torch.nn.Module:
        """Make the network."""

    def prepare(self) -> torch.nn.Module:
        """Move it to the device."""
        return self.network.to(self.context.device)

    @abstractmethod
    def drawn(self, number: int) -> NDArray[np.int64]:
        """Draw an epoch, before its losses; what it goes over, in order, `batch_size` of them a step."""

    @abstractmethod
    def losses(self, number: int, first: int) -> Iterator[torch.Tensor]:
        """The loss of each step of an epoch from the `first` on: over the workers, their mean is that of the batch."""

    def batch_of(self, step: int) -> NDArray[np.int64]:
        """What a step of the epoch goes over, by all workers."""
        size = self.trainer.batch_size
        return self.order[step * size : (step + 1) * size]

    @abstractmethod
    def validated(self) -> dict[str, float]:
        """Metrics after an epoch."""

    @property
    def watched(self) -> str:
        """The metric that epochs are compared by."""
        stopping = self.trainer.early_stopping
        return stopping.metric if stopping and stopping.metric else self.main

    @property
    def epochs(self) -> int:
        """How many, at most."""
        return self.trainer.epochs

    def average_gradients(self) -> None:
        """Make each gradient the mean of all workers'; what nobody has one of stays without.

        Not PyTorch's wrapper: a worker may have no seed in a batch, and a batch no edge of some type, so that workers
        would wait for gradients that do not come.
        """
        if self.context.world_size == 1:
            return
        weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        there = torch.tensor([float(weight.grad is not None) for weight in weights])
        parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in weights]
        flat = torch.cat([there.to(parts[0]), *(part.flatten() for part in parts)])
        sizes = [len(weights), *(part.numel() for part in parts)]
        there, *means = torch.split(self.context.average(flat), sizes)
        for weight, mean, somewhere in zip(weights, means, there.tolist(), strict=True):
            weight.grad = mean.view_as(weight) if somewhere else None

    def run(self) -> dict[str, Any]:
        """Train until the last epoch, or until nothing gets better."""
        while self.state["epoch"] < self.epochs and not self._stopped():
            began = time.perf_counter()
            number = self.state["epoch"] + 1
            self._seed(number)
            loss = self._train(number)
            metrics: dict[str, Any] = {"loss": loss, "learning_rate": self.optimizer.param_groups[0]["lr"]}
            metrics |= self.validated()
            metrics |= {"epoch": number, "phase": self.phase, "seconds": time.perf_counter() - began}
            self._remember(number, metrics)
            # Where there is nothing to compare by, the last is the best.
            last = math.inf if number == self.epochs else 1e9 + number
            score = self.state["score"] if self.choosing else last
            self.saved_at = time.monotonic()
            self.context.report({**metrics, "epochs": self.epochs}, self._files(), score=score)
        return self.state

    def _seed(self, number: int) -> None:
        """What is drawn in an epoch comes from its number; in the midst of one, from where the generators were."""
        if self.state["step"] and len(self.random) == self.context.world_size:
            restore_random(self.random[self.context.rank], self.context.device)
        else:
            # In the midst of an epoch only where there are other workers now than there were.
            amid = [self.state["step"]] if self.state["step"] else []
            torch.manual_seed(hash_seed(self.seed, self.phase, number, *amid))
        self.random = []

    def _train(self, number: int) -> float:
        self.model.train()
        state = self.state
        self.order = self.drawn(number)
        steps = math.ceil(len(self.order) / self.trainer.batch_size)
        for loss in self.losses(number, state["step"]):
            progress = (number - 1 + state["step"] / steps) / self.trainer.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = self.trainer.learning_rate * self.trainer.schedule.factor(progress)
            self.optimizer.zero_grad(set_to_none=True)
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            self.average_gradients()
            self.optimizer.step()
            self.pending.append(loss.detach())
            state["step"] += 1
            if state["step"] < steps and self._due(number, steps):
                self.saved_at = time.monotonic()
                self.context.save(self._files())
        if self.pending:
            self._look(number, math.inf)
        mean = float(state["loss"]) / max(1, steps)
        state["step"], state["loss"] = 0, 0.0
        return mean

    def _due(self, number: int, steps: int) -> bool:
        """Whether a checkpoint is due after a step amid an epoch; the losses were looked at then."""
        every = self.trainer.checkpoint_steps
        if every is None:
            return len(self.pending) == _LOOK_EVERY and self._look(number, _SAVE_AFTER_S)
        due: bool = ((number - 1) * steps + self.state["step"]) % every == 0
        if due or len(self.pending) == _LOOK_EVERY:
            self._look(number, math.inf)
        return due

    def _look(self, number: int, after: float) -> bool:
        """Wait for the steps that were begun and look at their losses, all workers at what all of them add up to.

        Returns:
            Whether by the clock of rank 0 the last checkpoint is older than `after` seconds.
        """
        due = self.context.rank == 0 and time.monotonic() - self.saved_at > after
        seen = torch.stack([*self.pending, self.pending[0].new_tensor(float(due))]).double()
        *losses, due_somewhere = self.context.average(seen).tolist()
        for place, loss in enumerate(losses):
            if not math.isfinite(loss):
                self._broken(number, self.state["step"] - len(losses) + place, loss)
            self.state["loss"] += loss
        self.pending.clear()
        return bool(due_somewhere)

    def _broken(self, number: int, step: int, loss: float) -> NoReturn:
        batch = hashlib.sha256(self.batch_of(step).tobytes()).hexdigest()[:16]
        last = self.context.last_checkpoint
        raise TrainingError(
            f"the loss is {loss} in step {step + 1} of epoch {number} (batch {batch}); "
            + (f"the last good checkpoint is {last}" if last else "there is no checkpoint before it"),
            where="train",
            hint=f"Lower train.learning_rate (it is {self.trainer.learning_rate:g})",
        )

    def _remember(self, number: int, metrics: dict[str, Any]) -> None:
        history = [*self.state["history"], metrics]
        self.state = {**self.state, "epoch": number, "history": history}
        if not self.choosing:
            return
        if self.watched not in metrics:
            known = ", ".join(measured(metrics))
            raise ConfigError(
                f"unknown metric {self.watched!r} (known: {known})", where="train.early_stopping.metric"
            )
        score = metrics[self.watched] if larger_is_better(self.watched) else -metrics[self.watched]
        if score > self.state.get("best_score", -math.inf):
            self.state |= {"best_score": score, "best_epoch": number}
        self.state["score"] = score

    def _stopped(self) -> bool:
        stopping = self.trainer.early_stopping
        if not self.choosing or stopping is None or "best_epoch" not in self.state:
            return False
        return bool(self.state["epoch"] - self.state["best_epoch"] >= stopping.patience)

    def _files(self) -> Callable[[], dict[str, bytes]]:
        """What a checkpoint of now holds; called by every worker."""
        from safetensors.torch import save

        if not all(bool(torch.isfinite(weight).all()) for weight in self.network.parameters()):
            last = self.context.last_checkpoint
            raise TrainingError(
                f"the weights are not finite after step {self.state['step']} of epoch {self.state['epoch'] + 1}; "
                + (f"the last good checkpoint is {last}" if last else "there is no checkpoint before it"),
                where="train",
                hint=f"Lower train.learning_rate (it is {self.trainer.learning_rate:g})",
            )
        everyones = self.context.gather(random_state(self.context.device))

        def files() -> dict[str, bytes]:
            tensors = io.BytesIO()
            torch.save({"optimizer": self.optimizer.state_dict(), "random": everyones}, tensors)
            return {
                "model.safetensors": save({k: v.contiguous() for k, v in self.network.state_dict().items()}),
                "optimizer.pt": tensors.getvalue(),
                "state.json": json.dumps(self.state).encode(),
            }

        return files


def measured(entry: Mapping[str, Any]) -> dict[str, float]:
    """What was validated, of an epoch's entry in the history."""
    return {name: value for name, value in entry.items() if name not in _OF_TRAINING}


def load_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Those in a checkpoint."""
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = load_file(checkpoint / "model.safetensors")
    return weights


@contextlib.contextmanager
def threads_for(size: int) -> Iterator[None]:
    """One thread for a small step: its operations are so short that threads mostly wait for one another.

    Three times faster than two threads on a machine that does anything else, and never much slower.

    Args:
        size: How many numbers a step works on.
    """
    before = torch.get_num_threads()
    if size < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
