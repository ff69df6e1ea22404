"""`Means`: means of what is measured of each unit, and of the same units drawn anew, for intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sp_ray_ml.errors import DataError
from sp_ray_ml.metrics._fixed import fixed_mean, fixed_sum, limbs

__all__ = ["LEAST_UNITS", "NORMAL", "Means", "interval"]

LEAST_UNITS = 10
"""Fewer units say too little of how they vary for an interval of theirs to be worth anything."""

NORMAL = 1.959963984540054
"""The 97.5 % point of the normal distribution."""

_CHUNK = 4_096  # units: their weights in 200 replicates fill 6.5 MB
_LIMB = 1 << 24


class Means:
    """Means of several values over units (users, rows), with Poisson bootstrap replicates of them.

    Replicate b draws unit u as often as a Poisson(1) number that is a function of the seed, b and u's own 64 bits
    (Chamandy et al. 2012, "Estimating uncertainty for massive data streams"). So neither cuts into batches, their
    order nor that of merges change a bit, and two models that are measured on the same units draw the same ones:
    differences of their replicates are those of a paired bootstrap.

    Args:
        names: What the values are called.
        replicates: How many; 0 for none.
        seed: Of the draws.
    """

    def __init__(self, names: Sequence[str], replicates: int = 0, seed: int = 0) -> None:
        self.names = tuple(names)
        self.replicates, self.seed = replicates, seed
        self.units = 0
        self._sums = [0] * len(self.names)
        self._drawn = np.zeros(replicates, np.int64)
        self._drawn_sums = np.zeros((replicates, len(self.names)), dtype=object)

    def update(
        self,
        values: npt.NDArray[np.float64] | Sequence[npt.NDArray[np.float64]],
        units: npt.NDArray[np.uint64] | None = None,
    ) -> None:
        """Take some units.

        Args:
            values: float64 `[names, units]`, or an array `[units]` for each name; rounded to 2^-40.
            units: uint64 `[units]`, what tells each from all others; needed for replicates.

        Raises:
            DataError: A value is not finite.
        """
        rows = values.shape[1] if isinstance(values, np.ndarray) else len(values[0])
        sums = []
        for name, total, each in zip(self.names, self._sums, values, strict=True):
            try:
                sums.append(total + fixed_sum(each))
            except ValueError:
                raise DataError(f"a value of {name} is not a number", where="evaluate") from None
        self.units, self._sums = self.units + rows, sums
        if self.replicates and rows:
            assert units is not None
            self._draw(np.asarray(values), units)

    def _draw(self, values: npt.NDArray[np.float64], units: npt.NDArray[np.uint64]) -> None:
        from sp_ray_ml.metrics._weights_kernel import poisson_weights

        digits = [digit.T for digit in limbs(values)]
        sums = [np.zeros((self.replicates, len(self.names))) for _ in digits]
        for begin in range(0, len(units), _CHUNK):
            part = np.ascontiguousarray(units[begin : begin + _CHUNK])
            weights = np.empty((self.replicates, len(part)))
            poisson_weights(part, np.uint64(self.seed), weights)
            self._drawn += weights.sum(axis=1).astype(np.int64)
            for total, digit in zip(sums, digits, strict=True):
                np.add(total, weights @ digit[begin : begin + _CHUNK], out=total)
        for place, total in enumerate(sums):
            self._drawn_sums = self._drawn_sums + total.astype(np.int64).astype(object) * _LIMB**place

    def merge(self, other: Means) -> None:
        """Take the units of another one.

        Raises:
            DataError: It measures something else, or draws in another way.
        """
        if (self.names, self.replicates, self.seed) != (other.names, other.replicates, other.seed):
            raise DataError("means of different values, or with different replicates, cannot be merged")
        self.units += other.units
        self._sums = [a + b for a, b in zip(self._sums, other._sums, strict=True)]
        self._drawn = self._drawn + other._drawn
        self._drawn_sums = self._drawn_sums + other._drawn_sums

    def means(self) -> dict[str, float]:
        """The mean of each value.

        Raises:
            DataError: There was no unit.
        """
        if not self.units:
            raise DataError("there is no row to measure on", where="evaluate")
        return {
            name: fixed_mean(total, self.units) for name, total in zip(self.names, self._sums, strict=True)
        }

    def drawn(self) -> dict[str, npt.NDArray[np.float64]]:
        """The mean of each value in each replicate, float64 `[replicates]`; NaN where a replicate drew nobody."""
        return {name: np.array(list(self._column(i))) for i, name in enumerate(self.names)}

    def _column(self, place: int) -> Iterator[float]:
        for total, units in zip(self._drawn_sums[:, place], self._drawn.tolist(), strict=True):
            yield fixed_mean(int(total), units) if units else float("nan")


def interval(drawn: npt.NDArray[Any], confidence: float = 0.95) -> tuple[float, float] | None:
    """The percentile interval of replicates (Efron 1981); None for fewer than two that are numbers."""
    found = drawn[np.isfinite(drawn)]
    if len(found) < 2:
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)
