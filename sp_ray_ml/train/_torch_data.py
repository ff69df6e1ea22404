"""All rows of a training as tensors where the network is, or beside it in memory that the GPU reads by itself."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import torch

from sp_ray_ml.train._table_arrays import Arrays

__all__ = ["Batch", "Rows"]

_GPU_SHARE = 0.5


class Batch(NamedTuple):
    """Some rows on the device.

    Attributes:
        x: float32 [rows, width].
        y: float32 [rows] or int64 [rows].
        weight: float32 [rows], or None where all rows count alike.
    """

    x: torch.Tensor
    y: torch.Tensor
    weight: torch.Tensor | None


class Rows:
    """The training rows.

    Args:
        arrays: The rows; memory that they have on the CPU is shared, not copied.
        label: Mean and standard deviation that a regression's label is measured in.
        device: Where batches are wanted. All rows lie there if they take less than half of what is free.
    """

    def __init__(self, arrays: Arrays, label: tuple[float, float], device: torch.device) -> None:
        self.device = device
        self._x = torch.from_numpy(arrays.x)
        mean, std = label
        standard = arrays.y if (mean, std) == (0.0, 1.0) else ((arrays.y - mean) / std).astype(np.float32)
        self._y = torch.from_numpy(np.ascontiguousarray(standard))
        self._weight = (
            None if arrays.weight is None else torch.from_numpy(np.ascontiguousarray(arrays.weight))
        )
        self._beside = False
        if device.type == "cuda":
            size = arrays.x.nbytes + arrays.y.nbytes
            self._beside = size > torch.cuda.mem_get_info(device)[0] * _GPU_SHARE
            if not self._beside:
                self._x, self._y = self._x.to(device), self._y.to(device)
                self._weight = None if self._weight is None else self._weight.to(device)

    def __len__(self) -> int:
        return len(self._y)

    def order(self, seed: int) -> torch.Tensor:
        """A permutation of the rows, int64 [rows], the same for the same seed on every machine and worker."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return order if self._beside else order.to(self.device)

    def take(self, rows: torch.Tensor) -> Batch:
        """The rows at some places of `order`, on the device."""
        if self._beside:
            weight = None if self._weight is None else self._sent(self._weight, rows)
            return Batch(self._sent(self._x, rows), self._sent(self._y, rows), weight)
        weight = None if self._weight is None else self._weight.index_select(0, rows)
        return Batch(self._x.index_select(0, rows), self._y.index_select(0, rows), weight)

    def weight(self, rows: torch.Tensor) -> torch.Tensor | None:
        """What some rows' weights add up to, a scalar on the device; None where all count alike."""
        if self._weight is None:
            return None
        return self._weight.index_select(0, rows).sum().to(self.device)

    def _sent(self, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        # PyTorch keeps pinned memory from being used anew until the copy from it is done.
        found = torch.empty((len(rows), *values.shape[1:]), dtype=values.dtype, pin_memory=True)
        torch.index_select(values, 0, rows, out=found)
        return found.to(self.device, non_blocking=True)

    def fingerprint(self, rows: torch.Tensor) -> str:
        """SHA-256 of some rows as the network is given them, its first 16 digits."""
        digest = hashlib.sha256()
        for part in self.take(rows):
            if part is not None:
                digest.update(part.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]
