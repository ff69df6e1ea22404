"""Sums as whole numbers of 2^-40: however the values come and are merged, the same to the last bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["UNIT_BITS", "fixed_mean", "fixed_sum", "limbs", "weighted_mean"]

UNIT_BITS = 40
_UNIT = 2.0**UNIT_BITS
_LIMB = 2.0**24
_SHARE_BITS = 52


def fixed_sum(values: npt.NDArray[np.float64]) -> int:
    """The sum as a whole number of 2^-40: whole numbers add up to the same in any order.

    Raises:
        ValueError: A value is not finite.
    """
    scaled = np.rint(values * _UNIT)  # exact, and faster than ldexp
    largest = max(scaled.max(initial=0.0), -scaled.min(initial=0.0))
    if not np.isfinite(largest):
        raise ValueError("a value is not finite")
    if largest < 2.0**62:
        # So few at a time that 64 bits hold their sum.
        few = max(1, int(2.0**62 / max(1.0, largest)))
        whole = scaled.astype(np.int64)
        if few >= len(whole):
            return int(whole.sum())
        return sum(np.add.reduceat(whole, np.arange(0, len(whole), few)).tolist())
    return sum(map(int, scaled))


def fixed_mean(total: int, rows: int) -> float:
    """The mean of so many values with such a sum."""
    return float(total / rows / 2**UNIT_BITS)


def limbs(values: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
    """Values in whole numbers of 2^-40, as digits to the base 2^24, the lowest first.

    Products of digits with small whole numbers, and sums of up to 2^25 of them, are exact in float64, whatever the
    order: a matrix product of the BLAS library sums them up to the same bits in whatever way it works.

    Args:
        values: Finite.
    """
    rest = np.rint(values * _UNIT)
    digits = []
    while True:
        above = np.trunc(rest / _LIMB)
        digits.append(rest - above * _LIMB)
        if not above.any():
            return digits
        rest = above


def weighted_mean(total: int, rows: int) -> float:
    """From a sum of shares, each rounded to 2^-52 and in units of that, to the mean of so many rows."""
    return float(total / rows / 2**_SHARE_BITS)
