"""Settings that all trainers share: where to train, when to stop, how the learning rate runs."""

from __future__ import annotations

from typing import Literal

import pydantic

from sp_ray_ml.config import Settings

__all__ = ["EarlyStopping", "Scaling", "Schedule"]


class Scaling(Settings):
    """Where training runs: in this process, or in workers of Ray Train."""

    workers: int = pydantic.Field(default=0, ge=0)
    """Worker processes of Ray Train; 0 trains in this process without starting Ray."""
    cpus_per_worker: float = pydantic.Field(default=1, gt=0)
    """CPUs of each worker."""
    gpus_per_worker: float = pydantic.Field(default=0, ge=0)
    """GPUs of each worker. In this process (`workers: 0`) a GPU is used when there is one."""
    memory_per_worker: int | None = pydantic.Field(default=None, ge=1)
    """Bytes of memory that each worker gets to itself; without, it is not counted."""
    gpu_type: str | None = pydantic.Field(default=None, min_length=1)
    """Only GPUs of this type, by Ray's name for it: `H100`, `A100`, `T4`."""
    elastic: tuple[int, int] | None = None
    """The fewest and the most workers, around `workers`, where machines come and go: training takes as many as there is
    room for, and goes on from the last checkpoint when that changes."""
    max_failures: int = pydantic.Field(default=0, ge=0)
    """How often the workers are started again from the last checkpoint after one has died."""

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> Scaling:
        if self.gpu_type is not None and not self.gpus_per_worker:
            raise ValueError("gpu_type needs gpus_per_worker")
        if self.elastic is not None:
            low, high = self.elastic
            if not 1 <= low <= self.workers <= high:
                raise ValueError(
                    f"elastic: [{low}, {high}] must have 1 <= {low} <= workers ({self.workers}) <= {high}"
                )
        return self


class EarlyStopping(Settings):
    """Stop when the validation slice gets no better."""

    metric: str | None = None
    """Watched metric of the validation slice; without, the trainer's own: `ndcg@20` of a recommender, the loss of what
    predicts a label."""
    patience: int = pydantic.Field(default=20, ge=1)
    """Epochs without a better value before training stops."""


class Schedule(Settings):
    """How the learning rate runs over the epochs."""

    kind: Literal["constant", "cosine", "linear"] = "constant"
    """Constant, or falling to `final` of it by half a cosine or in a line."""
    warmup: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Share of all steps during which the rate rises from 0."""
    final: float = pydantic.Field(default=0.0, ge=0, le=1)
    """The last rate as a share of the first."""

    def factor(self, progress: float) -> float:
        """What the learning rate is multiplied by when this share of training (0 to 1) is done."""
        import math

        if progress < self.warmup:
            return progress / self.warmup
        if self.kind == "constant":
            return 1.0
        after = (progress - self.warmup) / (1 - self.warmup)
        falling = 1 - after if self.kind == "linear" else (1 + math.cos(math.pi * after)) / 2
        return self.final + (1 - self.final) * falling
