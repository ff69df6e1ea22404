"""Products with a sparse matrix that does not learn: SciPy's on the CPU, where it is faster, torch's on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import torch

__all__ = ["SparseOperator"]


class SparseOperator:
    """A constant matrix [rows, columns] that multiplies dense ones, with a gradient for these."""

    def __init__(self, matrix: scipy.sparse.csr_array, device: torch.device) -> None:
        forward = matrix.astype(np.float32)
        backward = scipy.sparse.csr_array(forward.T)
        self._forward = forward if device.type == "cpu" else _to_torch(forward, device)
        self._backward = backward if device.type == "cpu" else _to_torch(backward, device)

    def __matmul__(self, dense: torch.Tensor) -> torch.Tensor:
        return _Product.apply(dense, self._forward, self._backward)  # type: ignore[no-any-return]

    @property
    def transposed(self) -> SparseOperator:
        """The transpose, sharing the arrays."""
        other = SparseOperator.__new__(SparseOperator)
        other._forward, other._backward = self._backward, self._forward
        return other


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, dense: torch.Tensor, matrix: Any, transposed: Any) -> torch.Tensor:
        context.transposed = transposed
        return _multiply(matrix, dense)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _multiply(context.transposed, gradient), None, None


def _multiply(matrix: Any, dense: torch.Tensor) -> torch.Tensor:
    if isinstance(matrix, torch.Tensor):
        return matrix @ dense
    return torch.from_numpy(matrix @ dense.detach().contiguous().numpy())


def _to_torch(matrix: scipy.sparse.csr_array, device: torch.device) -> torch.Tensor:
    indptr, indices = (torch.from_numpy(part.astype(np.int64)) for part in (matrix.indptr, matrix.indices))
    return torch.sparse_csr_tensor(
        indptr, indices, torch.from_numpy(matrix.data), matrix.shape, device=device
    )
