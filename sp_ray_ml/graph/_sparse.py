"""Products with a sparse matrix that does not learn: compiled for the CPU, torch's on a GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
import torch
from torch.nn import functional as F

from sp_ray_ml.graph._sparse_kernel import dot_pairs, multiply_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SparseOperator", "pair_products", "take_rows"]

_WORTH_A_THREAD = 2_000_000  # multiplications: about half a millisecond, several times what a thread costs


class SparseOperator:
    """A constant matrix [rows, columns] that multiplies dense ones, with a gradient for these."""

    def __init__(self, matrix: scipy.sparse.csr_array, device: torch.device) -> None:
        forward = matrix.astype(np.float32)
        backward = scipy.sparse.csr_array(forward.T)
        on_cpu = device.type == "cpu"
        self._forward = _to_rows(forward) if on_cpu else _to_torch(forward, device)
        self._backward = _to_rows(backward) if on_cpu else _to_torch(backward, device)

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


def pair_products(
    left: torch.Tensor, right: torch.Tensor, row: torch.Tensor, column: torch.Tensor
) -> torch.Tensor:
    """left[row[e]] · right[column[e]] for each pair e, with gradients for both.

    Args:
        left: float32 [rows, width].
        right: float32 [columns, width].
        row: int64 [pairs], ascending.
        column: int64 [pairs].

    Returns:
        float32 [pairs].
    """
    if left.device.type != "cpu":
        return (left[row] * right[column]).sum(-1)
    return _Pairs.apply(left, right, row, column)  # type: ignore[no-any-return]


def take_rows(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`values[index]`, with a gradient that has the same bits each time, however often a row is taken.

    On a CPU the threads of `values[index]` add up a row's gradients all at once, in an order that is another each time.

    Args:
        values: Floats [rows] or [rows, width].
        index: int64 [...].

    Returns:
        Floats [...] or [..., width].
    """
    if values.device.type != "cpu":  # a GPU sorts by row before it adds
        return values[index]
    if values.ndim == 2:  # each thread adds up rows of its own
        return F.embedding(index, values)
    return values.index_select(0, index.reshape(-1)).reshape(index.shape)


class _Pairs(torch.autograd.Function):
    """The gradients are products with the sparse matrix of the pairs, which needs no rows to be gathered."""

    @staticmethod
    def forward(
        context: Any, left: torch.Tensor, right: torch.Tensor, row: torch.Tensor, column: torch.Tensor
    ) -> torch.Tensor:
        context.save_for_backward(left, right, row, column)
        out = np.empty(len(row), np.float32)
        dot_pairs(_array(left), _array(right), row.numpy(), column.numpy(), out)
        return torch.from_numpy(out)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        left, right, row, column = context.saved_tensors
        starts = torch.searchsorted(row, torch.arange(len(left) + 1)).numpy()
        shape = (len(left), len(right))
        pairs = scipy.sparse.csr_array((_array(gradient), column.numpy(), starts), shape=shape)
        threads = torch.get_num_threads()
        of_left = _to_rows(pairs).multiply(_array(right), threads)
        of_right = _to_rows(scipy.sparse.csr_array(pairs.T)).multiply(_array(left), threads)
        return torch.from_numpy(of_left), torch.from_numpy(of_right), None, None


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
    return torch.from_numpy(matrix.multiply(_array(dense), torch.get_num_threads()))


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().numpy(), dtype=np.float32)


def _to_rows(matrix: scipy.sparse.csr_array) -> _Rows:
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
