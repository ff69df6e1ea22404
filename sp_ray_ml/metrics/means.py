"""`Means`: means of what is measured of each unit, and of the same units drawn anew, for intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sp_ray_ml.errors import ConfigError, DataError
from sp_ray_ml.metrics._drawn_sums import DrawnSums
from sp_ray_ml.metrics._exact import exact_mean, exact_square_mean, exact_squares, exact_sum, exact_variance

__all__ = ["LEAST_UNITS", "NORMAL", "Means", "check_draws", "interval"]

LEAST_UNITS = 10
"""Fewer units say too little of how they vary for an interval of theirs to be worth anything."""

NORMAL = 1.959963984540054
"""The 97.5 % point of the normal distribution."""


def check_draws(replicates: int, seed: int) -> None:
    """Refuse what nobody can draw by.

    Raises:
        ConfigError: There are fewer than no replicates, or the seed has no 64 bits.
    """
    if replicates < 0:
        raise ConfigError(
            f"{replicates} replicates cannot be drawn", where="bootstrap", hint="Give 0 for none"
        )
    if not 0 <= seed < 1 << 64:
        raise ConfigError(
            f"the seed {seed} is none", where="seed", hint="Give a whole number from 0 to 2^64 - 1"
        )


class Means:
    """Means of several values over units (users, rows), with Poisson bootstrap replicates of them.

    Replicate b draws unit u as often as a Poisson(1) number that is a function of the seed, b and u's own 64 bits
    (Chamandy et al. 2012, "Estimating uncertainty for massive data streams"). So neither cuts into batches, their
    order nor that of merges change a bit, and two models that are measured on the same units draw the same ones:
    differences of their replicates are those of a paired bootstrap.

    Sums are exact, whatever the size of the values. For those in `squared` there is more: `NAME square`, the mean of
    the square, and `NAME variance`, without what cancels out in a difference of rounded means.

    Args:
        names: What the values are called.
        replicates: How many; 0 for none.
        seed: Of the draws.
        squared: Names of values whose mean square and variance are wanted too.
    """

    def __init__(
        self, names: Sequence[str], replicates: int = 0, seed: int = 0, squared: Sequence[str] = ()
    ) -> None:
        self.names, self.squared = tuple(names), tuple(squared)
        self.replicates, self.seed = replicates, seed
        self.units = 0
        self._sums = dict.fromkeys(self.names, 0)
        self._squares = dict.fromkeys(self.squared, 0)
        places = [self.names.index(name) for name in self.squared]
        self._drawn = DrawnSums(len(self.names), places, replicates, seed)

    def update(
        self,
        values: npt.NDArray[np.float64] | Sequence[npt.NDArray[np.float64]],
        units: npt.NDArray[np.uint64] | None = None,
    ) -> None:
        """Take some units.

        Args:
            values: float64 `[names, units]`, or an array `[units]` for each name.
            units: uint64 `[units]`, what tells each from all others; needed for replicates.

        Raises:
            DataError: A value is not finite, or its square where replicates need it.
        """
        rows = values.shape[1] if isinstance(values, np.ndarray) else len(values[0])
        columns = dict(zip(self.names, values, strict=True))
        sums, squares = {}, {}
        for name, each in columns.items():
            try:
                sums[name] = self._sums[name] + exact_sum(each)
                if name in self._squares:
                    squares[name] = self._squares[name] + exact_squares(each)
            except ValueError:
                raise DataError(f"a value of {name} is not a number", where="evaluate") from None
        if self.replicates and rows:
            assert units is not None
            try:
                self._drawn.update(list(columns.values()), units)
            except ValueError:
                raise DataError(
                    f"a value of {', '.join(self.squared)} is too large", where="evaluate"
                ) from None
        self.units, self._sums, self._squares = self.units + rows, sums, squares

    def merge(self, other: Means) -> None:
        """Take the units of another one.

        Raises:
            DataError: It measures something else, or draws in another way.
        """
        if self._kind() != other._kind():
            raise DataError("means of different values, or with different replicates, cannot be merged")
        self.units += other.units
        self._sums = {name: total + other._sums[name] for name, total in self._sums.items()}
        self._squares = {name: total + other._squares[name] for name, total in self._squares.items()}
        self._drawn.merge(other._drawn)

    def _kind(self) -> tuple[Any, ...]:
        return self.names, self.squared, self.replicates, self.seed

    def means(self) -> dict[str, float]:
        """The mean of each value, and what there is of squares.

        Raises:
            DataError: There was no unit.
        """
        if not self.units:
            raise DataError("there is no row to measure on", where="evaluate")
        found = {name: exact_mean(total, self.units) for name, total in self._sums.items()}
        for name, squares in self._squares.items():
            found[f"{name} square"] = exact_square_mean(squares, self.units)
            found[f"{name} variance"] = exact_variance(self._sums[name], squares, self.units)
        return found

    def drawn(self) -> dict[str, npt.NDArray[np.float64]]:
        """The same of each replicate, float64 `[replicates]`; NaN where a replicate drew nobody."""
        found = {name: self._drawn.means(place) for place, name in enumerate(self.names)}
        for name in self.squared:
            place = self.names.index(name)
            found[f"{name} square"] = self._drawn.square_means(place)
            found[f"{name} variance"] = self._drawn.variances(place)
        return found


def interval(drawn: npt.NDArray[Any], confidence: float = 0.95) -> tuple[float, float] | None:
    """The percentile interval of replicates (Efron 1981); None for fewer than two that are numbers."""
    found = drawn[np.isfinite(drawn)]
    if len(found) < 2:
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)
