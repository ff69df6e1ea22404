"""Settings of batch prediction: where it runs, and what becomes of rows that cannot be predicted. No heavy import."""

from __future__ import annotations

from typing import Annotated

import pydantic

from sp_ray_ml.config import Settings
from sp_ray_ml.train.settings import Scaling

__all__ = ["BatchScaling", "Pool", "Rejected"]


class Pool(Settings):
    """How many workers there are: as many as there is work and room for."""

    min: int = pydantic.Field(ge=1)
    """Workers that there are from the start."""
    max: int = pydantic.Field(ge=1)
    """The most workers."""

    @pydantic.model_validator(mode="after")
    def _in_order(self) -> Pool:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is more than max ({self.max})")
        return self


class BatchScaling(Settings):
    """Where batch prediction runs: in this process, or in actors of Ray Data that each have the model loaded once."""

    workers: Annotated[int, pydantic.Field(ge=0)] | Pool = 0
    """Actors; 0 predicts in this process without starting Ray. `{min: 2, max: 20}` is a pool that grows and shrinks."""
    cpus_per_worker: float = pydantic.Field(default=1, gt=0)
    """CPUs of each actor."""
    gpus_per_worker: float = pydantic.Field(default=0, ge=0)
    """GPUs of each actor. In this process a GPU is used when there is one."""
    memory_per_worker: int | None = pydantic.Field(default=None, ge=1)
    """Bytes of memory of each actor, by which batches are sized; without, its share of the smallest machine."""
    gpu_type: str | None = pydantic.Field(default=None, min_length=1)
    """Only GPUs of this type, by Ray's name for it: `H100`, `A100`, `T4`."""
    max_failures: int = pydantic.Field(default=3, ge=0)
    """How often a partition is given out again whose actor has died; actors themselves are started again."""

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> BatchScaling:
        if self.gpu_type is not None and not self.gpus_per_worker:
            raise ValueError("gpu_type needs gpus_per_worker")
        return self

    @property
    def most(self) -> int:
        """The most actors."""
        return self.workers.max if isinstance(self.workers, Pool) else self.workers

    @property
    def least(self) -> int:
        """The actors there are from the start."""
        return self.workers.min if isinstance(self.workers, Pool) else self.workers

    def as_training(self) -> Scaling:
        """The same as what a training asks for, to check that there is so much."""
        return Scaling(
            workers=self.least,
            cpus_per_worker=self.cpus_per_worker,
            gpus_per_worker=self.gpus_per_worker,
            memory_per_worker=self.memory_per_worker,
            gpu_type=self.gpu_type,
        )


class Rejected(Settings):
    """Rows that cannot be predicted go to a table of their own, with the reason, while there are not too many."""

    table: str | None = pydantic.Field(default=None, min_length=1)
    """The table; `<output>_rejected` without. It has `rejected_row` (the row's number from 0), `rejected_reason` and the
    row's own columns."""
    most: Annotated[int, pydantic.Field(ge=0)] | Annotated[float, pydantic.Field(ge=0, le=1)] = 0.01
    """The most rows, as a number, or as a share of all (0.01). With more, nothing is written."""
