"""What `TorchTrainer` minimizes: a loss for each row or for a batch, weighted and averaged over all workers' rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn import functional as F

from sp_ray_ml.config import Custom
from sp_ray_ml.errors import ConfigError
from sp_ray_ml.train.torch import MAE, MSE, CrossEntropy, Huber, TableLoss

if TYPE_CHECKING:
    from sp_ray_ml.train._table_spec import Target
    from sp_ray_ml.train.torch import TorchTrainer

__all__ = ["Objective"]

_WHERE = "train.loss"


class Objective:
    """The loss of a batch, or of a worker's part of one.

    Args:
        trainer: Says which loss.
        target: What is predicted.
        weighted: Whether rows count differently.
    """

    def __init__(self, trainer: TorchTrainer, target: Target, *, weighted: bool) -> None:
        self._weighted = weighted
        self._flat = target.task == "regression"
        chosen = trainer.loss
        if chosen is None:
            chosen = MSE() if self._flat else CrossEntropy()
        self._own = isinstance(chosen, Custom)
        self._loss = _own(chosen) if isinstance(chosen, Custom) else _built_in(chosen, target)

    def total(self, outputs: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        """The sum of the rows' losses times their weights, a scalar.

        Raises:
            ConfigError: The loss gives neither one number nor one for each row.
        """
        outputs = outputs.float()
        if self._flat:
            outputs = outputs.reshape(-1)
        if not self._own:
            if weight is None:
                return self._loss(outputs, y, "sum")
            return (self._loss(outputs, y, "none") * weight).sum()
        found = self._loss(outputs, y)
        if isinstance(found, torch.Tensor):
            if found.shape == y.shape[:1]:
                return found.sum() if weight is None else (found * weight).sum()
            if not found.ndim:
                return found * len(y)
        kind = (
            f"a tensor {tuple(found.shape)}"
            if isinstance(found, torch.Tensor)
            else f"a {type(found).__name__}"
        )
        raise ConfigError(
            f"the loss must give one number, or one for each of {len(y)} rows, got {kind}",
            where=_WHERE,
            hint="Average or add up over all dimensions but the first",
        )

    def mean(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The mean of the rows' losses, all counting alike."""
        if self._own:
            return self.total(outputs, y, None) / len(y)
        outputs = outputs.float()
        return self._loss(outputs.reshape(-1) if self._flat else outputs, y, "mean")

    def check(self, outputs: torch.Tensor, y: torch.Tensor) -> None:
        """Try it on a few rows.

        Raises:
            ConfigError: It raises, or gives something that cannot be minimized.
        """
        try:
            self.total(outputs, y, torch.ones_like(y, dtype=torch.float32) if self._weighted else None)
            if (
                self._own
                and self._weighted
                and not self._loss(outputs.reshape(y.shape) if self._flat else outputs, y).ndim
            ):
                raise ConfigError(
                    "a loss that gives one number for a batch cannot weigh its rows",
                    where=_WHERE,
                    hint="Give one number for each row, or leave weight and class_weights out",
                )
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"the loss fails on outputs {tuple(outputs.shape)} and labels {tuple(y.shape)}: "
                f"{type(error).__name__}: {error}",
                where=_WHERE,
            ) from error


def _own(chosen: Custom) -> Callable[..., Any]:
    function = chosen.load()
    if inspect.isclass(function):  # torch.nn.HuberLoss, say
        return cast("Callable[..., Any]", function(**chosen.arguments))
    return lambda outputs, y: function(outputs, y, **chosen.arguments)


def _built_in(chosen: TableLoss, target: Target) -> Callable[..., torch.Tensor]:
    if isinstance(chosen, CrossEntropy) == (target.task == "regression"):
        other = "mse, mae or huber" if target.task == "regression" else "cross_entropy"
        raise ConfigError(
            f"{type(chosen).__name__} is no loss for a {target.task}", where=_WHERE, hint=f"Set loss: {other}"
        )
    if isinstance(chosen, CrossEntropy):
        smoothing = chosen.label_smoothing
        return lambda outputs, y, reduction: F.cross_entropy(
            outputs, y, reduction=reduction, label_smoothing=smoothing
        )
    if isinstance(chosen, Huber):
        delta = chosen.delta
        return lambda outputs, y, reduction: F.huber_loss(outputs, y, reduction=reduction, delta=delta)
    if isinstance(chosen, MSE):
        return lambda outputs, y, reduction: F.mse_loss(outputs, y, reduction=reduction)
    if isinstance(chosen, MAE):
        return lambda outputs, y, reduction: F.l1_loss(outputs, y, reduction=reduction)
    raise ConfigError(f"unknown loss {type(chosen).__name__}", where=_WHERE)
