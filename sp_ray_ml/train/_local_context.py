"""`TrainContext` of this process, without Ray: checkpoints are written while the next epoch trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sp_ray_ml.train._checkpoints import NEVER_BEST, Checkpoints
from sp_ray_ml.train.context import CheckpointFiles, Metrics, TrainContext

if TYPE_CHECKING:
    import torch

__all__ = ["LocalContext"]

_LONG_EPOCH_S = 1.0


class LocalContext(TrainContext):
    """This process: one worker, on the GPU when there is one."""

    rank, world_size = 0, 1

    def __init__(self, folder: Path, on_report: Callable[[Metrics], None]) -> None:
        self._checkpoints = Checkpoints(folder)
        self._on_report = on_report
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="sp_ray_ml-checkpoint")
        self._writing: Future[None] | None = None
        self._untold: Metrics | None = None
        self._reported_at = -math.inf

    def __enter__(self) -> LocalContext:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._disk.shutdown()
        # Also after an error: who goes on from the last checkpoint hears of its epoch no more. But the first error counts.
        if kind is None or self._writing is None or self._writing.exception() is None:
            self._written()

    @cached_property
    def device(self) -> torch.device:
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def log(self, metrics: Metrics) -> None:
        self._written()
        self._on_report(metrics)

    def _written(self) -> None:
        """Wait for the checkpoint that is being written, and tell of its epoch: what was told of is on disk."""
        if self._writing is not None:
            self._writing.result()
        if self._untold is not None:
            metrics, self._untold = self._untold, None
            self._on_report(metrics)

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        return model.to(self.device)

    def report(self, metrics: Metrics, files: Callable[[], CheckpointFiles], *, score: float) -> None:
        self._written()
        self._writing = self._disk.submit(self._checkpoints.add, files(), score)
        self._untold = metrics
        before, self._reported_at = self._reported_at, time.monotonic()
        if self._reported_at - before > _LONG_EPOCH_S:
            # Nobody waits an epoch for news of the last one; beside a long one the write takes no time.
            self._written()

    def save(self, files: Callable[[], CheckpointFiles]) -> None:
        self._written()
        self._writing = self._disk.submit(self._checkpoints.add, files(), NEVER_BEST)

    def resume(self) -> Path | None:
        return self._checkpoints.last

    @property
    def last_checkpoint(self) -> str | None:
        self._written()
        return None if self._checkpoints.last is None else str(self._checkpoints.last)
