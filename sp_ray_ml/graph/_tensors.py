"""Arrays as tensors over the same memory."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["as_numpy", "read_only"]


def as_numpy(tensor: Any) -> NDArray[np.int64]:
    """The ids in a tensor."""
    return np.ascontiguousarray(tensor.cpu().numpy(), np.int64)


def read_only(array: NDArray[Any]) -> torch.Tensor:
    """A tensor that nobody writes to, also of an array that is mapped from a file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array))
