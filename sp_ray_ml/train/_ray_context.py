"""`TrainContext` of a worker of Ray Train: checkpoints go to Ray, what rank 0 says to the driver."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml.train._checkpoints import NEVER_BEST, write_files
from sp_ray_ml.train.context import CheckpointFiles, Metrics, TrainContext

if TYPE_CHECKING:
    import torch

    from sp_ray_ml.train._ray_place import Told

__all__ = ["RayContext"]


class RayContext(TrainContext):
    """A worker of Ray Train."""

    def __init__(self, told: Told) -> None:
        import ray.train

        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self._told = told
        self._copies: list[tempfile.TemporaryDirectory[str]] = []  # gone when the loop has ended
        self.restarts = 0 if self.rank else told.started()

    @cached_property
    def device(self) -> torch.device:
        import ray.train.torch

        return ray.train.torch.get_device()  # type: ignore[no-any-return]

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        import ray.train.torch

        return ray.train.torch.prepare_model(model)  # type: ignore[no-any-return]

    def average(self, value: torch.Tensor) -> torch.Tensor:
        return self.total(value) / self.world_size

    def total(self, value: torch.Tensor) -> torch.Tensor:
        import torch.distributed

        if self.world_size == 1:
            return value
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total

    def gather(self, value: Any) -> list[Any]:
        import torch.distributed

        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(found, value)
        return found

    def report(self, metrics: Metrics, files: Callable[[], CheckpointFiles], *, score: float) -> None:
        self._keep({**metrics, "_score": score}, files)
        self.log(metrics)

    def save(self, files: Callable[[], CheckpointFiles]) -> None:
        self._keep({"_score": NEVER_BEST}, files)

    def _keep(self, values: Metrics, files: Callable[[], CheckpointFiles]) -> None:
        import ray.train

        if self.rank != 0:
            ray.train.report(dict(values))
            return
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder), files())
            ray.train.report(dict(values), checkpoint=ray.train.Checkpoint.from_directory(folder))

    def log(self, metrics: Metrics) -> None:
        if self.rank == 0:
            marked = {**metrics, "restarts": self.restarts} if self.restarts else dict(metrics)
            self._told.add(json.dumps(marked))

    def resume(self) -> Path | None:
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        self._copies.append(tempfile.TemporaryDirectory(prefix="sp_ray_ml-"))
        return Path(checkpoint.to_directory(self._copies[-1].name))

    @property
    def last_checkpoint(self) -> str | None:
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        return None if checkpoint is None else str(checkpoint.path)
