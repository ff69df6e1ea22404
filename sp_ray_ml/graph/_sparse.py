"""Products with a sparse matrix that does not learn: compiled for the CPU, torch's on a GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
import torch

from sp_ray_ml.graph._sparse_kernel import multiply_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SparseOperator"]

_WORTH_A_THREAD = 2_000_000  # multiplications: about half a millisecond, several times what a thread costs


class SparseOperator:
    """A constant matrix [rows, columns] that multiplies dense ones, with a gradient for these."""

    def __init__(self, matrix: scipy.sparse.csr_array, device: torch.device) -> None:
        forward = matrix.astype(np.float32)
        place = _to_rows if device.type == "cpu" else _to_torch
        self._forward = place(forward, device)
        self._backward = place(scipy.sparse.csr_array(forward.T), device)

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


@dataclass(frozen=True)
class _Rows:
    """A CSR matrix in the types that the kernel takes."""

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[np.float32]

    def multiply(self, dense: NDArray[np.float32], threads: int) -> NDArray[np.float32]:
        """The product, float32 [rows, width]; the same bits for any number of threads."""
        rows = len(self.indptr) - 1
        out = np.empty((rows, dense.shape[1]), np.float32)
        work = len(self.indices) * dense.shape[1]
        parts = max(1, min(threads, work // _WORTH_A_THREAD))
        if parts == 1:
            multiply_rows(self.indptr, self.indices, self.values, dense, 0, rows, out)
            return out
        # As many entries for each, not as many rows.
        even = np.linspace(0, len(self.indices), parts + 1)
        cuts = [0, *np.searchsorted(self.indptr, even[1:-1]).tolist(), rows]

        def fill(first: int, last: int) -> None:
            multiply_rows(self.indptr, self.indices, self.values, dense, first, last, out)

        with ThreadPoolExecutor(parts) as pool:
            list(pool.map(fill, cuts[:-1], cuts[1:]))
        return out


def _multiply(matrix: Any, dense: torch.Tensor) -> torch.Tensor:
    if isinstance(matrix, torch.Tensor):
        return matrix @ dense
    array = np.ascontiguousarray(dense.detach().numpy(), dtype=np.float32)
    return torch.from_numpy(matrix.multiply(array, torch.get_num_threads()))


def _to_rows(matrix: scipy.sparse.csr_array, _: torch.device) -> _Rows:
    return _Rows(
        np.ascontiguousarray(matrix.indptr, np.int64),
        np.ascontiguousarray(matrix.indices, np.int32),
        np.ascontiguousarray(matrix.data, np.float32),
    )


def _to_torch(matrix: scipy.sparse.csr_array, device: torch.device) -> torch.Tensor:
    indptr, indices = (torch.from_numpy(part.astype(np.int64)) for part in (matrix.indptr, matrix.indices))
    return torch.sparse_csr_tensor(
        indptr, indices, torch.from_numpy(matrix.data), matrix.shape, device=device
    )
