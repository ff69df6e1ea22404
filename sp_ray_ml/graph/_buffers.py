"""Memory for batches that is used again once a batch is gone: fresh memory costs more than what is written to it."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Buffers"]

_SMALL = 2**20
_LINE = 64


class Buffers:
    """Tensors whose memory comes back when the last of those who hold them lets go.

    The system hands out zeroed pages one by one, which for the features of a batch (60 MB) takes as long as gathering
    them does. Below 1 MiB the allocator keeps memory by itself.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._free: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor with anything in it."""
        size = math.prod(shape) * dtype.itemsize
        if size < _SMALL:
            return torch.empty(tuple(shape), dtype=dtype)
        with self._lock:
            fitting = [buffer for buffer in self._free if size <= len(buffer) <= 2 * size]
            buffer = min(fitting, key=len, default=None)
            if buffer is not None:
                self._free = [other for other in self._free if other is not buffer]
        if buffer is None:
            whole = np.empty(size + size // 8 + _LINE, np.uint8)  # the next batch may be a little larger
            buffer = whole[-whole.ctypes.data % _LINE :]
        lent = buffer[:size]
        # The tensor holds this view; when it is let go, the view is.
        weakref.finalize(lent, self._back, buffer).atexit = False
        return torch.from_numpy(lent).view(dtype).reshape(tuple(shape))

    def _back(self, buffer: NDArray[np.uint8]) -> None:
        with self._lock:
            self._free.append(buffer)
            del self._free[: -self._kept]
