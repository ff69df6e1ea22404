"""The largest singular vectors of a sparse matrix, by random projection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sp_ray_ml.graph._sparse import SparseOperator

if TYPE_CHECKING:
    import scipy.sparse
    from numpy.typing import NDArray

__all__ = ["spectral_start"]

_MORE, _ITERATIONS = 32, 4
_ZERO = 1e-3  # as a share of the largest: in float32 what is 0 comes out as less


def spectral_start(
    matrix: scipy.sparse.csr_array, dim: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """U Σ^(1/2) and V Σ^(1/2) of the largest singular values of a matrix ≈ U Σ Vᵀ.

    By subspace iteration from a random start (Halko et al. 2011, "Finding structure with randomness", algorithm 4.4):
    Q spans (A Aᵀ)^q A Ω, and the singular vectors are those of the small Qᵀ A. The same matrix gives the same bits.

    Args:
        matrix: [rows, columns].
        dim: How many singular values; fewer come back where not as many are above 0.

    Returns:
        float32 [rows, dim] and [columns, dim].
    """
    size = min(dim, *matrix.shape)
    product = SparseOperator(matrix, torch.device("cpu"))
    span = np.random.default_rng(0).standard_normal((matrix.shape[1], min(size + _MORE, *matrix.shape)))
    right = torch.from_numpy(span.astype(np.float32))
    with torch.no_grad():
        for _ in range(_ITERATIONS):
            left = torch.linalg.qr(product @ right)[0]
            right = torch.linalg.qr(product.transposed @ left)[0]
        left, values, small = torch.linalg.svd(product @ right, full_matrices=False)
        size = min(size, int((values > _ZERO * values[0]).sum()))
        root = values[:size].sqrt()
        return (left[:, :size] * root).numpy(), (right @ small.T[:, :size] * root).numpy()
