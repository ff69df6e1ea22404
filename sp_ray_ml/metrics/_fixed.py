"""Sums of shares as whole numbers of a small unit, which add up to the same in any order."""

from __future__ import annotations

__all__ = ["UNIT_BITS", "fixed_mean", "weighted_mean"]

UNIT_BITS = 40
_SHARE_BITS = 52


def fixed_mean(total: int, rows: int) -> float:
    """From a sum in units of 2^-40 to the mean of so many rows."""
    return float(total / rows / 2**UNIT_BITS)


def weighted_mean(total: int, rows: int) -> float:
    """From a sum of shares, each rounded to 2^-52 and in units of that, to the mean of so many rows."""
    return float(total / rows / 2**_SHARE_BITS)
