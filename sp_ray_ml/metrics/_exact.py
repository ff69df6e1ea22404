"""Exact sums of numbers of any size, and of their squares: however the values come and are merged, the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["exact_mean", "exact_square_mean", "exact_squares", "exact_sum", "exact_variance", "ratio"]

_BITS = 1_074
"""Every float64 is a whole multiple of 2^-1074, and its square of that squared."""


def exact_sum(values: npt.NDArray[np.float64]) -> int:
    """The sum in units of 2^-1074.

    Raises:
        ValueError: A value is not finite.
    """
    from sp_ray_ml.metrics._exact_kernel import SUM_DIGITS, add_values

    return _added(values, add_values, SUM_DIGITS)


def exact_squares(values: npt.NDArray[np.float64]) -> int:
    """The sum of the squares in units of 2^-2148.

    Raises:
        ValueError: A value is not finite.
    """
    from sp_ray_ml.metrics._exact_kernel import SQUARE_DIGITS, add_squares

    return _added(values, add_squares, SQUARE_DIGITS)


def _added(values: npt.NDArray[np.float64], add: Callable[..., Any], count: int) -> int:
    digits = np.zeros(count, np.int64)
    if not add(np.ascontiguousarray(values, np.float64), digits):
        raise ValueError("a value is not finite")
    return sum(int(digits[at]) << 32 * at for at in np.flatnonzero(digits).tolist())


def exact_mean(total: int, rows: int) -> float:
    """The mean of so many values with such a sum, rounded once."""
    return ratio(total, rows, -_BITS)


def exact_square_mean(squares: int, rows: int) -> float:
    """The mean of the squares of so many values, rounded once."""
    return ratio(squares, rows, -2 * _BITS)


def exact_variance(total: int, squares: int, rows: int) -> float:
    """The variance of so many values, rounded once: nothing cancels out, however far from 0 they lie."""
    return ratio(rows * squares - total * total, rows * rows, -2 * _BITS)


def ratio(total: int, rows: int, exponent: int) -> float:
    """total / rows × 2^exponent, rounded once."""
    return total / (rows << -exponent) if exponent < 0 else (total << exponent) / rows
