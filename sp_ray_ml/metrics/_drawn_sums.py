"""`DrawnSums`: sums over units that are drawn anew, in each replicate of a bootstrap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sp_ray_ml.metrics._exact import ratio

__all__ = ["DrawnSums"]

_CHUNK = 4_096  # units: their weights in 200 replicates fill 6.5 MB
_BITS, _DIGITS = 30, 3
_LOWEST = -33  # 2^-990: what is smaller counts as 0
_SPLIT = 2.0**27 + 1


class DrawnSums:
    """Sums of several values and of some of their squares, with the weights of Poisson bootstrap replicates.

    Values are cut into digits to the base 2^30, at places that are the same for all numbers; those three are summed
    that the largest value has first. So no cut, order or merge changes a bit, and what is left out of a value is less
    than 2^-60 of the largest one. Products of digits with small weights, and sums of 4,096 of them, are exact in
    float64: a matrix product of the BLAS library gives the same bits in whatever way it works. Sums of digits fit in
    64 bits for 2^33 units that are drawn.

    Args:
        values: How many values there are.
        squared: Places of those whose squares are summed too.
        replicates: How many.
        seed: Of the draws.
    """

    def __init__(self, values: int, squared: Sequence[int], replicates: int, seed: int) -> None:
        self._squared, self._replicates, self._seed = list(squared), replicates, seed
        self._values = values
        self._drawn = np.zeros(replicates, np.int64)
        # The digits of each value by their place; after these, of each square what float64 has of it, and the rest.
        self._sums: list[dict[int, npt.NDArray[np.int64]]] = [{} for _ in range(values + 2 * len(squared))]

    def update(self, values: Sequence[npt.NDArray[np.float64]], units: npt.NDArray[np.uint64]) -> None:
        """Take some units.

        Args:
            values: Of each an array [units], finite.
            units: uint64 [units].

        Raises:
            ValueError: A square is not finite.
        """
        from sp_ray_ml.metrics._weights_kernel import poisson_weights

        for begin in range(0, len(units), _CHUNK):
            part = np.ascontiguousarray(units[begin : begin + _CHUNK])
            weights = np.empty((self._replicates, len(part)))
            poisson_weights(part, np.uint64(self._seed), weights)
            self._drawn += weights.sum(axis=1).astype(np.int64)
            columns = [np.asarray(each[begin : begin + _CHUNK], np.float64) for each in values]
            for place in self._squared:
                columns += _square(columns[place])
            digits = [
                (sums, *one) for sums, each in zip(self._sums, columns, strict=True) for one in _digits(each)
            ]
            if digits:
                totals = weights @ np.stack([digit for _, _, digit in digits]).T
                for (sums, place, _), total in zip(digits, totals.T, strict=True):
                    _add(sums, place, total.astype(np.int64))

    def merge(self, other: DrawnSums) -> None:
        """Take the units of another one, of the same values."""
        self._drawn = self._drawn + other._drawn
        for mine, theirs in zip(self._sums, other._sums, strict=True):
            for place, total in theirs.items():
                _add(mine, place, total)

    def means(self, value: int) -> npt.NDArray[np.float64]:
        """The mean of a value in each replicate, [replicates]; NaN where one drew nobody."""
        totals, exponent = self._totals(value)
        return self._each(lambda rows, at: ratio(totals[at], rows, exponent))

    def square_means(self, value: int) -> npt.NDArray[np.float64]:
        """Likewise of its square."""
        squares, exponent = self._squares(value)
        return self._each(lambda rows, at: ratio(squares[at], rows, exponent))

    def variances(self, value: int) -> npt.NDArray[np.float64]:
        """Likewise its variance."""
        (totals, half), (squares, exponent) = self._totals(value), self._squares(value)
        lowest = min(2 * half, exponent)
        up, down = 2 * half - lowest, exponent - lowest

        def variance(rows: int, at: int) -> float:
            difference = (rows * squares[at] << down) - (totals[at] ** 2 << up)
            return ratio(difference, rows * rows, lowest)

        return self._each(variance)

    def _each(self, function: Any) -> npt.NDArray[np.float64]:
        found = (function(rows, at) if rows else math.nan for at, rows in enumerate(self._drawn.tolist()))
        return np.fromiter(found, np.float64, self._replicates)

    def _squares(self, value: int) -> tuple[list[int], int]:
        first = self._values + 2 * self._squared.index(value)
        (high, a), (low, b) = self._totals(first), self._totals(first + 1)
        lowest = min(a, b)
        return [(x << a - lowest) + (y << b - lowest) for x, y in zip(high, low, strict=True)], lowest

    def _totals(self, column: int) -> tuple[list[int], int]:
        """The sums of a column in each replicate, and the power of 2 that they are multiples of."""
        sums = self._sums[column]
        if not sums:
            return [0] * self._replicates, 0
        lowest = min(sums)
        whole = np.zeros(self._replicates, object)  # of Python's integers
        for place, total in sums.items():
            whole = whole + (total.astype(object) << _BITS * (place - lowest))
        return list(whole), _BITS * lowest


def _square(values: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
    """Squares as two numbers each, whose sum is exact (Dekker 1971)."""
    square = values * values
    if not np.isfinite(square).all():
        raise ValueError("a square is not finite")
    split = values * _SPLIT
    high = split - (split - values)
    low = values - high
    return [square, ((high * high - square) + 2 * high * low) + low * low]


def _digits(values: npt.NDArray[np.float64]) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
    """The first digits that are not all 0, with their places."""
    largest = max(values.max(), -values.min())
    if not largest:
        return
    first = (math.frexp(largest)[1] - 1) // _BITS
    for place in range(first, max(first - _DIGITS, _LOWEST - 1), -1):
        digit = np.trunc(values * 2.0 ** (-_BITS * place))
        yield place, digit
        values = values - digit * 2.0 ** (_BITS * place)
        if not values.any():
            return


def _add(sums: dict[int, npt.NDArray[np.int64]], place: int, total: npt.NDArray[np.int64]) -> None:
    sums[place] = sums[place] + total if place in sums else total
    for other in [each for each in sums if each <= max(sums) - _DIGITS]:
        del sums[other]
