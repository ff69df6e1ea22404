"""One step of `TorchTrainer`: forward, backward and the weights' change, divided among workers to the same result."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sp_ray_ml.train._torch_data import Rows
    from sp_ray_ml.train._torch_losses import Objective
    from sp_ray_ml.train.context import TrainContext
    from sp_ray_ml.train.torch import TorchTrainer

__all__ = ["Stepper"]

_SPECK = 1e-30


class Stepper:
    """Takes steps.

    Args:
        trainer: The settings.
        context: Which part of a batch is this worker's.
        model: The network as `context.prepare` gave it.
        optimizer: Changes the weights.
        scaler: Scales losses of 16 bits; without effect where it is not enabled.
        rows: All rows.
        objective: The loss.
        batch_size: Rows of one forward pass, over all workers.
    """

    def __init__(
        self,
        trainer: TorchTrainer,
        context: TrainContext,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        rows: Rows,
        objective: Objective,
        batch_size: int,
    ) -> None:
        self._model, self._optimizer, self._scaler = model, optimizer, scaler
        self._rows, self._objective = rows, objective
        self._rank, self._world = context.rank, context.world_size
        self._batch_size, self._clip = batch_size, trainer.clip
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._precision = trainer.precision
        self._device = context.device.type
        self._on_cpu = self._device == "cpu"
        self._whole = self._world == 1 and trainer.accumulate == 1

    def step(self, rows: torch.Tensor) -> torch.Tensor:
        """Learn from a step's rows.

        Args:
            rows: int64 [rows], the same on all workers; divided into batches, and these among the workers.

        Returns:
            This worker's part of the mean loss, without gradient: over all workers they add up to the mean.
        """
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._gradients(rows)
        if self._scaler.is_enabled():
            if self._clip is not None:
                self._scaler.unscale_(self._optimizer)
                torch.nn.utils.clip_grad_norm_(self._weights, self._clip)
            self._scaler.step(self._optimizer)
            self._scaler.update()
        else:
            if self._clip is not None:
                torch.nn.utils.clip_grad_norm_(self._weights, self._clip)
            self._optimizer.step()
        return loss

    def _gradients(self, rows: torch.Tensor) -> torch.Tensor:
        weight = self._rows.weight(rows)
        if self._whole and weight is None:
            x, y, _ = self._rows.take(rows)
            with self._autocast():
                loss = self._objective.mean(self._outputs(x), y)
            self._backward(loss)
            return loss.detach()
        total = len(rows) if weight is None else weight.clamp(min=1e-12)
        batches = torch.split(rows, self._batch_size)
        found = []
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with contextlib.nullcontext() if last or self._world == 1 else self._model.no_sync():  # type: ignore[operator]
                loss = self._part(batch) / total
                # Workers' gradients are averaged, and each has but its share of the rows: their sum is wanted.
                self._backward(loss * self._world)
            found.append(loss.detach())
        return torch.stack(found).sum() if len(found) > 1 else found[0]

    def _part(self, batch: torch.Tensor) -> torch.Tensor:
        """The summed loss of this worker's rows of a batch."""
        first = len(batch) * self._rank // self._world
        own = batch[first : len(batch) * (self._rank + 1) // self._world]
        nothing = not len(own)
        # All workers must go through the network, or the others would wait: without rows, with some that count nothing.
        x, y, weight = self._rows.take(batch[:2] if nothing else own)
        with self._autocast():
            loss = self._objective.total(self._outputs(x), y, weight)
        return loss * 0.0 if nothing else loss

    def _outputs(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self._model(x)
        if self._on_cpu and outputs.requires_grad:
            outputs.register_hook(_without_specks)  # type: ignore[no-untyped-call]
        return outputs

    def _backward(self, loss: torch.Tensor) -> None:
        (self._scaler.scale(loss) if self._scaler.is_enabled() else loss).backward()  # type: ignore[no-untyped-call]

    def _autocast(self) -> Any:
        if self._precision == "32":
            return contextlib.nullcontext()
        kind = torch.bfloat16 if self._precision == "bf16" else torch.float16
        return torch.autocast(self._device, dtype=kind)


def _without_specks(gradient: torch.Tensor) -> torch.Tensor:
    """Rows that are predicted with certainty give gradients so small that their products are denormal numbers.

    With these a CPU's matrix products take several times as long, and the weights are the same. Not `hardshrink`:
    it would turn NaN into 0. Nor the processor's own mode: threads that were started before would not have it.
    """
    return torch.where(gradient.abs() < _SPECK, 0.0, gradient)
